"""`SaliencyEvaluator`: an explainer, a data set and metrics in; numbers with their protocol and their cost out."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import evaluate
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_explain.evaluation.explainer import Explainer, PassCounter, resolve_explainer
from hf_explain.evaluation.inputs import Example, ExampleReader
from hf_explain.io.files import check_writable, lock_directory, write_atomically
from hf_explain.io.processes import launched_processes, on_first_process, package_versions
from hf_explain.metrics import path as metric_path
from hf_explain.tensors.scalars import check_choice, check_count


TARGETS = ("prediction", "label")
SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"
_FORMAT = 1  # of the shard files; a change of what they hold must not be mixed with older ones


class SaliencyEvaluator:
    """
    Measures how faithful the maps of a head or of a training-free method are, on a data set.

    Maps come from the model directly, at their own resolution, and the classifier's logits of the same pass are the
    metrics' reference: nothing is computed twice. Every random draw depends on the seed and the index of the image, so
    that neither the batch size nor the number of processes changes a number.

    Example:

    ```python
    >>> from hf_explain import SaliencyEvaluator
    >>> result = SaliencyEvaluator().compute(
    ...     model_or_pipeline="me/lcam-resnet-50", data=dataset, metric=["auc_d", "average_drop"]
    ... )
    >>> result["auc_d"]["auc_d"], result["auc_d"]["protocol"], result["forward_passes_per_image"]
    ```
    """

    def __init__(self, task: str = "saliency", default_metric_name: str = "auc_d"):
        if task != "saliency":
            raise ValueError(f"`task` {task!r} is not this evaluator's; it has 'saliency' alone.")
        self.task, self.default_metric_name = task, default_metric_name

    def compute(
        self,
        model_or_pipeline=None,
        data=None,
        metric: str | evaluate.EvaluationModule | Sequence | None = None,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        mask_column: str | None = None,
        target: str = "prediction",
        method: str | None = None,
        method_options: Mapping[str, Any] | None = None,
        presets: Mapping[str, str] | None = None,
        metric_options: Mapping[str, Mapping[str, Any]] | None = None,
        batch_size: int = 8,
        max_examples: int | None = None,
        seed: int = 0,
        device: str | int | torch.device | None = None,
        output_dir: str | os.PathLike | None = None,
        shard_size: int = 64,
        dataset_info: Mapping[str, Any] | None = None,
        return_columns: bool = False,
        progress: bool = True,
    ) -> dict[str, Any]:
        """
        Explain every image and measure every map.

        Under `torchrun` or `accelerate launch` the images are split by index; all processes get the whole result.

        Args:
            model_or_pipeline (`str`, [`SaliencyPipeline`], [`ExplainerPreTrainedModel`], [`FrozenClassifier`] or
                `torch.nn.Module`): What explains.
            data: `datasets` data set, map-style or streaming, or a sequence of dictionaries.
            metric (`str`, metric or a list of them, *optional*, defaults to `"auc_d"`): Names of `hf_explain.metrics`,
                or what `evaluate.load` made of them.
            image_column, label_column (`str`, *optional*): Columns; found by their types where not given.
            mask_column (`str`, *optional*): Masks of the object, as large as the image, for `pointing`.
            target (`str`, *optional*, defaults to `"prediction"`): The class explained: the classifier's top-1 or,
                with `"label"`, the true one.
            method (`str`, *optional*): A training-free method instead of the head.
            method_options (`dict`, *optional*): Its options.
            presets (`dict[str, str]`, *optional*): Preset by metric.
            metric_options (`dict[str, dict]`, *optional*): Settings by metric that replace the preset's.
            batch_size (`int`, *optional*, defaults to 8): Images per pass.
            max_examples (`int`, *optional*): Only the first so many images.
            seed (`int`, *optional*, defaults to 0): Of everything random.
            device (*optional*): Where a model given by name is put.
            output_dir (`str` or `os.PathLike`, *optional*): Folder for partial results: a run that was killed
                continues there with the same call.
            shard_size (`int`, *optional*, defaults to 64): Images per partial result.
            dataset_info (`dict`, *optional*): Name, split, revision and the like, for the result.
            return_columns (`bool`, *optional*, defaults to `False`): Adds `columns`: every metric's columns, and
                `image_ids`, `target` and `prediction`, one entry per image.
            progress (`bool`, *optional*, defaults to `True`): Shows a bar.

        Returns:
            `dict`: for every metric its result with `protocol`, `seconds_per_image` and `forward_passes_per_image`;
            `num_images`; `seconds_per_image`, `forward_passes_per_image` and `tail_passes_per_image` of explaining
            alone (a tail pass enters the classifier at an inner layer); `explainer`, `dataset`, `settings`,
            `versions`.

        Raises:
            ValueError: If an argument cannot work, an image cannot be used, or `output_dir` holds another evaluation.
            TypeError: If an argument is of another type.
            OSError: If `output_dir` cannot be written to, or another run is using it.
        """
        if model_or_pipeline is None or data is None:
            raise ValueError("`model_or_pipeline` and `data` are both needed.")
        check_choice(target, "target", TARGETS)
        check_count(batch_size, "batch_size")
        check_count(shard_size, "shard_size")
        rank, world, own_device = launched_processes()
        # not `or`: a metric that has collected nothing yet has length 0
        metrics = _load_metrics(self.default_metric_name if metric is None else metric, presets or {})
        options = _metric_options(metrics, metric_options or {}, seed)
        if mask_column is None and (names := [name for name, one in metrics.items() if "masks" in one.inputs]):
            raise ValueError(f"metric {names[0]!r} needs masks of the object; name their column with `mask_column`.")
        stated = {name: {**one.presets[one.config_name], **options[name]} for name, one in metrics.items()}
        need_labels = target == "label" or label_column is not None
        need_labels = need_labels or any(settings.get("score") == "accuracy" for settings in stated.values())
        explainer = resolve_explainer(
            model_or_pipeline, method, method_options, seed, own_device if device is None else device
        )
        reader = ExampleReader(data, explainer, image_column, label_column, mask_column, need_labels, max_examples)
        settings = _jsonable(
            {
                "format": _FORMAT,
                "seed": seed,
                "explainer": explainer.identity,
                "dataset": {**reader.identity, **(dataset_info or {})},
                "columns": [reader.image_column, reader.label_column, reader.mask_column],
                "metrics": {
                    name: {"preset": one.config_name, "options": options[name]} for name, one in metrics.items()
                },
                "target": target,
                "max_examples": max_examples,
                "shard_size": shard_size,
            }
        )
        folder = None if output_dir is None else Path(output_dir)
        with contextlib.ExitStack() as held:
            if folder is not None:
                on_first_process(rank, world, lambda: _claim(folder, settings, held))
            elif reader.total is not None:
                # nothing to resume: then the split may follow the processes
                shard_size = max(1, min(shard_size, -(-reader.total // world)))

            bar = tqdm(
                total=reader.total if world == 1 else None,
                unit="image",
                desc=explainer.identity["explainer"],
                disable=not progress or rank != 0,
            )
            records: list[dict[str, Any]] = []
            failure: Exception | None = None
            with bar:
                try:
                    finished = _finished(folder)
                    bar.update(sum(record["num_images"] for record in finished.values()))

                    def wanted(shard: int) -> bool:
                        return shard % world == rank and shard not in finished

                    for shard, rows in reader.shards(shard_size, wanted):
                        record = self._measure_shard(
                            reader, rows, explainer, metrics, options, target, batch_size, bar
                        )
                        record["shard"] = shard
                        if folder is not None:
                            write_atomically(_shard_file(folder, shard), json.dumps(record).encode())
                        records.append(record)
                except Exception as error:
                    if world == 1:
                        _give_back(folder)
                        raise
                    failure = error  # the others wait below: they must learn of it
            if world > 1:
                failures = gather_object([None if failure is None else f"{type(failure).__name__}: {failure}"])
                if any(failures) and rank == 0:
                    _give_back(folder)
                if failure is not None:
                    raise failure
                if any(failures):
                    other = next(place for place, message in enumerate(failures) if message)
                    raise RuntimeError(f"The evaluation failed on process {other}: {failures[other]}")
                records = gather_object(records)
            # by number: a process may have seen partial results that another one had just written
            merged = {**finished, **{record["shard"]: record for record in records}}
            result = on_first_process(
                rank,
                world,
                lambda: self._summarize(list(merged.values()), metrics, settings, explainer, reader, folder),
            )
        columns = result.pop("columns")
        return {**result, "columns": columns} if return_columns else result

    # ------------------------------------------------------------------------------------------------------ measuring

    def _measure_shard(
        self,
        reader: ExampleReader,
        rows: list,
        explainer: Explainer,
        metrics: dict[str, Any],
        options: dict[str, dict[str, Any]],
        target: str,
        batch_size: int,
        bar: tqdm,
    ) -> dict[str, Any]:
        columns: dict[str, dict[int, Any]] = {}
        cost = {name: [0.0, 0, 0] for name in ("explain", *metrics)}  # seconds, full passes, tail passes
        for start in range(0, len(rows), batch_size):
            examples = [reader.read(index, row) for index, row in rows[start : start + batch_size]]
            # an image processor may leave images of different sizes; those of one size go together
            sizes: dict[tuple[int, ...], list[Example]] = {}
            for example in examples:
                sizes.setdefault(tuple(example.pixel_values.shape), []).append(example)
            for batch in sizes.values():
                found = self._measure_batch(batch, explainer, metrics, options, target, cost)
                for name, entries in found.items():
                    columns.setdefault(name, {}).update(
                        (example.index, entry) for example, entry in zip(batch, entries, strict=True)
                    )
                bar.update(len(batch))
        indices = [index for index, _ in rows]
        return {
            "num_images": len(rows),
            "start": indices[0],
            "columns": {name: [entries[index] for index in indices] for name, entries in columns.items()},
            "protocols": {name: _jsonable(metric.protocol) for name, metric in metrics.items()},
            "cost": cost,
        }

    def _measure_batch(self, batch, explainer, metrics, options, target, cost) -> dict[str, list]:
        classifier = explainer.classifier
        pixel_values = torch.stack([example.pixel_values for example in batch])
        pixel_values = pixel_values.to(device=classifier.device, dtype=classifier.dtype)
        ids = torch.tensor([example.index for example in batch])
        labels = masks = None
        if batch[0].label is not None:
            labels = torch.tensor([example.label for example in batch], device=classifier.device)
        if batch[0].mask is not None:
            masks = torch.stack([example.mask for example in batch]).to(classifier.device)
        with _cost(cost["explain"], classifier):
            output = explainer.explain(pixel_values, labels if target == "label" else None, ids)
        found = {
            "image_ids": ids.tolist(),
            "target": output.target.tolist(),
            "prediction": output.logits.argmax(-1).tolist(),
        }
        if labels is not None:
            found["label"] = labels.tolist()
        for name, metric in metrics.items():
            with _cost(cost[name], classifier):
                measured = metric.measure(
                    classifier,
                    pixel_values,
                    output.saliency,
                    target=output.target,
                    labels=labels,
                    logits=output.logits,
                    image_ids=ids,
                    image_mean=classifier.image_mean,
                    image_std=classifier.image_std,
                    masks=masks,
                    **options[name],
                )
            found.update({f"{name}/{column}": entries for column, entries in measured.items()})
        return found

    # ------------------------------------------------------------------------------------------------------ the result

    def _summarize(self, records, metrics, settings, explainer, reader, folder) -> dict[str, Any]:
        records = sorted(records, key=lambda record: record["start"])
        if not records:
            raise ValueError("`data` is empty: an evaluation needs at least one image.")
        position = 0
        for record in records:
            if record["start"] != position:
                raise ValueError(
                    f"The partial results hold image {record['start']} where image {position} is due; delete "
                    "`output_dir` and evaluate anew."
                )
            position += record["num_images"]
        columns = {
            name: [entry for record in records for entry in record["columns"][name]] for name in records[0]["columns"]
        }
        result: dict[str, Any] = {}
        for name, metric in metrics.items():
            protocol = records[0]["protocols"][name]
            for record in records:
                if record["protocols"][name] != protocol:
                    raise ValueError(
                        f"metric {name!r} was measured in two ways, {protocol} and {record['protocols'][name]}: use "
                        "an image processor that brings all images to one size."
                    )
            own = {key.split("/", 1)[1]: entries for key, entries in columns.items() if key.startswith(f"{name}/")}
            result[name] = metric.compute(protocol={**protocol, "explained": settings["target"]}, **own)
            result[name]["seconds_per_image"] = _per_image(records, name, 0, position)
            result[name]["forward_passes_per_image"] = _per_image(records, name, 1, position)
        result |= {
            "num_images": position,
            "seconds_per_image": _per_image(records, "explain", 0, position),
            "forward_passes_per_image": _per_image(records, "explain", 1, position),
            "tail_passes_per_image": _per_image(records, "explain", 2, position),
            "explainer": settings["explainer"],
            "dataset": settings["dataset"],
            "settings": settings,
            "versions": {**package_versions(), "evaluate": metadata.version("evaluate")},
            "device": explainer.classifier.device.type,
        }
        if folder is not None:
            write_atomically(folder / RESULT_FILE, (json.dumps(result, indent=2) + "\n").encode())
        return {**result, "columns": columns}


# -------------------------------------------------------------------------------------------------------------- pieces


def _load_metrics(metric, presets: Mapping[str, str]) -> dict[str, Any]:
    wanted = [metric] if isinstance(metric, str) or not isinstance(metric, Sequence) else list(metric)
    if not wanted:
        raise ValueError("`metric` is an empty list; give at least one, such as 'auc_d'.")
    loaded: dict[str, Any] = {}
    for one in wanted:
        if isinstance(one, str):
            # its own experiment: evaluate locks a file per name, and processes must not wait for one another
            one = evaluate.load(metric_path(one), presets.get(one), experiment_id=f"{os.getpid()}-{time.time_ns()}")
        if not callable(getattr(one, "measure", None)):
            raise TypeError(
                f"`metric` must be names or modules of hf_explain.metrics, which can `measure`, got "
                f"{type(one).__name__}."
            )
        if one.metric_name in loaded:
            raise ValueError(f"`metric` names {one.metric_name!r} twice.")
        if one.metric_name == "win_rate":
            raise ValueError("metric 'win_rate' compares two explainers: ask `hf-explain evaluate` for it.")
        loaded[one.metric_name] = one
    for name in presets:
        if name not in loaded:
            raise ValueError(f"`presets` names {name!r}, which is not among the metrics: {', '.join(loaded)}.")
    return loaded


def _metric_options(metrics, given: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, dict[str, Any]]:
    for name in given:
        if name not in metrics:
            raise ValueError(f"`metric_options` names {name!r}, which is not among the metrics: {', '.join(metrics)}.")
    options = {}
    for name, metric in metrics.items():
        options[name] = dict(given.get(name, {}))
        if seed and "seed" in metric.options:
            options[name].setdefault("seed", seed)
    return options


@contextlib.contextmanager
def _cost(entry: list, classifier):
    counter = PassCounter(classifier)
    _synchronize(classifier.device)
    start = time.perf_counter()
    with counter:
        yield
    _synchronize(classifier.device)
    entry[0] += time.perf_counter() - start
    entry[1] += counter.full
    entry[2] += counter.tail


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":  # kernels run on after Python has gone on
        torch.cuda.synchronize(device)


def _per_image(records, name: str, place: int, num_images: int) -> float:
    return sum(record["cost"][name][place] for record in records) / num_images


def _jsonable(value):
    """As JSON gives it back, so that settings read from a file compare equal."""
    return json.loads(json.dumps(value, default=str))


def _claim(folder: Path, settings: dict[str, Any], held: contextlib.ExitStack) -> None:
    """Make `folder` this evaluation's, or see that it already is; no other run works there until `held` is closed."""
    held.enter_context(lock_directory(folder))
    check_writable(folder)
    file = folder / SETTINGS_FILE
    if not file.is_file():
        write_atomically(file, (json.dumps(settings, indent=2) + "\n").encode())
        return
    known = json.loads(file.read_text())
    if known != settings:
        name = next(name for name in {**known, **settings} if known.get(name) != settings.get(name))
        raise ValueError(
            f"output_dir {str(folder)!r} holds an evaluation with {name}={known.get(name)!r}, this one has "
            f"{settings.get(name)!r}: choose another output_dir, or delete that one."
        )


def _give_back(folder: Path | None) -> None:
    """After an error: a folder that nothing was measured into is nobody's, and free for the corrected call."""
    if folder is not None and not any(folder.glob("shard-*.json")):
        (folder / SETTINGS_FILE).unlink(missing_ok=True)


def _shard_file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:06d}.json"


def _finished(folder: Path | None) -> dict[int, dict[str, Any]]:
    """The partial results of an earlier run."""
    if folder is None:
        return {}
    found = {}
    for file in sorted(folder.glob("shard-*.json")):
        try:
            record = json.loads(file.read_text())
            found[int(record["shard"])] = record
        except (ValueError, KeyError) as error:
            raise ValueError(f"The partial result {str(file)!r} is damaged; delete it to measure it again.") from error
    return found
