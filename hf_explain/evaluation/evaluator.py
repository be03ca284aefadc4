"""`SaliencyEvaluator`: an explainer, a data set and metrics in; numbers with their protocol and their cost out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import torch

from hf_explain.evaluation.arguments import EvaluationArguments
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.sweep import LoadedMetric, evaluate_all
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.processes import launched_processes
from hf_explain.metrics import load as load_metric
from hf_explain.tensors.scalars import check_choice


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
            raise ValueError(f"`task` {task!r} is not one of this evaluator; it only has 'saliency'.")
        self.task, self.default_metric_name = task, default_metric_name

    def compute(
        self,
        model_or_pipeline=None,
        data=None,
        metric: str | evaluate.EvaluationModule | Sequence | None = None,
        *,
        subset: str | None = None,
        split: str | None = None,
        strategy: str = "simple",
        confidence_level: float | None = None,
        n_resamples: int | None = None,
        random_state: int | None = None,
        input_column: str | None = None,
        label_mapping: Mapping[str, Any] | None = None,
        tokenizer: None = None,
        feature_extractor: None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        mask_column: str | None = None,
        target: str = EvaluationArguments.target,
        method: str | None = None,
        method_options: Mapping[str, Any] | None = None,
        presets: Mapping[str, str] | None = None,
        metric_options: Mapping[str, Mapping[str, Any]] | None = None,
        batch_size: int = EvaluationArguments.batch_size,
        max_examples: int | None = None,
        seed: int = EvaluationArguments.seed,
        device: str | int | torch.device | None = None,
        dtype: str = EvaluationArguments.dtype,
        output_dir: str | os.PathLike | None = None,
        shard_size: int = EvaluationArguments.shard_size,
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
            data: `datasets` data set, map-style or streaming, or a sequence of dictionaries; or what
                [`~hf_explain.io.datasets.load_image_dataset`] loads, by its name or path.
            metric (`str`, metric or a list of them, *optional*, defaults to `"auc_d"`): Names of `hf_explain.metrics`,
                `NAME@PRESET` for one that is measured in several ways (`["auc_d", "auc_d@patch"]`), or modules
                returned by `evaluate.load` or `evaluate.combine`.
            subset, split (`str`, *optional*): Configuration and split of `data` that is given by name; the first of
                test, validation and train that there is.
            strategy (`str`, *optional*, defaults to `"simple"`): `"simple"` or `"bootstrap"`, as elsewhere in
                `evaluate`; results have bootstrap intervals with either.
            confidence_level, n_resamples (*optional*): Of the intervals; 0.95 and 1000 when not given.
            random_state (`int`, *optional*): Seed of everything random and of the intervals.
            input_column (`str`, *optional*): Another name of `image_column`.
            label_mapping (`dict[str, int]`, *optional*): The classifier's labels and what the label column calls them.
            tokenizer, feature_extractor (*optional*): Refused: an image has no tokens, and its processor is the
                pipeline's.
            image_column, label_column (`str`, *optional*): Columns; found by their types where not given.
            mask_column (`str`, *optional*): Masks of the object, as large as the image, for `pointing`.
            target (`str`, *optional*, defaults to `"prediction"`): The class explained: the classifier's top-1; with
                `"label"`, the true one; with `"second"`, the classifier's second, by metrics of a class's probability.
            method (`str`, *optional*): A training-free method instead of the head.
            method_options (`dict`, *optional*): Its options.
            presets (`dict[str, str]`, *optional*): Preset by metric.
            metric_options (`dict[str, dict]`, *optional*): Settings by metric that replace the preset's.
            batch_size (`int`, *optional*, defaults to 8): Images per pass.
            max_examples (`int`, *optional*): Use only this many images, the first ones.
            seed (`int`, *optional*, defaults to 0): Seed of everything random.
            device (*optional*): Device of a model that is given by name.
            dtype (`str`, *optional*, defaults to `"float32"`): Precision of the classifier's passes, of explainers and
                metrics that were measured to keep their numbers in bfloat16; the others stay in that of the weights.
                `"auto"` is `"bfloat16"` where the device has it and the first 16 images get the same answers. The
                protocols say what was taken and why.
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
        for name, value in (("tokenizer", tokenizer), ("feature_extractor", feature_extractor)):
            if value is not None:
                raise ValueError(
                    f"`{name}` is not for images; give a pipeline('saliency', ..., image_processor=...) instead."
                )
        check_choice(strategy, "strategy", ("simple", "bootstrap"))
        if input_column is not None:
            if image_column not in (None, input_column):
                raise ValueError("`input_column` is another name of `image_column`; give one of them.")
            image_column = input_column
        summary = {"confidence": confidence_level, "resamples": n_resamples, "bootstrap_seed": random_state}
        if isinstance(data, (str, os.PathLike)):
            source = os.fspath(data)
            data, split = _load_data(source, subset, split)
            dataset_info = {"name": source, "split": split, "config": subset} if dataset_info is None else dataset_info
        elif subset is not None or split is not None:
            name = "subset" if split is None else "split"
            raise ValueError(f"`{name}` is for `data` that is given by name, got a {type(data).__name__}.")
        arguments = EvaluationArguments(
            # not `or`: a metric that has collected nothing yet has length 0
            metrics=self.default_metric_name if metric is None else metric,
            presets=presets or {},
            metric_options=metric_options or {},
            target=target,
            image_column=image_column,
            label_column=label_column,
            mask_column=mask_column,
            max_examples=max_examples,
            seed=seed if random_state is None else random_state,
            label_mapping=label_mapping or {},
            summary_options={name: value for name, value in summary.items() if value is not None},
            batch_size=batch_size,
            shard_size=shard_size,
            device=device,
            dtype=dtype,
            output_dir=None if output_dir is None else Path(output_dir),
            dataset_info=dataset_info or {},
            progress=progress,
        )
        metrics = load_metrics(arguments)  # a name that is wrong is known before a model is loaded
        _, _, own_device = launched_processes()
        explainer = resolve_explainer(
            model_or_pipeline, method, method_options, arguments.seed, own_device if device is None else device
        )
        outcome = evaluate_all({"": (explainer, metrics, arguments)}, data, essential=("",))[""]
        assert not isinstance(outcome, Exception)  # it was raised
        found, columns = outcome[0].to_json(), outcome[1]
        return {**found, "columns": columns} if return_columns else found


def load_metrics(arguments: EvaluationArguments) -> dict[str, LoadedMetric]:
    """
    The metrics of an evaluation, ready to measure.

    Args:
        arguments ([`EvaluationArguments`]): Their names, presets and options.

    Returns:
        `dict[str, LoadedMetric]`: By name.

    Raises:
        ValueError: If a metric, a preset or an option does not exist, one is named twice, or a column is missing.
        TypeError: If a metric cannot measure.
    """
    if not arguments.metrics:
        raise ValueError("`metric` is an empty list; give at least one, such as 'auc_d'.")
    presets, loaded = arguments.presets, {}
    given = [getattr(one, "evaluation_modules", [one]) for one in arguments.metrics]  # of `evaluate.combine`
    for one in (one for modules in given for one in modules):
        name, module = one, one
        if isinstance(one, str):
            module = load_metric(one, presets.get(one))
        else:
            name = check_metric(one).metric_name
        if name in loaded:
            raise ValueError(f"`metric` names {name!r} twice.")
        if module.metric_name == "win_rate":
            raise ValueError("metric 'win_rate' compares two explainers: ask `hf-explain evaluate` for it.")
        loaded[name] = module
    for argument in ("presets", "metric_options"):
        for name in getattr(arguments, argument):
            if name not in loaded:
                raise ValueError(f"`{argument}` names {name!r}, which is not among the metrics: {', '.join(loaded)}.")
    if arguments.mask_column is None and (names := [name for name, one in loaded.items() if "masks" in one.inputs]):
        raise ValueError(f"metric {names[0]!r} needs masks of the object; name their column with `mask_column`.")
    found = {name: LoadedMetric(one, dict(arguments.metric_options.get(name, {}))) for name, one in loaded.items()}
    for metric in found.values():
        if arguments.seed and "seed" in metric.module.options:
            metric.options.setdefault("seed", arguments.seed)
    return found


def _load_data(source: str, subset: str | None, split: str | None) -> tuple[Any, str]:
    """A data set by its name or path, and the split that was taken."""
    splits = ("test", "validation", "train") if split is None else (split,)
    for name in splits[:-1]:
        with contextlib.suppress(ValueError):  # there is no such split
            return load_image_dataset(source, name, subset), name
    return load_image_dataset(source, splits[-1], subset), splits[-1]


def check_metric(metric: evaluate.EvaluationModule) -> evaluate.EvaluationModule:
    """`metric` if it can measure, else a TypeError."""
    if not callable(getattr(metric, "measure", None)):
        raise TypeError(
            f"`metric` must be names or modules of hf_explain.metrics, which can `measure`, got "
            f"{type(metric).__name__}."
        )
    return metric
