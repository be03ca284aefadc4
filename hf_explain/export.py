"""
`hf-explain export` and `scripts/export_saliency.py`: the saliency maps of a whole data set, as sharded parquet.

The images, in the order of the data set, are cut into shards of `shard_size`. A shard is computed by one process,
in batches that never cross its ends, and gets its name only when it is whole. So neither the number of processes nor
an interruption shows in what is written, and a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import fsspec
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm
from transformers import pipeline

from hf_explain.checkpointing import check_writable, remove_leftovers, write_atomically
from hf_explain.data import LabelReader, is_stream, load_image_dataset, resolve_columns
from hf_explain.fingerprint import fingerprint
from hf_explain.mapping import DEFAULT_METHOD, resolve_method
from hf_explain.pipeline import SaliencyPipeline
from hf_explain.runtime import on_main_process, package_versions
from hf_explain.training_arguments import add_dataclass_arguments


SETTINGS_FILE = "export_settings.json"
REPORT_FILE = "export_report.json"
_REPORT_KEY = b"hf_explain"  # in each shard's own footer, so that a shard and its report appear as one
_ROW_GROUP = 100  # rows: what the Hub's viewer likes for images, and a bound on memory


def _option(default: Any, help: str, **metadata) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ExportArguments:
    """
    What to explain and how.

    Raises:
        ValueError: If a value cannot work; the message names it.
    """

    model: str = field(metadata={"help": "trained head or plain classifier: directory or Hub id"})
    dataset: str = field(metadata={"help": "Hub id, imagefolder, parquet file or directory, save_to_disk directory"})
    revision: str | None = _option(None, "branch, tag or commit of the model")
    dataset_config: str | None = _option(None, "configuration of a Hub data set")
    dataset_revision: str | None = _option(None, "branch, tag or commit of a Hub data set")
    split: str = _option("train", "split to explain")
    image_column: str | None = _option(None, "column of images; found by its type unless given")
    id_column: str | None = _option(None, "column of whole numbers or text that becomes image_id; the row otherwise")
    label_column: str | None = _option(None, "column of labels, for target=label; found by its type unless given")
    method: str | None = _option(None, "training-free method, such as gradcam; the head itself when not given")
    target: str = _option(
        "prediction", "class to explain: the classifier's own or the label", choices=("prediction", "label")
    )
    top_k: int = _option(1, "classes to explain per image, one row each, for target=prediction")
    batch_size: int = _option(8, "images per forward pass and process")
    shard_size: int = _option(500, "images per parquet file; an interruption loses at most one per process")
    max_examples: int | None = _option(None, "explain only the first ones")
    streaming: bool = _option(False, "read the data while exporting instead of downloading it first")
    on_error: str = _option("raise", "what to do about an image that cannot be read", choices=("raise", "skip"))
    num_workers: int = _option(0, "processes that decode images, per process; not for streaming")
    use_cpu: bool = _option(False, "use the CPU even where there is an accelerator")
    cache_dir: str | None = _option(None, "cache directory of `datasets`")
    disable_tqdm: bool = _option(False, "show no progress bar")

    def __post_init__(self) -> None:
        for name in ("top_k", "batch_size", "shard_size", "max_examples", "num_workers"):
            value, least = getattr(self, name), 0 if name == "num_workers" else 1
            if value is None and name == "max_examples":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        for entry in dataclasses.fields(self):
            choices = entry.metadata.get("choices")
            if choices and getattr(self, entry.name) not in choices:
                raise ValueError(
                    f"{entry.name} {getattr(self, entry.name)!r} is unknown: choose one of {', '.join(choices)}."
                )
        if self.target == "label" and self.top_k > 1:
            raise ValueError(
                f"top_k {self.top_k} is for target 'prediction': with target 'label' every image has one class."
            )
        if self.streaming and self.num_workers:
            raise ValueError(
                f"num_workers {self.num_workers} needs streaming=False: a stream is read in order, by the process "
                "that explains it."
            )
        if self.method is not None:
            resolve_method(self.method)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of `main_from_args` to `parser`."""
    parser.add_argument("-o", "--output_dir", "--output-dir", required=True, metavar="DIR", help="directory to write")
    add_dataclass_arguments(parser, ExportArguments)


