"""
`hf-explain export` and `scripts/export_saliency.py`: the saliency maps of a whole data set, as sharded parquet.

The images, in the order of the data set, are cut into shards of `shard_size`. A shard is computed by one process,
in batches that never cross its ends, and gets its name only when it is whole. So neither the number of processes nor
an interruption shows in what is written, and a run that was killed goes on with the shards that are missing.

A shard's footer has two checksums: of the rows it was made of, so that it is not mixed with those of other data, and
of the file itself, so that damage is noticed. Shards of version 0.1 have none; they are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm

from hf_explain.apps.arguments import ExportArguments, ExportCommand
from hf_explain.apps.command_line import part_of
from hf_explain.apps.export_inputs import (
    ExportChunk,
    ExportRows,
    ExportSource,
    id_feature,
)
from hf_explain.classifiers.fingerprint import fingerprint
from hf_explain.classifiers.precision import Precision
from hf_explain.io.datasets import LabelReader
from hf_explain.io.files import (
    LOCK_FILE,
    check_writable,
    lock_directory,
    read_json_file,
    remove_leftovers,
    write_atomically,
    write_json_file,
)
from hf_explain.io.paths import output_folder, public_name
from hf_explain.io.processes import check_launched, on_main_process, package_versions, wants_cpu
from hf_explain.pipeline import SaliencyPipeline, load_pipeline
from hf_explain.registry import default_method, resolve_method


SETTINGS_FILE = "export_settings.json"
REPORT_FILE = "export_report.json"
_REPORT_KEY = b"hf_explain"  # in each shard's own footer, so that a shard and its report appear as one
_NO_CHECKSUM = "0" * 64  # in the place of a shard's own checksum, while that is computed
_LOOKED_AT = 16  # images by which `dtype="auto"` decides: the same ones whatever the batch size
_ROW_GROUP = 100  # rows: what the Hub's viewer likes for images, and a bound on memory


def run(arguments: ExportCommand) -> dict[str, Any]:
    r"""
    Export as a command line asks for.

    Args:
        arguments ([`ExportCommand`]): What to export and where to.

    Returns:
        `dict[str, Any]`: As [`export_saliency`].
    """
    report = export_saliency(arguments.output_dir, part_of(arguments, ExportArguments))
    if int(os.environ.get("RANK", 0)) == 0:
        print(
            f"{arguments.output_dir}: {report['num_rows']} maps of {report['num_images']} images in "
            f"{report['num_shards']} shards, {len(report['skipped'])} images skipped; it is a folder of "
            f"parquet files, which datasets.load_dataset({str(arguments.output_dir)!r}) reads"
        )
    return report


def export_saliency(output_dir: str | os.PathLike, args: ExportArguments) -> dict[str, Any]:
    r"""
    Write the saliency maps of a data set as parquet files that `datasets.load_dataset(output_dir)` reads.

    Columns: `image_id` (`int64` or `string`), `target` (`ClassLabel` with the classifier's names), `score` (`float32`,
    the classifier's probability of the target), `saliency` (`datasets.Image`: PNG in mode L, of the original image's
    size). Under `torchrun` or `accelerate launch` the shards are divided among the processes. Called again with the
    same settings, it writes the shards that are missing, after it has seen that those that are there are whole and of
    the same data: it reads both once.

    Args:
        output_dir (`str` or `os.PathLike`): A new directory, or that of the same export.
        args ([`ExportArguments`]): What to explain and how.

    Returns:
        `dict[str, Any]`: What it also writes to `export_report.json`: `num_images`, `num_rows`, `num_shards` and
        `skipped`, a list of `{"image_id", "row", "error"}`.

    Raises:
        FileExistsError: If `output_dir` holds something else, or an export with other settings or of other data.
        OSError: If the model or the data set cannot be found or read, or the output not be written, or another run is
            writing there.
        ValueError: If a column is missing, an image or label is unusable, a shard that is there is damaged, or a
            setting cannot work.
    """
    output_dir = output_folder(output_dir)
    if args.method is not None:
        resolve_method(args.method)
    accelerator = Accelerator(
        cpu=wants_cpu(args.device),
        # processes wait for the slowest one at the end, which may have a shard more to do
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )
    check_launched(accelerator)
    with accelerator.local_main_process_first():
        source = ExportSource.load(args)
        pipe = load_pipeline(
            args.model,
            revision=args.revision,
            device=accelerator.device,
            trust_remote_code=args.trust_remote_code,
            **args.classes,
            pipeline_class=_ExportPipeline,
        )
    pipe.classifier.check_texts()
    read_label = None
    if source.label_column is not None:
        read_label = LabelReader(source.features.get(source.label_column), pipe.classifier.config)
    features = _features(pipe, source)
    # one for all shards, and for all processes: another machine may differ, and a run that goes on begins elsewhere
    pipe.precision = on_main_process(accelerator, lambda: _choose_precision(pipe, source, args))
    with contextlib.ExitStack() as held:

        def claim() -> dict[str, str | None]:
            held.enter_context(lock_directory(output_dir))
            return _prepare(output_dir, args, source, pipe)

        done = on_main_process(accelerator, claim)
        known = {name: checksum for name, checksum in done.items() if checksum is not None}
        mine = source.chunks(args, done, accelerator.process_index, accelerator.num_processes, known)
        total = None if source.streaming else sum(chunk.num_images for chunk in mine)
        quiet = not args.progress or not accelerator.is_main_process
        of = f" (process 1 of {accelerator.num_processes})" if accelerator.num_processes > 1 else ""
        with tqdm(total=total, unit="image", desc=f"export{of}", disable=quiet) as bar:
            for chunk in mine:
                results = _explain(pipe, chunk, source, args, read_label)
                _write_shard(output_dir / "data", chunk, features, results, args.on_error, bar.update)
        accelerator.wait_for_everyone()
        return on_main_process(accelerator, lambda: _report(output_dir, pipe.stated_precision(args.method)))


# ---------------------------------------------------------------------------------------------------------- the maps


class _ExportPipeline(SaliencyPipeline):
    """The pipeline, giving class indices and encoded maps."""

    def postprocess(  # type: ignore[override]  # takes no parameters
        self, model_outputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        results = super().postprocess(model_outputs)
        if "error" in results[0]:
            return results
        targets = model_outputs["target"][0].tolist()
        return [
            {"target": index, "score": result["score"], "saliency": _png(result["saliency"])}
            for index, result in zip(targets, results, strict=True)
        ]


def _choose_precision(pipe: SaliencyPipeline, source: ExportSource, args: ExportArguments) -> Precision:
    """The precision of the whole export, by its first images that can be read."""

    def images() -> Iterator[torch.Tensor]:
        rows = itertools.islice(source.dataset, _LOOKED_AT)
        inputs = (pipe.preprocess(row[source.image_column], on_error="return") for row in rows)
        found = [one["pixel_values"] for one in inputs if not one["error"]]
        if not found:
            raise ValueError(
                f"none of the first {_LOOKED_AT} images of the dataset can be read, so dtype='auto' cannot decide: "
                "give 'float32' or 'bfloat16'."
            )
        alike = [one for one in found if one.shape == found[0].shape]
        return iter(torch.cat(alike).split(args.batch_size))

    precision = Precision(args.dtype)
    precision.choose(pipe.classifier, images)
    return precision


def _features(pipe: SaliencyPipeline, source: ExportSource) -> datasets.Features:
    names = [str(pipe.classifier.id2label[index]) for index in range(pipe.classifier.num_labels)]
    # ImageNet has two cranes; a ClassLabel wants each name once
    names = [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]
    identity = datasets.Value("int64") if source.id_column is None else id_feature(source.id_column, source.features)
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
    pipe: SaliencyPipeline,
    chunk: ExportChunk,
    source: ExportSource,
    args: ExportArguments,
    read_label: LabelReader | None,
) -> Iterator[tuple[int, int | str, list[dict]]]:
    """Row, image id and results of each image of a shard, in order; memory for one batch of images."""
    identities = []

    def identify(row: dict, number: int) -> int | None:
        """Note whose result comes next, and return the class to explain."""
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
        for _ in source.read(chunk.rows, chunk.checksum):
            pass
        others = [name for name in chunk.rows.column_names if name != source.image_column]
        light = chunk.rows.select_columns(others) if others else itertools.repeat({}, len(chunk.rows))
        targets = [identify(row, number) for number, row in enumerate(light, chunk.first_row)]
        inputs = ExportRows(chunk.rows, source.image_column, targets)
    options = {name: getattr(args, name) for name in ("method", "dtype", "batch_size", "num_workers")}
    if args.target == "prediction":
        options["top_k"] = args.top_k
    results = pipe(inputs, on_error="return", **options)
    # results first: in a stream an image is identified when the pipeline asks for it
    for result, (number, image_id) in zip(results, identities):
        yield number, image_id, result


# -------------------------------------------------------------------------------------------------------- the files


def _prepare(
    output_dir: Path, args: ExportArguments, source: ExportSource, pipe: SaliencyPipeline
) -> dict[str, str | None]:
    """
    Claim the directory for this export, or check that it is its own; returns the names of the finished shards with
    the checksums of their rows.
    """
    settings = _settings(args, source, pipe)
    check_writable(output_dir)
    remove_leftovers(output_dir, r"(\.write_test|export_settings\.json|export_report\.json)\.tmp")
    if any(path.name != LOCK_FILE for path in output_dir.iterdir()):
        try:
            before = read_json_file(output_dir / SETTINGS_FILE)["settings"]
        except FileNotFoundError:
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds files, but no export: choose a new directory."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{SETTINGS_FILE} in output_dir {str(output_dir)!r} cannot be read ({error}): choose a new directory."
            ) from error
        changed = [name for name in (*settings, *before) if settings.get(name) != before.get(name)]
        if changed and not any((output_dir / "data").glob("*.parquet")):
            (output_dir / SETTINGS_FILE).unlink()  # one that was killed before it wrote a shard binds nobody
        elif changed:
            name = changed[0]
            raise FileExistsError(
                f"output_dir {str(output_dir)!r} holds an export with other settings ({name} is "
                f"{before.get(name)!r} there and {settings.get(name)!r} here): choose another directory, or delete "
                "that one to start anew."
            )
    # the settings come first: without them nobody can tell which export shards belong to
    if not (output_dir / SETTINGS_FILE).exists():
        content = {"settings": settings, "versions": package_versions()}
        write_json_file(output_dir / SETTINGS_FILE, content)
    write_atomically(output_dir / "README.md", _readme(settings, source.split).encode())
    check_writable(output_dir / "data")
    remove_leftovers(output_dir / "data", rf"(\.write_test|{re.escape(source.split)}-\d{{6}}\.parquet)\.tmp")
    return {path.name: _read_shard(path)[0].get("rows_sha256") for path in (output_dir / "data").glob("*.parquet")}


def _settings(args: ExportArguments, source: ExportSource, pipe: SaliencyPipeline) -> dict[str, Any]:
    """What decides which maps are written; batch_size, num_workers and on_error may change from run to run."""
    weights = fingerprint(pipe.classifier.model)
    if pipe.head is not None:
        weights += fingerprint(pipe.head)
    method: str | None = args.method
    options: dict[str, Any] = {}
    if method is None:
        method, options = default_method(pipe.classifier) if pipe.head is None else (pipe.head.config.model_type, {})
    names = ("dataset_config", "dataset_revision", "split", "target", "top_k", "shard_size", "max_examples")
    return {
        "model": public_name(args.model),
        "revision": args.revision,
        "weights": weights,
        "dataset": public_name(args.dataset),
        **{name: getattr(args, name) for name in names},
        "method": method,
        **({"method_options": options} if options else {}),
        **args.classes,
        **pipe.precision.settings(pipe.classifier, pipe.allows_bfloat16(args.method)),
        "streaming": source.streaming,
        "image_column": source.image_column,
        "label_column": source.label_column,
        "id_column": source.id_column,
        "num_examples": None if source.streaming else len(source.dataset),
        "first_image": source.first_image(),
    }


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
    directory: Path,
    chunk: ExportChunk,
    features: datasets.Features,
    results: Iterator[tuple[int, int | str, list[dict]]],
    on_error: str,
    update: Callable[[int], Any],
) -> None:
    """Compute a shard and write it whole or not at all: a killed process leaves no file of that name."""
    schema, sink, path = features.arrow_schema, io.BytesIO(), directory / chunk.name
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
        # `results` are at their end, so all the rows were read
        checksums = {"rows_sha256": chunk.checksum.hexdigest(), "sha256": _NO_CHECKSUM}
        report = {"num_images": num_images, "skipped": skipped, **checksums}
        writer.add_key_value_metadata({_REPORT_KEY: json.dumps(report).encode()})
    content = sink.getvalue()
    content = _replace_last(content, _NO_CHECKSUM, hashlib.sha256(content).hexdigest())
    try:
        write_atomically(path, content)
    except OSError as error:
        raise OSError(
            f"shard {str(path)!r} could not be written ({error.strerror or error}): the shards that are there are "
            "whole, so make room and start again to go on."
        ) from error


def _replace_last(content: bytes, old: str, new: str) -> bytes:
    """A shard with another checksum in its place, which is at the end; the two are of one length."""
    at = content.rindex(old.encode())
    return content[:at] + new.encode() + content[at + len(old) :]


def _read_shard(path: Path) -> tuple[dict[str, Any], int]:
    """
    What a shard says of itself, and the number of its rows.

    Raises:
        ValueError: If it is damaged; the message names it.
    """
    content = path.read_bytes()
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as shard:
            num_rows = shard.metadata.num_rows
            metadata = shard.metadata.metadata or {}
        if _REPORT_KEY not in metadata:
            raise ValueError("it is not a shard of an export")
        own = json.loads(metadata[_REPORT_KEY])
        checksum = own.get("sha256")
        if checksum and hashlib.sha256(_replace_last(content, checksum, _NO_CHECKSUM)).hexdigest() != checksum:
            raise ValueError("it does not match its checksum")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = "it is empty" if not content else str(error).split("\n")[0].rstrip(".")
        raise ValueError(
            f"shard {str(path)!r} is damaged ({reason}): delete it and start again, and it is written anew."
        ) from error
    return own, num_rows


def _report(output_dir: Path, precision: dict[str, Any]) -> dict[str, Any]:
    """Count what all the shards hold, see that they are whole, and write it beside them."""
    skipped, images, rows = [], 0, 0
    paths = sorted((output_dir / "data").glob("*.parquet"))
    for path in paths:
        own, num_rows = _read_shard(path)
        rows += num_rows
        images += own["num_images"]
        skipped += own["skipped"]
    report = {"num_images": images, "num_rows": rows, "num_shards": len(paths), "skipped": skipped, **precision}
    write_json_file(output_dir / REPORT_FILE, report)
    return report
