"""Several explainers measured in one sweep over the data; what is finished is kept, and counted where it is shared."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.passes import Stopwatch, shared_pass
from hf_explain.classifiers.precision import Precision
from hf_explain.evaluation.arguments import EvaluationArguments
from hf_explain.evaluation.explainer import Explainer, PassCounter
from hf_explain.evaluation.inputs import Example, ExampleReader, choose_precision
from hf_explain.evaluation.partial_results import check_rows, claim, give_back, read_shards, write_shard
from hf_explain.evaluation.results import EvaluationResult, ExplainerResult, MetricResult
from hf_explain.io.files import write_json_file
from hf_explain.io.processes import launched_processes, on_first_process, package_versions
from hf_explain.metrics.module import ColumnMetric
from hf_explain.metrics.photographs import Photographs
from hf_explain.tensors.checks import checks_together
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.sharing import sharing


RESULT_FILE = "result.json"
_NUM_PHOTOGRAPHS = 256  # of the data set that metrics may choose others from, and read at most to find as many
_MOST_READ, _NUM_READ = 2048, 64
_FORMAT = 1  # of the shard files; raised when their content changes, so that old and new ones are never mixed


@dataclass
class LoadedMetric:
    """A module of `hf_explain.metrics`, and the settings that replace its preset's."""

    module: Any
    options: dict[str, Any]

    @property
    def photos(self) -> float | None:
        """How sure the classifier must be of the other photographs it is measured with; `None` if with none."""
        needed = getattr(self.module, "photos_needed", None)
        return None if needed is None else needed(self.options)

    @property
    def allows_bfloat16(self) -> bool:
        return getattr(self.module, "allows_bfloat16", False)


# what came of an explainer: its result, with every metric's columns; or the error that it ended with
Outcome = tuple[EvaluationResult, dict[str, list]] | Exception


def evaluate_all(
    explainers: Mapping[str, tuple[Explainer, Mapping[str, LoadedMetric], EvaluationArguments]],
    data,
    essential: Collection[str] = (),
    report: Callable[[str, Exception], None] = lambda name, error: None,
) -> dict[str, Outcome]:
    """
    Measure several explainers in one sweep over the data: every image is read once, and what several explainers or
    metrics need of it is made once. No number depends on who else is in the sweep.

    Args:
        explainers (`dict`): By name an explainer, its metrics and its settings, which may differ from the others'
            in `max_examples` and `output_dir` alone.
        data: As for [`SaliencyEvaluator.compute`].
        essential (collection of `str`, *optional*): Names of those whose failure ends the sweep.
        report (`Callable`, *optional*): Told the name and the error of any other one that fails.

    Returns:
        `dict`: By name the [`EvaluationResult`] and every metric's columns beside `image_ids`, `target` and
        `prediction`, one entry per image; or the error that it ended with.

    Raises:
        ValueError, TypeError, OSError: As for [`SaliencyEvaluator.compute`], of those that are essential.
    """
    rank, world, _ = launched_processes()
    outcomes: dict[str, Outcome] = {}

    def fail(name: str, error: Exception) -> None:
        if name in essential:
            raise error
        outcomes[name] = error
        report(name, error)

    # what any of them was trained with, so that all are compared by the same fills
    seen_fills = sorted({fill for explainer, _, _ in explainers.values() for fill in _seen_fills(explainer)})
    photos: dict[Any, Photographs] = {}
    with contextlib.ExitStack() as held:
        runs: dict[str, _Run] = {}
        chosen: dict[tuple[int, int], Precision] = {}
        for name, (explainer, metrics, arguments) in explainers.items():
            try:
                _check_target(explainer, metrics, arguments)
                reader = _read(data, explainer, metrics, arguments)
                looked_at = id(explainer.classifier), id(explainer.image_processor)
                if looked_at not in chosen:
                    settings = arguments.dtype, explainer, reader, arguments.batch_size
                    # one for all processes: another machine may differ
                    chosen[looked_at] = on_first_process(rank, world, functools.partial(choose_precision, *settings))
                task = _Task(explainer, reader, metrics, arguments, chosen[looked_at], seen_fills, photos)
                runs[name] = _Run.start(task, rank, world, held)
            except Exception as error:
                fail(name, error)
        if runs:
            _sweep(runs, rank, world, essential, fail)
        for name, run in runs.items():
            if name not in outcomes:
                try:
                    outcomes[name] = run.finish(rank, world)
                except Exception as error:
                    fail(name, error)
    return outcomes


