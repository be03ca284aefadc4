"""Every explainer of one classifier on the same images: a table with its protocol, charts, pictures of extremes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_explain.classifiers.fingerprint import fingerprint
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.evaluation.arguments import ComparisonArguments, EvaluationArguments
from hf_explain.evaluation.comparison_report import MeasuredComparison, write_comparison
from hf_explain.evaluation.evaluator import check_metric, load_metrics
from hf_explain.evaluation.explainer import Explainer, resolve_explainer
from hf_explain.evaluation.forms import resolve_form, split_form
from hf_explain.evaluation.ranking import (
    is_control,
    metric_agreement,
    paired_differences,
    reached,
    seed_groups,
    seed_spreads,
)
from hf_explain.evaluation.results import (
    Comparison,
    EvaluationResult,
    FailedExplainer,
    MetricResult,
    SanityResult,
)
from hf_explain.evaluation.sanity import SEEDS, THRESHOLDS, check_explainer
from hf_explain.evaluation.sweep import LoadedMetric, evaluate_all
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.io.files import check_writable, lock_directory, read_json_file, remove_leftovers, write_json_file
from hf_explain.io.processes import choose_device, launched_processes, on_first_process
from hf_explain.metrics import load as load_metric
from hf_explain.metrics import metric_numbers
from hf_explain.metrics.number import Number
from hf_explain.registry import CONTROLS, METHODS, SLOW_METHODS, AutoModelForSaliency
from hf_explain.tensors.scalars import did_you_mean


SANITY_FILE = "sanity.json"


def parse_explainers(text: str | Sequence[str]) -> dict[str, str | None]:
    """
    `"lcam=DIR,gradcam,lcam@cells"` as `{"lcam": "DIR", "gradcam": None, "lcam@cells": None}`.

    Args:
        text (`str` or a list of `str`): Training-free methods by name, and heads as `NAME=DIRECTORY_OR_HUB_ID`; and
            `NAME@FORM`: the maps of one of these in another form, see [`~hf_explain.evaluation.forms.resolve_form`].

    Raises:
        ValueError: If a name is not a method and no head is given for it, a name occurs twice, or there is no such
            form.
    """
    entries = text.split(",") if isinstance(text, str) else list(text)
    entries = [entry.strip() for entry in entries if entry.strip()]
    heads = {name for name, equals, _ in (entry.partition("=") for entry in entries) if equals}
    found: dict[str, str | None] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        base, form = split_form(name, {*heads, *METHODS})
        if equals and (not source or not name or "/" in name or name in (".", "..")):
            raise ValueError(f"explainer {entry!r} is not NAME=DIRECTORY; write for example lcam=heads/lcam.")
        if equals and name in METHODS:
            raise ValueError(f"explainer {entry!r} has the name of a training-free method; rename the head.")
        if not equals and base not in METHODS and (form is None or base not in heads):
            raise ValueError(
                f"explainer {base!r} is not a training-free method ({', '.join(METHODS)}); a trained head is given as "
                f"NAME=DIRECTORY.{did_you_mean(base, METHODS)}"
            )
        if form is not None:
            try:
                resolve_form(form)
            except ValueError as error:
                raise ValueError(f"explainer {name!r} cannot be measured: {error}") from None
        if name in found:
            raise ValueError(f"explainer {name!r} is given twice.")
        found[name] = source or None
    if not found:
        raise ValueError("`explainers` is empty; give for example lcam=heads/lcam,gradcam.")
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
    sanity_examples: int = ComparisonArguments.sanity_examples,
    pictures: int = ComparisonArguments.pictures,
    command: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    candidate_labels: Sequence[str] | None = None,
    hypothesis_template: str | None = None,
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
            training-free method of that name, or for a form of the maps of another one (`"gradcam@8x8"`); or as for
            [`parse_explainers`].
        metrics (`str` or a list, *optional*): Metrics by name, or modules returned by `evaluate.load`.
            `win_rate` compares each explainer with `gradcam` (or `random`, if that is missing), on the average drop
            (or the first metric).
        output_dir (`str` or `os.PathLike`): Gets `table.md`, `results.json`, `results.csv`, charts and pictures.
        max_examples (`int`, *optional*): Use only this many images, the first ones.
        slow (list of `str`, *optional*): Explainers measured on `slow_examples` images only; those of `SLOW_METHODS`
            where not given.
        slow_examples (`int`, *optional*): See `slow`; all images where not given.
        method_options (`dict[str, dict]`, *optional*): Options by method.
        sanity (`bool`, *optional*, defaults to `False`): Also run
            [`~hf_explain.evaluation.sanity.check_sanity`] on each.
        sanity_examples (`int`, *optional*, defaults to 100): Images of the sanity checks.
        pictures (`int`, *optional*, defaults to 4): Best and worst images shown; 0 for none.
        command (list of `str`, *optional*): What a person typed, for the table.
        seed (`int`, *optional*, defaults to 0): Seed of everything random.
        device (*optional*): Where the classifier is put; the accelerator where there is one, or else the CPU.
        revision (`str`, *optional*): Of a classifier given by its Hub id.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with the classifier or a
            head may run.
        candidate_labels, hypothesis_template (*optional*): Classes of a model that matches images with texts, as for
            [`FrozenClassifier.from_pretrained`].
        report (`Callable`, *optional*): Gets the table and progress, line by line.
        options: More arguments of [`SaliencyEvaluator.compute`] (`target`, `presets`, `batch_size`, `image_column`,
            `shard_size`, ...).

    Returns:
        `dict`: what `results.json` holds, see [`Comparison`]: `explainers` (name to result, or to its `error`),
            `classifier`, `dataset`, `num_images`, `settings`, `numbers`.

    Raises:
        ValueError: If the arguments cannot work, or the controls cannot be measured.
        OSError: If the classifier cannot be loaded, or `output_dir` not be written to, or another run is using it.

    Example:

    ```python
    from datasets import load_dataset
    from hf_explain import compare

    explainers = {"mine": "runs/ttame", "gradcam": None, "layercam": None}
    data = load_dataset("imagefolder", data_dir="pictures", split="train")
    results = compare("microsoft/resnet-50", data, explainers, output_dir="results", max_examples=500)
    results["explainers"]["mine"]["auc_d"]["auc_d"]  # and results/table.md, charts and pictures
    ```
    """
    arguments = ComparisonArguments(
        metrics=metrics,
        output_dir=Path(output_dir),
        max_examples=max_examples,
        slow=slow,
        slow_examples=slow_examples,
        method_options=method_options or {},
        sanity=sanity,
        sanity_examples=sanity_examples,
        pictures=pictures,
        seed=seed,
        device=device,
        **options,
    )
    return run_comparison(
        classifier,
        data,
        explainers,
        arguments,
        command=command,
        revision=revision,
        trust_remote_code=trust_remote_code,
        candidate_labels=candidate_labels,
        hypothesis_template=hypothesis_template,
        report=report,
    ).to_json()