def main_from_args(args: argparse.Namespace) -> dict[str, Any]:
    r"""
    Export as a command line asks for.

    Args:
        args (`argparse.Namespace`): What a parser with `add_export_arguments` parsed.

    Returns:
        `dict[str, Any]`: As [`export_saliency`].
    """
    names = [entry.name for entry in dataclasses.fields(ExportArguments)]
    report = export_saliency(args.output_dir, ExportArguments(**{name: getattr(args, name) for name in names}))
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"{args.output_dir}: {report['num_rows']} maps of {report['num_images']} images in "
            f"{report['num_shards']} shards, {len(report['skipped'])} images skipped"
        )
    return report


def export_saliency(output_dir: str | os.PathLike, args: ExportArguments) -> dict[str, Any]:
    r"""
    Write the saliency maps of a data set as parquet files that `datasets.load_dataset(output_dir)` reads.

    Columns: `image_id` (`int64` or `string`), `target` (`ClassLabel` with the classifier's names), `score` (`float32`,
    the classifier's probability of the target), `saliency` (`datasets.Image`: PNG in mode L, of the original image's
    size). Under `torchrun` or `accelerate launch` the shards are divided among the processes. Called again with the
    same settings, it writes the shards that are missing.

    Args:
        output_dir (`str` or `os.PathLike`): A new directory, or that of the same export.
        args ([`ExportArguments`]): What to explain and how.

    Returns:
        `dict[str, Any]`: What it also writes to `export_report.json`: `num_images`, `num_rows`, `num_shards` and
        `skipped`, a list of `{"image_id", "row", "error"}`.

    Raises:
        FileExistsError: If `output_dir` holds something else, or an export with other settings.
        OSError: If the model or the data set cannot be found or read, or the output not be written.
        ValueError: If a column is missing, an image or label is unusable, or a setting cannot work.
    """
    output_dir = Path(output_dir)
    accelerator = Accelerator(
        cpu=args.use_cpu,
        # processes wait for the slowest one at the end, which may have a shard more to do
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched but Accelerate sees {accelerator.num_processes}: on the CPU set "
            "ACCELERATE_USE_CPU=true and start with torchrun, or pass use_cpu=True."
        )
    with accelerator.local_main_process_first():
        source = _Source.load(args)
        pipe = _load_pipeline(args, accelerator.device)
    read_label = None
    if source.label_column is not None:
        read_label = LabelReader(source.features.get(source.label_column), pipe.classifier.config)
    features = _features(pipe, source)
    done = on_main_process(accelerator, lambda: _prepare(output_dir, args, source, pipe))

    mine = source.chunks(args, done, accelerator.process_index, accelerator.num_processes)
    total = None if source.streaming else sum(chunk.num_images for chunk in mine)
    quiet = args.disable_tqdm or not accelerator.is_main_process
    of = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
    with tqdm(total=total, unit="image", desc=f"export{of}", disable=quiet) as bar:
        for chunk in mine:
            results = _explain(pipe, chunk, source, args, read_label)
            _write_shard(output_dir / "data" / chunk.name, features, results, args.on_error, bar.update)
    accelerator.wait_for_everyone()
    return on_main_process(accelerator, lambda: _report(output_dir))


# --------------------------------------------------------------------------------------------------------------- input


class _Rows(torch.utils.data.Dataset):
    """Images of a shard as the pipeline takes them, fetched one by one; workers can share the work."""

    def __init__(self, rows: datasets.Dataset, image_column: str, targets: list[int | None]):
        self.rows, self.image_column, self.targets = rows, image_column, targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.rows[index][self.image_column], "target": self.targets[index]}


@dataclass
class _Chunk:
    """One shard to write: consecutive rows of the data set, encoded images."""

    name: str
    first_row: int
    rows: Any  # a datasets.Dataset, or an iterator of a stream

    @property
    def num_images(self) -> int:
        return len(self.rows)