# ---------------------------------------------------------------------------------------------------------- measuring


def _sweep(
    runs: Mapping[str, _Run],
    rank: int,
    world: int,
    essential: Collection[str],
    fail: Callable[[str, Exception], None],
) -> None:
    """Measure this process' shards for every run that lacks them."""
    longest = max(runs.values(), key=lambda run: run.limit)
    for run in runs.values():  # without a folder each has a size of its own, and shards are read once for all
        run.shard_size = longest.shard_size
    arguments, total = longest.task.arguments, sum(run.task.reader.total or 0 for run in runs.values())
    explained = longest.task.explainer.identity["explainer"] if len(runs) == 1 else f"{len(runs)} explainers"
    bar = tqdm(
        total=(total or None) if world == 1 else None,
        unit="image",
        desc=explained,
        disable=not arguments.progress or rank != 0,
    )

    def wanted(shard: int) -> bool:
        return shard % world == rank and any(run.reads(shard) for run in runs.values())

    def failed(name: str, error: Exception) -> bool:
        """Whether the sweep ends with it: the other processes wait for this one in `finish`, and learn of it."""
        run = runs[name]
        run.failure = error
        if world == 1:
            give_back(run.task.arguments.output_dir)
            fail(name, error)
        return name in essential

    with bar:
        bar.update(sum(record["num_images"] for run in runs.values() for record in run.finished.values()))
        for shard, rows in longest.task.reader.shards(longest.shard_size, wanted):
            current: dict[str, _Shard] = {}
            checksums: dict[Any, str] = {}
            for name, run in runs.items():
                if not run.reads(shard):
                    continue
                try:
                    one = _Shard(run, rows, checksums)
                    if shard in run.finished:
                        run.check(shard, one.checksum)
                    else:
                        current[name] = one
                except Exception as error:
                    if failed(name, error):
                        return
            for start in range(0, len(rows), arguments.batch_size):
                known: dict[Any, list[_Batch]] = {}
                with sharing():
                    for name, one in list(current.items()):
                        try:
                            bar.update(_measure_rows(one, start, known))
                        except Exception as error:
                            if failed(name, error):
                                return
                            del current[name]
            for one in current.values():
                one.close(shard)
        for name, run in runs.items():
            try:
                for shard in sorted(run.unseen if run.failure is None else ()):
                    run.check(shard, "")  # a stream that has become shorter
            except ValueError as error:
                if failed(name, error):
                    return


def _measure_rows(shard: _Shard, start: int, known: dict[Any, list[_Batch]]) -> int:
    """One batch of a shard; `known` holds what was read of it for other explainers. Returns the images in it."""
    task = shard.run.task
    rows = shard.rows[start : start + task.arguments.batch_size]
    key = (*task.read_alike, len(rows))
    if key not in known:
        known[key] = _read_batches(task, rows)
    for batch in known[key]:
        with checks_together():
            measured = _measure_batch(batch, task, shard.cost)
        for name, entries in measured.items():
            shard.columns.setdefault(name, {}).update(
                (example.index, entry) for example, entry in zip(batch.examples, entries, strict=True)
            )
    return len(rows)