def run_comparison(
    classifier: str | os.PathLike | FrozenClassifier,
    data,
    explainers: Mapping[str, Any] | Sequence[str] | str,
    arguments: ComparisonArguments,
    *,
    command: Sequence[str] | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    candidate_labels: Sequence[str] | None = None,
    hypothesis_template: str | None = None,
    report: Callable[[str], None] = print,
) -> Comparison:
    """
    [`compare`] with its settings in one object.

    Args:
        classifier, data, explainers, command, revision, trust_remote_code, candidate_labels, hypothesis_template,
            report: As for [`compare`].
        arguments ([`ComparisonArguments`]): The settings; its `output_dir` is needed.
        attn_implementation (`str`, *optional*): Attention of a classifier that is loaded here; its own by default.

    Returns:
        [`Comparison`].

    Raises:
        ValueError, OSError: As for [`compare`].
    """
    if not isinstance(explainers, Mapping):
        explainers = parse_explainers(explainers)
    explainers = {**explainers, **{name: None for name in CONTROLS if name not in explainers}}
    numbers = _describe_metrics(arguments.metrics)
    if not numbers.keys() - {"win_rate"}:
        raise ValueError("`metrics` needs at least one that measures maps, such as auc_d.")
    known = {*explainers, *(split_form(name, _without_form(explainers))[0] for name in explainers)}
    for argument in ("slow", "method_options"):
        if unknown := [name for name in getattr(arguments, argument) or () if name not in known]:
            raise ValueError(f"`{argument}` names {unknown[0]!r}, which is not an explainer: {', '.join(explainers)}.")
    folder = arguments.folder
    rank, world, own_device = launched_processes()
    main = rank == 0

    def claim() -> None:
        held.enter_context(lock_directory(folder))
        check_writable(folder)
        remove_leftovers(folder, r"(\.write_test|results\.(json|csv)|table\.md|command\.sh)\.tmp")

    with contextlib.ExitStack() as held:
        on_first_process(rank, world, claim)
        if not isinstance(classifier, FrozenClassifier):
            attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
            classifier = FrozenClassifier.from_pretrained(
                classifier,
                revision=revision,
                **attention,
                candidate_labels=candidate_labels,
                hypothesis_template=hypothesis_template,
                trust_remote_code=trust_remote_code,
            )
        elif candidate_labels is not None or hypothesis_template is not None:
            classifier = classifier.for_texts(candidate_labels, hypothesis_template)
        classifier.to(choose_device(own_device if arguments.device is None else arguments.device))
        told = report if main else lambda line: None
        measured = _measure(classifier, data, explainers, arguments, numbers, told, trust_remote_code)
        if main:
            write_comparison(measured, data, arguments, command)
            report((folder / "table.md").read_text())
        return measured.comparison


