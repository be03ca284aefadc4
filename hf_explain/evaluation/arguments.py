"""The settings of an evaluation, of a comparison, of a study of errors: an object each. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_explain.io.labels import TARGETS
from hf_explain.io.paths import output_folder
from hf_explain.tensors.options import DTYPE_HELP, DTYPES, check_options, option
from hf_explain.tensors.scalars import check_seed


@dataclass
class EvaluationArguments:
    r"""
    How explainers are measured: what [`SaliencyEvaluator`] works from.

    Args:
        metrics (list of `str`, *optional*, defaults to `["auc_d", "average_drop"]`): Names of `hf_explain.metrics`, in
            a list or with commas between them, or modules returned by `evaluate.load`. `NAME@PRESET` measures a metric
            by a preset, beside others of its presets: `auc_d,auc_d@patch`.
        presets (`dict[str, str]`, *optional*): Preset by metric.
        metric_options (`dict[str, dict]`, *optional*): Settings by metric that replace the preset's.
        target (`str`, *optional*, defaults to `"prediction"`): The class explained: the classifier's top-1; with
            `"label"`, the true one; with `"second"`, the classifier's second, by metrics of a class's probability.
        output_dir (`str` or `os.PathLike`, *optional*): Folder for partial results: a run that was killed continues
            there with the same settings.
        dataset_info (`dict`, *optional*): Name, split, revision and the like, for the result.
        label_mapping (`dict[str, int]`, *optional*): The classifier's labels and what the label column calls them.
        summary_options (`dict`, *optional*): What the metrics' `compute` is told of the intervals.

    The other fields are described by their `help` metadata.

    Raises:
        ValueError: If a value is out of range; the message names the field, the value and what would work.
    """

    options_title = "how to measure"

    metrics: Sequence[Any] = option(
        ["auc_d", "average_drop"], "metrics of hf_explain.metrics", commas=True, metavar="NAME[@PRESET],..."
    )
    presets: Mapping[str, str] = option(
        {}, "published settings; may be repeated", flag="preset", form="METRIC=PRESET", example="auc_d=chefer"
    )
    metric_options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "a setting that replaces the preset's, e.g. auc_d.steps=20; may be repeated",
        flag="metric_option",
        form="METRIC.OPTION=VALUE",
        example="auc_d.steps=20",
    )
    target: str = option("prediction", "class explained", choices=(*TARGETS, "second"))
    image_column: str | None = option(None, "column of the images; found by its type unless given")
    label_column: str | None = option(None, "column of the labels, likewise")
    mask_column: str | None = option(None, "column of the object's masks, for the metric pointing")
    max_examples: int | None = option(None, "use only this many images, the first ones", minimum=1)
    seed: int = option(0, "seed of everything random")
    batch_size: int = option(8, "images per pass", minimum=1)
    shard_size: int = option(64, "images per partial result", minimum=1)
    device: Any = option(None, "torch device; the accelerator where there is one, or else the CPU")
    dtype: str = option("float32", DTYPE_HELP, choices=DTYPES)
    output_dir: Path | None = option(None, "folder of the results; a killed run continues there", short="-o")
    dataset_info: Mapping[str, Any] = option({})  # not an option: the data set's own options say it
    label_mapping: Mapping[str, Any] = option({})
    summary_options: Mapping[str, Any] = option({})
    progress: bool = option(True, "progress bars")

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            self.metrics = [name for name in self.metrics.split(",") if name]
        elif not isinstance(self.metrics, Sequence):
            self.metrics = [self.metrics]
        for name in ("presets", "metric_options", "dataset_info", "label_mapping", "summary_options"):
            setattr(self, name, dict(getattr(self, name) or {}))
        check_options(self)
        check_seed(self.seed)
        self.output_dir = None if self.output_dir is None else output_folder(self.output_dir)


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

    slow: Sequence[str] | None = option(
        None, "explainers for slow_examples; those of many passes unless given", commas=True, metavar="NAME,..."
    )
    slow_examples: int | None = option(None, "images for the slow ones; all unless given", minimum=1)
    method_options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "an option of a method, e.g. rise.num_masks=1000; may be repeated",
        flag="method_option",
        form="METHOD.OPTION=VALUE",
        example="rise.num_masks=1000",
    )
    sanity: bool = option(False, "also run the sanity checks on every explainer")
    sanity_examples: int = option(100, "images of the checks", minimum=1)
    pictures: int = option(4, "best and worst images shown; 0 for none", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.method_options = dict(self.method_options or {})

    @property
    def folder(self) -> Path:
        """`output_dir`, without which there is no comparison."""
        if self.output_dir is None:
            raise ValueError("`output_dir` is needed: a comparison is written to a folder.")
        return self.output_dir


@dataclass
class ErrorStudyArguments:
    """
    What counts as the same region and as a biased class.

    Args:
        region_percent (`float`, *optional*, defaults to 10): The region of a map is this share of its pixels, the most
            salient ones; in percent.
        same_region (`float`, *optional*, defaults to 0.5): Regions with at least this share in common are the same.
        different_regions (`float`, *optional*, defaults to 0.2): Regions with at most this share in common differ.
        min_images (`int`, *optional*, defaults to 10): Classes with fewer images are not tested for a bias.
        min_excess (`float`, *optional*, defaults to 0.25): The share of a biased class' region that lies off the
            object (at a place of the border), on average over its images, exceeds the other classes' by at least this.
        significance (`float`, *optional*, defaults to 0.05): The p-value of that excess, corrected for all classes
            and places, is at most this for a biased class.
        permutations (`int`, *optional*, defaults to 2000): Reassignments of the permutation test.

    Raises:
        ValueError: If a value is out of range, or cannot work with another one.
    """

    options_title = "what counts"

    region_percent: float = option(10.0, "size of a map's region, in percent of its pixels", interval="(0, 100)")
    same_region: float = option(0.5, "least share in common of regions that are the same")
    different_regions: float = option(0.2, "greatest share in common of regions that differ")
    min_images: int = option(10, "least images of a class that is tested for a bias", minimum=1)
    min_excess: float = option(
        0.25, "least share of a class' region off the object above the other classes'", interval="(0, 1)"
    )
    significance: float = option(0.05, "greatest corrected p-value of a bias", interval="(0, 1)")
    permutations: int = option(2000, "reassignments of the permutation test", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)
        if not 0 <= self.different_regions < self.same_region <= 1:
            raise ValueError(
                "`different_regions` must be smaller than `same_region` and both lie in [0, 1], got "
                f"{self.different_regions!r} and {self.same_region!r}."
            )
        if self.permutations + 1 < 1 / self.significance:
            raise ValueError(
                f"`permutations` {self.permutations} cannot show a p-value of {self.significance}; it needs at least "
                f"{round(1 / self.significance)}."
            )