@dataclass
class _Source:
    """The data set, reduced to the columns that are needed, with images left encoded."""

    dataset: Any
    streaming: bool
    features: dict[str, Any]
    image_column: str
    label_column: str | None
    id_column: str | None
    split: str

    @classmethod
    def load(cls, args: ExportArguments) -> _Source:
        dataset = load_image_dataset(
            args.dataset, args.split, args.dataset_config, args.dataset_revision, args.streaming, args.cache_dir
        )
        streaming = is_stream(dataset)
        if streaming and dataset.features is None:
            dataset = dataset._resolve_features()
        image, label = resolve_columns(dataset, args.image_column, args.label_column, args.target == "label")
        features = dict(dataset.features)
        if args.id_column is not None:
            _id_type(args.id_column, features)
        if isinstance(features[image], datasets.Image):
            # decoded later, where a corrupt one can be told from the others
            dataset = dataset.cast_column(image, datasets.Image(decode=False))
        dataset = dataset.select_columns(list(dict.fromkeys(name for name in (image, label, args.id_column) if name)))
        if args.max_examples is not None:
            dataset = (
                dataset.take(args.max_examples)
                if streaming
                else dataset.select(range(min(args.max_examples, len(dataset))))
            )
        split = "_".join(part.split("[")[0].strip() for part in args.split.split("+"))
        return cls(dataset, streaming, features, image, label, args.id_column, split)

    def first_image(self) -> str:
        """A checksum by which two data sets of one name are told apart."""
        first = next(iter(self.dataset), None)
        if first is None:
            raise ValueError(f"split {self.split!r} of the dataset is empty: there is nothing to explain.")
        cell = first[self.image_column]
        content = _encoded(cell)
        return hashlib.sha256(content if isinstance(content, bytes) else repr(content).encode()).hexdigest()[:16]

    def chunks(self, args: ExportArguments, done: set[str], rank: int, world_size: int) -> Iterable[_Chunk]:
        """The shards of one process that are missing; those of all processes together are complete and disjoint."""
        if self.streaming:
            return self._stream_chunks(args.shard_size, done, rank, world_size)
        count = len(self.dataset)
        missing = [
            _Chunk(self._name(index), first, None)
            for index, first in enumerate(range(0, count, args.shard_size))
            if self._name(index) not in done
        ][rank::world_size]
        for chunk in missing:
            chunk.rows = self.dataset.select(range(chunk.first_row, min(chunk.first_row + args.shard_size, count)))
        return missing

    def _stream_chunks(self, size: int, done: set[str], rank: int, world_size: int) -> Iterator[_Chunk]:
        # Every process reads the whole stream, still encoded: only its position says which row it is, and only the
        # end of the stream how many there are. What costs is the decoding and explaining, and that is divided.
        complete = next(index for index in itertools.count() if self._name(index) not in done)
        rows = iter(self.dataset.skip(complete * size) if complete else self.dataset)
        for index in itertools.count(complete):
            part = itertools.islice(rows, size)
            first = next(part, None)
            if first is None:
                return
            if index % world_size == rank and self._name(index) not in done:
                part = itertools.chain([first], part)
                yield _Chunk(self._name(index), index * size, part)
            for _ in part:
                pass

    def _name(self, index: int) -> str:
        return f"{self.split}-{index:06d}.parquet"

    def image_id(self, row: dict, number: int) -> int | str:
        if self.id_column is None:
            return number
        if row[self.id_column] is None:
            raise ValueError(f"id_column {self.id_column!r} is empty in row {number}: every image needs an id.")
        return row[self.id_column]


def _id_type(column: str, features: dict[str, Any]) -> datasets.Value:
    if column not in features:
        raise ValueError(
            f"id_column {column!r} is not a column of the dataset: its columns are "
            f"{', '.join(repr(name) for name in features)}."
        )
    kind = str(getattr(features[column], "dtype", type(features[column]).__name__))
    if kind.startswith(("int", "uint")):
        return datasets.Value("int64")
    if kind in ("string", "large_string"):
        return datasets.Value("string")
    raise ValueError(f"id_column {column!r} holds {kind}: an image_id is a whole number or text.")


def _encoded(cell: Any) -> Any:
    """The file's bytes of an image cell; what is no file stays as it is."""
    if not isinstance(cell, dict):
        return cell
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if cell.get("path") is None:
        return b""
    try:
        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


# ---------------------------------------------------------------------------------------------------------- the maps