def _measure_batch(batch: _Batch, task: _Task, cost: dict[str, _Cost]) -> dict[str, list]:
    classifier = task.explainer.classifier
    pixel_values, ids, labels = batch.pixel_values, batch.ids, batch.labels
    passes = functools.partial(task.precision.passes, classifier)
    original = task.explainer.original or task.explainer
    if id(original) not in batch.explained:  # once for all forms of its maps
        own, asked = _Cost(), labels if task.arguments.target == "label" else None
        if task.arguments.target == "second":
            asked = shared_pass(classifier, "forward", pixel_values).topk(2).indices[:, 1]
        with _cost(own, classifier):
            batch.explained[id(original)] = _explain(task, original, pixel_values, asked, ids), own
    output, own = batch.explained[id(original)]
    output = task.explainer.in_form(output, pixel_values)
    cost["explain"].add(own)
    found = {
        "image_ids": ids.tolist(),
        "target": output.target.tolist(),
        "prediction": output.logits.argmax(-1).tolist(),
    }
    if labels is not None:
        found["label"] = labels.tolist()
    for name, metric in task.metrics.items():
        # given only to those that ask for it: a metric of one's own need not know of it
        confidence = metric.photos
        further: dict[str, Any] = {} if confidence is None else {"photos": _photographs(task, confidence)}
        if "explain" in getattr(metric.module, "inputs", ()):
            further["explain"] = functools.partial(_explain, task, task.explainer)
        with passes(metric.allows_bfloat16), _cost(cost[name], classifier):
            logits = output.logits
            if task.dtype_of(metric) != task.dtype_of(task.explainer):
                logits = shared_pass(classifier, "forward", pixel_values)  # the reference is in the metric's precision
            measured = metric.module.measure(
                classifier,
                pixel_values,
                output.saliency,
                target=output.target,
                labels=labels,
                logits=logits,
                image_ids=ids,
                image_mean=classifier.image_mean,
                image_std=classifier.image_std,
                masks=batch.masks,
                **further,
                **metric.options,
            )
        found.update({f"{name}/{column}": entries for column, entries in measured.items()})
    return found


def _explain(
    task: _Task, explainer: Explainer, pixel_values: torch.Tensor, target: torch.Tensor | None, ids: torch.Tensor
) -> SaliencyOutput:
    """Maps, in the precision in which this explainer is measured."""
    with task.precision.passes(explainer.classifier, explainer.allows_bfloat16):
        return explainer.explain(pixel_values, target, ids)


# --------------------------------------------------------------------------------------------- one explainer's part


@dataclass
class _Task:
    """An explainer, its images, the metrics and the settings."""

    explainer: Explainer
    reader: ExampleReader
    metrics: Mapping[str, LoadedMetric]
    arguments: EvaluationArguments
    precision: Precision
    seen_fills: list[str]
    photos: dict[Any, Photographs]  # of all tasks, once they were needed

    @property
    def read_alike(self) -> tuple[Any, ...]:
        """What must be the same for two tasks to read the same of a row."""
        return id(self.explainer.classifier), id(self.explainer.image_processor), *self.reader.columns

    def dtype_of(self, part: Explainer | LoadedMetric) -> dict[str, Any]:
        """The precision of the explainer or of a metric, for the settings."""
        return self.precision.settings(self.explainer.classifier, part.allows_bfloat16)


