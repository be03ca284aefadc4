"""The settings of an evaluation and of a comparison, an object each. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_explain.io.labels import TARGETS
from hf_explain.tensors.scalars import check_choice, check_count, check_seed


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    options: dict[str, Any] = {"metadata": {"help": help, "choices": choices}}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), **options)
    return field(default=default, **options)


@dataclass
class EvaluationArguments:
    r"""
    How explainers are measured: what [`SaliencyEvaluator`] works from.

    Args:
        metrics (list of `str`, *optional*, defaults to `["auc_d", "average_drop"]`): Names of `hf_explain.metrics`, in
            a list or with commas between them, or what `evaluate.load` made of them.
        presets (`dict[str, str]`, *optional*): Preset by metric.
        metric_options (`dict[str, dict]`, *optional*): Settings by metric that replace the preset's.
        target (`str`, *optional*, defaults to `"prediction"`): The class explained: the classifier's top-1 or, with
            `"label"`, the true one.
        output_dir (`str` or `os.PathLike`, *optional*): Folder for partial results: a run that was killed continues
            there with the same settings.
        dataset_info (`dict`, *optional*): Name, split, revision and the like, for the result.

    The other fields are described by their `help` metadata.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what would work.
    """

    metrics: Sequence[Any] = _option(["auc_d", "average_drop"], "metrics")
    presets: Mapping[str, str] = _option({}, "published settings")
    metric_options: Mapping[str, Mapping[str, Any]] = _option({}, "settings that replace the preset's")
    target: str = _option("prediction", "class explained", TARGETS)
    image_column: str | None = _option(None, "column of the images; found by its type where not given")
    label_column: str | None = _option(None, "column of the labels, likewise")
    mask_column: str | None = _option(None, "column of the object's masks, for the metric pointing")
    max_examples: int | None = _option(None, "only the first so many images")
    seed: int = _option(0, "seed of everything random")
    batch_size: int = _option(8, "images per pass")
    shard_size: int = _option(64, "images per partial result")
    device: Any = _option(None, "torch device; a GPU where there is one")
    output_dir: Path | None = _option(None, "folder of the results; a killed run continues there")
    dataset_info: Mapping[str, Any] = _option({}, "what is known of the data set")
    progress: bool = _option(True, "progress bars")

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            self.metrics = [name for name in self.metrics.split(",") if name]
        elif not isinstance(self.metrics, Sequence):
            self.metrics = [self.metrics]
        for name in ("presets", "metric_options", "dataset_info"):
            setattr(self, name, dict(getattr(self, name) or {}))
        check_choice(self.target, "target", TARGETS)
        check_count(self.batch_size, "batch_size")
        check_count(self.shard_size, "shard_size")
        check_count(self.max_examples, "max_examples", optional=True)
        check_seed(self.seed)
        self.output_dir = None if self.output_dir is None else Path(self.output_dir)


@dataclass
class ComparisonArguments(EvaluationArguments):
    r"""
    How several explainers of one classifier are measured side by side.

    Args:
        slow (list of `str`, *optional*): Explainers measured on `slow_examples` images only; those that need many
            passes where not given.
        method_options (`dict[str, dict]`, *optional*): Options by method.

    The other fields are those of [`EvaluationArguments`], or described by their `help` metadata.

    Raises:
        ValueError: As for [`EvaluationArguments`].
    """

    slow: Sequence[str] | None = _option(None, "explainers for slow_examples; those of many passes by default")
    slow_examples: int | None = _option(None, "images for the slow ones; all where not given")
    method_options: Mapping[str, Mapping[str, Any]] = _option({}, "options of the methods")
    sanity: bool = _option(False, "also run the sanity checks on every explainer")
    sanity_examples: int = _option(32, "images of the checks")
    pictures: int = _option(4, "best and worst images shown; 0 for none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method_options = dict(self.method_options or {})
        check_count(self.slow_examples, "slow_examples", optional=True)
        check_count(self.sanity_examples, "sanity_examples")
        check_count(self.pictures, "pictures", minimum=0)

    @property
    def folder(self) -> Path:
        """`output_dir`, without which there is no comparison."""
        if self.output_dir is None:
            raise ValueError("`output_dir` is needed: a comparison is written to a folder.")
        return self.output_dir