class _ExportPipeline(SaliencyPipeline):
    """The pipeline, fed with encoded images, giving class indices and encoded maps."""

    def preprocess(self, inputs, **parameters):
        return super().preprocess({**inputs, "image": _encoded(inputs["image"])}, **parameters)

    def postprocess(self, model_outputs):
        results = super().postprocess(model_outputs)
        if "error" in results[0]:
            return results
        targets = model_outputs["target"][0]
        return [
            {"target": index, "score": result["score"], "saliency": _png(result["saliency"])}
            for index, result in zip(targets[targets >= 0].tolist(), results, strict=True)
        ]


def _load_pipeline(args: ExportArguments, device: torch.device) -> _ExportPipeline:
    return pipeline(
        "saliency", model=args.model, revision=args.revision, device=device, pipeline_class=_ExportPipeline
    )


def _features(pipe: _ExportPipeline, source: _Source) -> datasets.Features:
    names = [str(pipe.classifier.id2label[index]) for index in range(pipe.classifier.num_labels)]
    # ImageNet has two cranes; a ClassLabel wants each name once
    names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
    identity = datasets.Value("int64") if source.id_column is None else _id_type(source.id_column, source.features)
    return datasets.Features(
        {
            "image_id": identity,
            "target": datasets.ClassLabel(names=names),
            "score": datasets.Value("float32"),
            "saliency": datasets.Image(),
        }
    )


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _explain(
    pipe: _ExportPipeline, chunk: _Chunk, source: _Source, args: ExportArguments, read_label: LabelReader | None
) -> Iterator[tuple[int, int | str, list[dict]]]:
    """Row, image id and results of each image of a shard, in order; memory for one batch of images."""
    identities = []

    def identify(row: dict, number: int) -> int | None:
        """Note whose result is next, and say which class it is about."""
        identities.append((number, source.image_id(row, number)))
        if read_label is None:
            return None
        try:
            return read_label(row[source.label_column])
        except ValueError as error:
            raise ValueError(f"label_column {source.label_column!r}, row {number} of the dataset: {error}.") from error

    if source.streaming:
        rows = zip(itertools.count(chunk.first_row), chunk.rows)
        inputs: Any = ({"image": row[source.image_column], "target": identify(row, number)} for number, row in rows)
    else:
        others = [name for name in chunk.rows.column_names if name != source.image_column]
        light = chunk.rows.select_columns(others) if others else itertools.repeat({}, len(chunk.rows))
        targets = [identify(row, number) for number, row in enumerate(light, chunk.first_row)]
        inputs = _Rows(chunk.rows, source.image_column, targets)
    options = {"method": args.method, "batch_size": args.batch_size, "num_workers": args.num_workers}
    if args.target == "prediction":
        options["top_k"] = args.top_k
    results = pipe(inputs, on_error="return", **options)
    # results first: in a stream an image is identified when the pipeline asks for it
    for result, (number, image_id) in zip(results, identities):
        yield number, image_id, result


# -------------------------------------------------------------------------------------------------------- the files


def _prepare(output_dir: Path, args: ExportArguments, source: _Source, pipe: _ExportPipeline) -> set[str]:
    """Make the directory this export's, or see that it is; the names of the shards that are there."""
    settings = _settings(args, source, pipe)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        try:
            before = json.loads((output_dir / SETTINGS_FILE).read_text())["settings"]
        except FileNotFoundError:
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds files, but no export: choose a new directory."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{SETTINGS_FILE} in output_dir {str(output_dir)!r} cannot be read ({error}): choose a new directory."
            ) from error
        changed = [name for name in (*settings, *before) if settings.get(name) != before.get(name)]
        if changed:
            name = changed[0]
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds an export with other settings ({name} is "
                f"{before.get(name)!r} there and {settings.get(name)!r} here): choose another directory, or delete "
                "that one to start anew."
            )
    check_writable(output_dir)
    check_writable(output_dir / "data")
    # the settings come first: shards without them would belong to nobody
    if not (output_dir / SETTINGS_FILE).exists():
        content = {"settings": settings, "versions": package_versions()}
        write_atomically(output_dir / SETTINGS_FILE, (json.dumps(content, indent=2) + "\n").encode())
    write_atomically(output_dir / "README.md", _readme(settings, source.split).encode())
    remove_leftovers(output_dir)
    remove_leftovers(output_dir / "data")
    return {path.name for path in (output_dir / "data").glob("*.parquet")}