# ---------------------------------------------------------------------------------------------------------- measuring


def _describe_metrics(metrics: Sequence[Any]) -> dict[str, tuple[Number, ...]]:
    """The metrics' descriptions of their numbers, by name; this package's need not be loaded for it."""
    numbers: dict[str, tuple[Number, ...]] = {}
    for one in metrics:
        name = one if isinstance(one, str) else check_metric(one).metric_name
        numbers[name] = metric_numbers(one) if isinstance(one, str) else one.numbers
    return dict(sorted(numbers.items(), key=lambda entry: entry[0] == "win_rate"))  # it is measured last


def _measure(
    classifier: FrozenClassifier,
    data,
    explainers: Mapping[str, Any],
    arguments: ComparisonArguments,
    numbers: dict[str, tuple[Number, ...]],
    report: Callable[[str], None],
    trust_remote_code: bool,
) -> MeasuredComparison:
    """Every explainer measured, or the reason why one could not be."""
    known = fingerprint(classifier.model)  # once: all explainers share this classifier
    failed: dict[str, FailedExplainer] = {}

    def fail(name: str, error: Exception) -> None:
        # one failing method must not cost the hours of the others; the command still ends with an error
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (ValueError, OSError)):
            reason = f"{type(error).__name__}: {reason}"
        failed[name] = FailedExplainer(reason)
        report(f"{name} failed: {reason}")

    tasks: dict[str, tuple[Explainer, Mapping[str, LoadedMetric], ComparisonArguments]] = {}
    made: dict[str, Explainer] = {}  # without a form

    def resolve(name: str) -> Explainer:
        base, form = split_form(name, _without_form(explainers))
        if base not in made:
            made[base] = _resolve(base, explainers.get(base), classifier, arguments, known, trust_remote_code)
        return made[base] if form is None else made[base].with_form(form)

    # the controls first: where they cannot be measured, no explainer can
    for name in sorted(explainers, key=lambda name: name not in CONTROLS):
        try:
            own = _own_arguments(name, arguments, _without_form(explainers))
            tasks[name] = resolve(name), load_metrics(own), own
        except Exception as error:
            if name in CONTROLS:
                raise
            fail(name, error)
    outcomes = evaluate_all(tasks, data, essential=CONTROLS, report=fail)
    evaluations: dict[str, EvaluationResult] = {}
    columns: dict[str, dict[str, list]] = {}
    built: dict[str, Explainer] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            continue
        explainer, _, own = tasks[name]
        try:
            if arguments.sanity and not is_control(name, outcome[0].found):
                outcome[0].found.sanity = _check_sanity(explainer, data, own, outcome[0])
        except Exception as error:
            fail(name, error)
        else:
            (evaluations[name], columns[name]), built[name] = outcome, explainer
    if "win_rate" in numbers:
        _add_win_rates(evaluations, columns, numbers)
    first = evaluations[next(name for name in explainers if name in evaluations)]
    identity = {key: value for key, value in first.found.explainer.items() if key.startswith("classifier")}
    comparison = Comparison(
        {name: failed[name] if name in failed else evaluations[name].found for name in explainers},
        {**identity, "num_labels": classifier.num_labels, "id": identity["classifier"]},
        first.dataset,
        max(len(found["image_ids"]) for found in columns.values()),
        {key: value for key, value in first.settings.items() if key not in ("explainer", "dataset")},
        first.versions,
        first.device,
        numbers,
    )
    heads = {name: one.head for name, one in built.items() if one.head is not None and one.form is None}
    groups = seed_groups({name: _settings_of(head) for name, head in heads.items()})
    comparison.seeds, pooled = seed_spreads(comparison, columns, groups)
    comparison.differences = paired_differences(comparison, pooled)
    comparison.agreement = metric_agreement(comparison)
    comparison.reach = reached(comparison, pooled)
    return MeasuredComparison(comparison, columns, built)