@dataclass
class _Run:
    """One explainer's part of a sweep: what is known from before, what is measured now, what went wrong."""

    task: _Task
    settings: dict[str, Any]
    shard_size: int
    finished: dict[int, dict[str, Any]] = field(default_factory=dict)
    unseen: set[int] = field(default_factory=set)  # finished, and not yet seen to be of the rows that are there now
    records: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None

    @classmethod
    def start(cls, task: _Task, rank: int, world: int, held: contextlib.ExitStack) -> _Run:
        """Claim the folder, if there is one, and read what an earlier run left there."""
        folder, reader, shard_size = task.arguments.output_dir, task.reader, task.arguments.shard_size
        if folder is None and reader.total is not None:
            # nothing to resume, so every process may get an equal share
            shard_size = max(1, min(shard_size, -(-reader.total // world)))
        run = cls(task, _settings(task), shard_size)
        if folder is not None:
            on_first_process(rank, world, lambda: claim(folder, run.settings, held))
        try:
            run.finished = read_shards(folder)
            run.unseen = {at for at, one in run.finished.items() if at % world == rank and "rows_sha256" in one}
        except ValueError as error:
            if world == 1:
                give_back(folder)
                raise
            run.failure = error
        return run

    @property
    def limit(self) -> float:
        """How many images there are for it, as far as anybody knows."""
        known = self.task.reader.total if self.task.reader.total is not None else self.task.reader.limit
        return math.inf if known is None else known

    def lacks(self, shard: int) -> bool:
        return self.failure is None and shard not in self.finished and shard * self.shard_size < self.limit

    def reads(self, shard: int) -> bool:
        """Whether the rows of a shard are wanted: to be measured, or to see that they are those of before."""
        return self.lacks(shard) or self.failure is None and shard in self.unseen

    def check(self, shard: int, checksum: str) -> None:
        """A ValueError where a finished shard is not of the rows with this checksum."""
        check_rows(self.task.arguments.output_dir, self.finished[shard], checksum)
        self.unseen.discard(shard)

    def finish(self, rank: int, world: int) -> tuple[EvaluationResult, dict[str, list]]:
        """The result of all records, also those of the other processes; an error of one is raised on all."""
        records = self.records
        if world > 1:
            records = _gather(records, self.failure, rank, self.task.arguments.output_dir)
        # by number: a process may also have read partial results that another one has just written
        whole = list({**self.finished, **{record["shard"]: record for record in records}}.values())
        return on_first_process(rank, world, lambda: _summarize(whole, self.task, self.settings))


class _Shard:
    """A shard of a run while it is measured."""

    def __init__(self, run: _Run, rows: list[tuple[int, Any]], checksums: dict[Any, str]):
        self.run = run
        self.rows = [(index, row) for index, row in rows if index < run.limit]
        reader = run.task.reader
        key = (*reader.columns, len(self.rows))
        if key not in checksums:  # for other runs, of the same rows
            checksums[key] = reader.checksum(self.rows)
        self.checksum = checksums[key]
        self.columns: dict[str, dict[int, Any]] = {}
        self.cost = {name: _Cost() for name in ("explain", *run.task.metrics)}

    def close(self, shard: int) -> None:
        """Keep the record, in the folder, too, where there is one."""
        task, indices = self.run.task, [index for index, _ in self.rows]
        record = {
            "num_images": len(indices),
            "start": indices[0],
            "columns": {name: [entries[index] for index in indices] for name, entries in self.columns.items()},
            "protocols": {name: _jsonable(metric.module.protocol) for name, metric in task.metrics.items()},
            "cost": {name: [cost.seconds, cost.full, cost.tail] for name, cost in self.cost.items()},
            "shard": shard,
            "rows_sha256": self.checksum,
        }
        if task.arguments.output_dir is not None:
            write_shard(task.arguments.output_dir, shard, record)
        self.run.records.append(record)


@dataclass
class _Batch:
    """Examples whose images have one size, as tensors on the classifier's device."""

    examples: list[Example]
    pixel_values: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor | None
    masks: torch.Tensor | None
    # what explainers found, and what that cost, by their id: for those that change the form of the maps alone
    explained: dict[int, tuple[SaliencyOutput, _Cost]] = field(default_factory=dict)


def _read_batches(task: _Task, rows: list[tuple[int, Any]]) -> list[_Batch]:
    """An image processor may leave images of different sizes; those of one size go together."""
    sizes: dict[tuple[int, ...], list[Example]] = {}
    for index, row in rows:
        example = task.reader.read(index, row)
        sizes.setdefault(tuple(example.pixel_values.shape), []).append(example)
    device = task.explainer.classifier.device
    found = []
    for examples in sizes.values():
        labels = [example.label for example in examples if example.label is not None]
        masks = [example.mask for example in examples if example.mask is not None]
        found.append(
            _Batch(
                examples,
                torch.stack([example.pixel_values for example in examples]).to(device, non_blocking=True),
                torch.tensor([example.index for example in examples]),
                torch.tensor(labels).to(device, non_blocking=True) if labels else None,
                torch.stack(masks).to(device, non_blocking=True) if masks else None,
            )
        )
    return found


def _photographs(task: _Task, confidence: float) -> Photographs:
    """
    Photographs from all over the data set, those that the classifier is right about with more than `confidence` where
    that is not 0; the same in every batch, on every process, for every explainer.
    """
    key = (*task.read_alike, confidence)
    if key in task.photos:
        return task.photos[key]
    classifier, shuffled = task.explainer.classifier, task.reader.shuffled(task.arguments.seed)
    kept: list[tuple[Example, torch.Tensor]] = []
    size: Any = None
    for _ in range(0, _MOST_READ, _NUM_READ):
        examples = list(itertools.islice(shuffled, _NUM_READ))
        if not examples or len(kept) >= _NUM_PHOTOGRAPHS:
            break
        size = size or examples[0].pixel_values.shape[-2:]
        for example in examples:
            example.pixel_values = resize_maps(example.pixel_values, size)
        with torch.no_grad():
            images = torch.stack([example.pixel_values for example in examples])
            logits = classifier(images.to(classifier.device)).float().cpu()
        probability, found = logits.softmax(-1).max(-1)
        for place, example in enumerate(examples):
            if not confidence or (found[place] == example.label and probability[place] > confidence):
                kept.append((example, logits[place]))
    if not kept:
        raise ValueError(
            f"The classifier is right about none of the photographs of `data` with a softmax above {confidence:g}: "
            "lower `confidence`."
        )
    labels = [example.label for example, _ in kept if example.label is not None]
    task.photos[key] = Photographs(
        torch.stack([example.pixel_values for example, _ in kept]),
        torch.stack([logits for _, logits in kept]),
        torch.tensor([example.index for example, _ in kept]),
        torch.tensor(labels) if labels else None,
    )
    return task.photos[key]


def _seen_fills(explainer: Explainer) -> list[str]:
    """What the removed pixels became when a head was trained; a method has seen none."""
    return [] if explainer.head is None else getattr(explainer.head.config, "seen_fills", [])


def _stated(metric: LoadedMetric) -> dict[str, Any]:
    """A metric's settings: the preset's and those that replace them."""
    return {**metric.module.presets[metric.module.config_name], **metric.options}


def _check_target(explainer: Explainer, metrics: Mapping[str, LoadedMetric], arguments: EvaluationArguments) -> None:
    """Refuse what says nothing about a map of the second class."""
    if arguments.target != "second":
        return
    if explainer.classifier.num_labels < 2:
        raise ValueError("`target` is 'second', but the classifier has one class; use 'prediction'.")
    for name, metric in metrics.items():
        if (score := _stated(metric).get("score")) in ("agreement", "accuracy"):
            raise ValueError(
                f"`target` is 'second', but {name} asks whether the first class stays (score {score!r}); measure "
                f"probabilities, with --metric_option {name}.score=probability or average_drop, insertion_deletion or "
                "road."
            )


def _read(data, explainer: Explainer, metrics: Mapping[str, LoadedMetric], arguments) -> ExampleReader:
    """The images, with their labels where the target or a metric needs them."""
    stated = [_stated(one) for one in metrics.values()]
    need_labels = arguments.target == "label" or arguments.label_column is not None
    need_labels = need_labels or any(settings.get("score") == "accuracy" for settings in stated)
    need_labels = need_labels or any(getattr(one.module, "needs_labels", False) for one in metrics.values())
    columns = (arguments.image_column, arguments.label_column, arguments.mask_column)
    return ExampleReader(data, explainer, *columns, need_labels, arguments.max_examples, arguments.label_mapping)


def _settings(task: _Task) -> dict[str, Any]:
    """What must be the same for partial results to belong together. A folder of any version is compared with it."""
    reader, arguments = task.reader, task.arguments
    # named where they say anything: folders of before do not have them
    further = {name: getattr(arguments, name) for name in ("label_mapping", "summary_options")}
    return _jsonable(
        {
            "format": _FORMAT,
            "seed": arguments.seed,
            "explainer": {**task.explainer.identity, **task.dtype_of(task.explainer)},
            "dataset": {**reader.identity, **arguments.dataset_info},
            "columns": [reader.image_column, reader.label_column, reader.mask_column],
            "metrics": {
                name: {"preset": metric.module.config_name, "options": metric.options, **task.dtype_of(metric)}
                for name, metric in task.metrics.items()
            },
            "target": arguments.target,
            "max_examples": arguments.max_examples,
            "shard_size": arguments.shard_size,
            **{name: value for name, value in further.items() if value},
        }
    )


# --------------------------------------------------------------------------------------------------- after measuring


def _gather(records: list[dict[str, Any]], failure: Exception | None, rank: int, folder: Path | None) -> list:
    """The records of all processes; an error of one is raised on all."""
    failures = gather_object([None if failure is None else f"{type(failure).__name__}: {failure}"])
    if any(failures) and rank == 0:
        give_back(folder)
    if failure is not None:
        raise failure
    if any(failures):
        other = next(place for place, message in enumerate(failures) if message)
        raise RuntimeError(f"The evaluation failed on process {other}: {failures[other]}")
    return gather_object(records)


def _summarize(records, task: _Task, settings: dict[str, Any]) -> tuple[EvaluationResult, dict[str, list]]:
    """The result of all records, which is written where there is a folder, and the columns behind it."""
    records = sorted(records, key=lambda record: record["start"])
    num_images = _check_whole(records)
    columns = {
        name: [entry for record in records for entry in record["columns"][name]] for name in records[0]["columns"]
    }

    def per_image(name: str, place: int) -> float:
        return sum(record["cost"][name][place] for record in records) / num_images

    metrics = {}
    for name, metric in task.metrics.items():
        protocol = {**_common_protocol(records, name), "explained": task.arguments.target}
        if "fills" in protocol:  # those that the means are taken apart by, and those of this explainer
            protocol |= {"seen_fills": task.seen_fills, "trained_with": _seen_fills(task.explainer)}
        protocol |= task.precision.protocol(task.explainer.classifier, metric.allows_bfloat16)
        own = {key.split("/", 1)[1]: entries for key, entries in columns.items() if key.startswith(f"{name}/")}
        metrics[name] = MetricResult.from_json(
            metric.module.compute(protocol=protocol, **task.arguments.summary_options, **own)
        )
        if isinstance(metric.module, ColumnMetric):  # one's own may know of no further numbers
            further = metric.module.derived(own, protocol)
            columns |= {f"{name}/{key}": values for key, values in further.items()}
        metrics[name].seconds_per_image = per_image(name, 0)
        metrics[name].forward_passes_per_image = per_image(name, 1)
    found = ExplainerResult(
        metrics,
        settings["explainer"],
        num_images,
        seconds_per_image=per_image("explain", 0),
        forward_passes_per_image=per_image("explain", 1),
        tail_passes_per_image=per_image("explain", 2),
    )
    result = EvaluationResult(
        found,
        settings["dataset"],
        settings,
        {**package_versions(), "evaluate": metadata.version("evaluate")},
        task.explainer.classifier.device.type,
    )
    if task.arguments.output_dir is not None:
        write_json_file(task.arguments.output_dir / RESULT_FILE, result.to_json())
    return result, columns


def _check_whole(records: list[dict[str, Any]]) -> int:
    """How many images sorted records hold; a ValueError if one is missing among them."""
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
    return position


def _common_protocol(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """How a metric was measured in all records; a ValueError if in two ways."""
    protocol: dict[str, Any] = {}
    for record in records:
        own = record["protocols"][name]
        # those of an earlier version do not say what could not be chosen then
        if any(protocol[setting] != own[setting] for setting in protocol.keys() & own.keys()):
            raise ValueError(
                f"metric {name!r} was measured in two ways, {protocol} and {own}: use an image processor that brings "
                "all images to one size."
            )
        protocol |= own
    return protocol


# ------------------------------------------------------------------------------------------------------------- pieces


@dataclass
class _Cost:
    """What explaining, or one metric, costs by itself: a pass that it shared with others is counted in full."""

    watches: list[Stopwatch] = field(default_factory=list)
    full: int = 0
    tail: int = 0

    def add(self, other: _Cost) -> None:
        self.watches += other.watches
        self.full += other.full
        self.tail += other.tail

    @property
    def seconds(self) -> float:
        return sum(watch.seconds for watch in self.watches)


@contextlib.contextmanager
def _cost(entry: _Cost, classifier: FrozenClassifier) -> Iterator[None]:
    counter = PassCounter(classifier)
    with counter, Stopwatch(classifier.device) as watch:
        yield
    entry.watches += [watch, *counter.shared]
    entry.full += counter.full
    entry.tail += counter.tail


def _jsonable(value):
    """The value after a round trip through JSON, so that settings read from a file compare equal."""
    return json.loads(json.dumps(value, default=str))