def _settings(args: ExportArguments, source: _Source, pipe: _ExportPipeline) -> dict[str, Any]:
    """What decides which maps are written; batch_size, num_workers and on_error may change from run to run."""
    weights = fingerprint(pipe.classifier.model)
    if pipe.head is not None:
        weights += fingerprint(pipe.head)
    method = args.method or (DEFAULT_METHOD if pipe.head is None else pipe.head.config.model_type)
    names = ("dataset_config", "dataset_revision", "split", "target", "top_k", "shard_size", "max_examples")
    return {
        "model": _public_name(args.model),
        "revision": args.revision,
        "weights": weights,
        "dataset": _public_name(args.dataset),
        **{name: getattr(args, name) for name in names},
        "method": method,
        "streaming": source.streaming,
        "image_column": source.image_column,
        "label_column": source.label_column,
        "id_column": source.id_column,
        "num_examples": None if source.streaming else len(source.dataset),
        "first_image": source.first_image(),
    }


def _public_name(source: str) -> str:
    # a directory without its path: the export may be published
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def _readme(settings: dict[str, Any], split: str) -> str:
    explained = {"prediction": f"the top {settings['top_k']} of the classifier", "label": "the label"}
    return (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n"
        "    path: data/*.parquet\ntags:\n- hf-explain\n- saliency\n---\n\n"
        f"# Saliency maps of {settings['model']} on {settings['dataset']}\n\n"
        f"Split `{settings['split']}`; method: `{settings['method']}`; "
        f"explained class: {explained[settings['target']]}.\n\n"
        "Columns: `image_id`; `target`, the explained class; `score`, the classifier's probability of it; `saliency`, "
        "the map as an 8-bit greyscale PNG of the original image's size (255 is most important, 0 least or not seen "
        f"by the classifier). `{SETTINGS_FILE}` has every setting, `{REPORT_FILE}` what was left out.\n"
    )


def _write_shard(
    path: Path,
    features: datasets.Features,
    results: Iterator[tuple[int, int | str, list[dict]]],
    on_error: str,
    update: Callable[[int], Any],
) -> None:
    """Compute a shard and write it whole or not at all; of a process that is killed nothing has its name."""
    schema, sink = features.arrow_schema, io.BytesIO()
    rows, skipped, num_images = [], [], 0
    with pq.ParquetWriter(sink, schema) as writer:
        for number, image_id, maps in results:
            update(1)
            if "error" in maps[0]:
                if on_error == "raise":
                    raise ValueError(
                        f"image {image_id!r} (row {number} of the dataset) has no map: {maps[0]['error']} Pass "
                        "on_error='skip' to leave out what cannot be read."
                    )
                skipped.append({"image_id": image_id, "row": number, "error": maps[0]["error"]})
                continue
            num_images += 1
            rows += [{**row, "image_id": image_id, "saliency": {"bytes": row["saliency"]}} for row in maps]
            if len(rows) >= _ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:  # `datasets` cannot read an empty row group, but a shard without any is fine
            writer.write_table(pa.Table.from_pylist(rows, schema))
        report = {"num_images": num_images, "skipped": skipped}
        writer.add_key_value_metadata({_REPORT_KEY: json.dumps(report).encode()})
    try:
        write_atomically(path, sink.getbuffer())
    except OSError as error:
        raise OSError(
            f"shard {str(path)!r} could not be written ({error.strerror or error}): the shards that are there are "
            "whole, so make room and start again to go on."
        ) from error


def _report(output_dir: Path) -> dict[str, Any]:
    """Count what all the shards hold, from their footers, and write it beside them."""
    skipped, images, rows = [], 0, 0
    paths = sorted((output_dir / "data").glob("*.parquet"))
    for path in paths:
        with pq.ParquetFile(path) as shard:
            rows += shard.metadata.num_rows
            own = json.loads(shard.metadata.metadata[_REPORT_KEY])
            images += own["num_images"]
            skipped += own["skipped"]
    report = {"num_images": images, "num_rows": rows, "num_shards": len(paths), "skipped": skipped}
    write_atomically(output_dir / REPORT_FILE, (json.dumps(report, indent=2) + "\n").encode())
    return report
