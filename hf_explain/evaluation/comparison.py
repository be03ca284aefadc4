"""Every explainer of one classifier on the same images: a table with its protocol, charts, pictures of extremes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.comparison_report import _write_charts, _write_pictures, _write_tables
from hf_explain.evaluation.evaluator import SaliencyEvaluator
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.sanity import check_sanity
from hf_explain.io.files import check_writable, lock_directory
from hf_explain.io.processes import launched_processes, on_first_process
from hf_explain.metrics import path as metric_path
from hf_explain.registry import CONTROLS, METHODS, SLOW_METHODS, AutoModelForSaliency


def parse_explainers(text: str | Sequence[str]) -> dict[str, str | None]:
    """
    `"lcam=DIR,gradcam"` as `{"lcam": "DIR", "gradcam": None}`.

    Args:
        text (`str` or a list of `str`): Training-free methods by name, and heads as `NAME=DIRECTORY_OR_HUB_ID`.

    Raises:
        ValueError: If a name is no method and no head was given for it, or one occurs twice.
    """
    entries = text.split(",") if isinstance(text, str) else list(text)
    found: dict[str, str | None] = {}
    for entry in filter(None, (entry.strip() for entry in entries)):
        name, equals, source = entry.partition("=")
        if equals and (not source or not name or "/" in name or name in (".", "..")):
            raise ValueError(f"explainer {entry!r} is not NAME=DIRECTORY; write for example lcam=heads/lcam.")
        if equals and name in METHODS:
            raise ValueError(f"explainer {entry!r} has the name of a training-free method; call the head otherwise.")
        if not equals and name not in METHODS:
            raise ValueError(
                f"explainer {name!r} is no training-free method ({', '.join(METHODS)}); a trained head is given as "
                "NAME=DIRECTORY."
            )
        if name in found:
            raise ValueError(f"explainer {name!r} is given twice.")
        found[name] = source or None
    if not found:
        raise ValueError("`explainers` names none; give for example lcam=heads/lcam,gradcam.")
    return found


def compare(
    classifier: str | os.PathLike | FrozenClassifier,
    data,
    explainers: Mapping[str, Any] | Sequence[str] | str,
    metrics: Sequence[str] | str = ("auc_d", "average_drop"),
    *,
    output_dir: str | os.PathLike,
    max_examples: int | None = None,
    slow: Sequence[str] | None = None,
    slow_examples: int | None = None,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    sanity: bool = False,
    sanity_examples: int = 32,
    pictures: int = 4,
    command: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    revision: str | None = None,
    report: Callable[[str], None] = print,
    **options,
) -> dict[str, Any]:
    """
    Measure several explainers of one classifier and write what was found.

    The controls `random` and `centre` are always among them. An explainer that fails is a row with its reason; the
    others are kept. Every explainer has a folder of partial results, so that a killed comparison continues. Under
    `accelerate launch` the images are split over the processes, and the first one writes.

    Args:
        classifier (`str`, `os.PathLike` or [`FrozenClassifier`]): The classifier explained.
        data: As for [`SaliencyEvaluator.compute`].
        explainers (`dict`, `str` or a list of `str`): Name to head (or its directory), or to `None` for the
            training-free method of that name; or as for [`parse_explainers`].
        metrics (`str` or a list, *optional*): Metrics by name. `win_rate` compares each with `gradcam` (with `random`
            where there is none), on the average drop (or the first metric).
        output_dir (`str` or `os.PathLike`): Gets `table.md`, `results.json`, `results.csv`, charts and pictures.
        max_examples (`int`, *optional*): Only the first so many images.
        slow (list of `str`, *optional*): Explainers measured on `slow_examples` images only; those of `SLOW_METHODS`
            where not given.
        slow_examples (`int`, *optional*): See `slow`; all images where not given.
        method_options (`dict[str, dict]`, *optional*): Options by method.
        sanity (`bool`, *optional*, defaults to `False`): Also run
            [`~hf_explain.evaluation.sanity.check_sanity`] on each.
        sanity_examples (`int`, *optional*, defaults to 32): Images of the sanity checks.
        pictures (`int`, *optional*, defaults to 4): Best and worst images shown; 0 for none.
        command (list of `str`, *optional*): What a person typed, for the table.
        seed (`int`, *optional*, defaults to 0): Of everything random.
        device (*optional*): Where the classifier is put; a GPU where there is one.
        revision (`str`, *optional*): Of a classifier given by its Hub id.
        report (`Callable`, *optional*): Gets the table and progress, line by line.
        options: More arguments of [`SaliencyEvaluator.compute`] (`target`, `presets`, `batch_size`, `image_column`,
            `shard_size`, ...).

    Returns:
        `dict`: `explainers` (name to result, or to its `error`), `classifier`, `dataset`, `num_images`, `settings`.

    Raises:
        ValueError: If the arguments cannot work, or the controls cannot be measured.
        OSError: If the classifier cannot be loaded, or `output_dir` not be written to, or another run is using it.
    """
    if not isinstance(explainers, Mapping):
        explainers = parse_explainers(explainers)
    metrics = [name for name in (metrics.split(",") if isinstance(metrics, str) else metrics) if name]
    for name in metrics:
        metric_path(name)
    measured = [name for name in metrics if name != "win_rate"]
    if not measured:
        raise ValueError("`metrics` needs at least one that measures maps, such as auc_d.")
    names = [*explainers, *(name for name in CONTROLS if name not in explainers)]
    for argument, given in (("slow", slow or ()), ("method_options", method_options or {})):
        if unknown := [name for name in given if name not in names]:
            raise ValueError(f"`{argument}` names {unknown[0]!r}, which is no explainer: {', '.join(names)}.")
    slow = SLOW_METHODS if slow is None else slow
    folder = Path(output_dir)
    rank, world, own_device = launched_processes()
    main = rank == 0

    def claim() -> None:
        held.enter_context(lock_directory(folder))
        check_writable(folder)

    with contextlib.ExitStack() as held:
        on_first_process(rank, world, claim)
        if not isinstance(classifier, FrozenClassifier):
            classifier = FrozenClassifier.from_pretrained(classifier, revision=revision)
        classifier.to(device or own_device or ("cuda" if torch.cuda.is_available() else "cpu"))

        evaluator, results, columns, built = SaliencyEvaluator(), {}, {}, {}
        # the controls first: what keeps them from being measured is no fault of an explainer
        for name in sorted(names, key=lambda name: name not in CONTROLS):
            count = max_examples
            if name in slow and slow_examples is not None:
                count = min(slow_examples, max_examples or slow_examples)
            try:
                model = _model(name, explainers.get(name), classifier)
                method = name if explainers.get(name) is None else None
                own_options = (method_options or {}).get(name)
                result = evaluator.compute(
                    model,
                    data,
                    measured,
                    method=method,
                    method_options=own_options,
                    max_examples=count,
                    seed=seed,
                    output_dir=folder / "explainers" / name,
                    return_columns=True,
                    **options,
                )
                columns[name] = result.pop("columns")
                if sanity and name not in CONTROLS:
                    result["sanity"] = check_sanity(
                        model,
                        data,
                        method=method,
                        method_options=own_options,
                        max_examples=min(sanity_examples, count or sanity_examples),
                        image_column=options.get("image_column"),
                        batch_size=options.get("batch_size", 8),
                        seed=seed,
                    )
                results[name] = result
                built[name] = resolve_explainer(model, method, own_options, seed)
            except Exception as error:
                if name in CONTROLS:
                    raise
                # one failing method must not cost the hours of the others; the command still ends with an error
                reason = " ".join(str(error).split()) or type(error).__name__
                if not isinstance(error, (ValueError, OSError)):
                    reason = f"{type(error).__name__}: {reason}"
                results[name] = {"error": reason}
                columns.pop(name, None)
                if main:
                    report(f"{name} failed: {reason}")
        results = {name: results[name] for name in names}
        if "win_rate" in metrics:
            _add_win_rates(results, columns, measured)
        comparison = _describe(results, classifier, columns)
        if main:
            _write_tables(folder, comparison, command)
            _write_charts(folder, results)
            if pictures:
                _write_pictures(folder, data, built, columns, measured[0], pictures, options.get("image_column"))
            report((folder / "table.md").read_text())
        return comparison


def _model(name: str, source, classifier: FrozenClassifier):
    if source is None:
        return classifier
    if isinstance(source, (str, os.PathLike)):
        # onto this very classifier: a head of another one says so instead of being compared
        source = AutoModelForSaliency.from_pretrained(source, classifier=classifier)
    return source.to(classifier.device)


def _add_win_rates(results, columns, measured) -> None:
    reference = "gradcam" if "gradcam" in columns else "random"
    metric = "average_drop" if "average_drop" in measured else measured[0]
    judged = evaluate.load(metric_path(metric))
    key = f"{metric}/{judged.main_result}"
    for name, found in columns.items():
        if name == reference:
            continue
        shared = min(len(found[key]), len(columns[reference][key]))
        preset = "higher_is_better" if judged.higher_is_better else "lower_is_better"
        win_rate = evaluate.load(metric_path("win_rate"), preset)
        scores = win_rate.measure(scores=found[key][:shared], other=columns[reference][key][:shared])
        results[name]["win_rate"] = win_rate.compute(**scores)
        results[name]["win_rate"]["protocol"] |= {"against": reference, "by": key.replace("/", " ")}


def _describe(results, classifier, columns) -> dict[str, Any]:
    first = next(result for result in results.values() if "error" not in result)
    common = ("explainer", "dataset", "settings", "versions", "device")
    kept = {
        name: {key: value for key, value in result.items() if key not in common or key == "explainer"}
        for name, result in results.items()
    }
    settings = {key: value for key, value in first["settings"].items() if key not in ("explainer", "dataset")}
    identity = {key: value for key, value in first["explainer"].items() if key.startswith("classifier")}
    return {
        "explainers": kept,
        "classifier": {**identity, "num_labels": classifier.num_labels, "id": identity["classifier"]},
        "dataset": first["dataset"],
        "num_images": max(len(found["image_ids"]) for found in columns.values()),
        "settings": settings,
        "versions": first["versions"],
        "device": first["device"],
    }


# ------------------------------------------------------------------------------------------------------------- tables


# ------------------------------------------------------------------------------------------------- charts and pictures