def _settings_of(head: ExplainerPreTrainedModel) -> dict[str, Any]:
    """What a head's configuration says of how it was made; not where it lies, and not in what it was saved."""
    others = ("transformers_version", "self_contained", "dtype", "auto_map")
    values = head.config.to_dict().items()
    hidden = ("_", *head.config.classifiers)
    return {name: value for name, value in values if not name.startswith(hidden) and name not in others}


def _resolve(
    name: str,
    source,
    classifier: FrozenClassifier,
    arguments: ComparisonArguments,
    known: str,
    trust_remote_code: bool,
) -> Explainer:
    """The head `source`, or where that is `None` the training-free method called `name`."""
    options = arguments.method_options.get(name)
    if source is None:
        return resolve_explainer(classifier, name, options, arguments.seed, classifier_fingerprint=known)
    if isinstance(source, (str, os.PathLike)):
        # attached to this classifier: a head of another one is an error
        source = AutoModelForSaliency.from_pretrained(
            source, classifier=classifier, trust_remote_code=trust_remote_code
        )
    own = source.backbone is classifier
    source = source.to(classifier.device)
    return resolve_explainer(source, None, options, arguments.seed, classifier_fingerprint=known if own else None)


def _without_form(explainers: Mapping[str, Any]) -> set[str]:
    """The names of which an `@` is a part."""
    return {*METHODS, *(name for name, source in explainers.items() if source is not None)}


def _own_arguments(name: str, arguments: ComparisonArguments, without_form: Collection[str]) -> ComparisonArguments:
    """The settings of one explainer: its folder and, where it is slow, fewer images."""
    count = arguments.max_examples
    slow = SLOW_METHODS if arguments.slow is None else arguments.slow
    if arguments.slow_examples is not None and {name, split_form(name, without_form)[0]}.intersection(slow):
        count = min(arguments.slow_examples, count or arguments.slow_examples)
    return replace(
        arguments,
        metrics=[one for one in arguments.metrics if one != "win_rate"],
        max_examples=count,
        output_dir=arguments.folder / "explainers" / name,
    )


def _check_sanity(explainer: Explainer, data, arguments: ComparisonArguments, evaluation: EvaluationResult):
    """The sanity checks, or what an earlier run found by them for the same explainer and images."""
    wanted, most = arguments.sanity_examples, arguments.max_examples
    # the images are among those of the evaluation, which has seen that they are the same
    count = min(wanted, most or wanted)
    settings = {"images": count, "evaluation": evaluation.settings, "thresholds": THRESHOLDS, "seeds": SEEDS}
    if arguments.dtype != EvaluationArguments.dtype:  # what was found before there was another one is kept
        settings["dtype"] = arguments.dtype
    file = arguments.folder / SANITY_FILE
    rank, world, _ = launched_processes()

    def read() -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # made again where it cannot be read
            known = read_json_file(file)
            return known["found"] if known["settings"] == settings else None
        return None

    kept = on_first_process(rank, world, read)
    if kept is not None:
        return SanityResult.from_json(kept)
    found = check_explainer(
        explainer,
        data,
        image_column=arguments.image_column,
        max_examples=count,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        seeds=SEEDS,
        dtype=arguments.dtype,
    )
    if rank == 0:
        write_json_file(file, {"settings": settings, "found": found.to_json()})
    return found


def _add_win_rates(
    evaluations: dict[str, EvaluationResult], columns: dict[str, dict[str, list]], numbers: dict[str, tuple]
) -> None:
    reference = "gradcam" if "gradcam" in columns else "random"
    metric = "average_drop" if "average_drop" in numbers else next(iter(numbers))
    judged = numbers[metric][0]
    key = f"{metric}/{judged.key}"
    for name, found in columns.items():
        if name == reference:
            continue
        shared = min(len(found[key]), len(columns[reference][key]))
        preset = "higher_is_better" if judged.higher_is_better else "lower_is_better"
        win_rate = load_metric("win_rate", preset)
        scores = win_rate.measure(scores=found[key][:shared], other=columns[reference][key][:shared])
        result = MetricResult.from_json(win_rate.compute(**scores))
        result.protocol |= {"against": reference, "by": key.replace("/", " ")}
        evaluations[name].found.metrics["win_rate"] = result
