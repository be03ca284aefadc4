"""What an evaluation and a comparison found, as objects: the classes that write the JSON files also read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from hf_explain.metrics import metric_numbers, names, split_name
from hf_explain.metrics.number import Number, find_number


# Of a comparison's JSON. Format 1 has no `format` and no `numbers`; see `_upgrade`.
FORMAT = 2
# What explaining cost, in the order of a table
COST = ("num_images", "seconds_per_image", "forward_passes_per_image", "tail_passes_per_image")
# What a metric's result has beside its numbers
_MEASURED = ("num_images", "protocol", "seconds_per_image", "forward_passes_per_image")


@dataclass
class MetricResult:
    """
    One metric of one explainer, as the metric's `compute` gives it.

    Args:
        numbers (`dict[str, float]`): Means over the images, by key.
        intervals (`dict[str, list[float]]`): Low and high end of a number's bootstrap interval, by its key.
        curves (`dict[str, list[float]]`): Means over the images, one number per step.
        protocol (`dict`): How it was measured.
        num_images (`int`, *optional*): Images measured.
        seconds_per_image, forward_passes_per_image (`float`, *optional*): What measuring cost.
        other (`dict`): Whatever else a custom metric returns.
    """

    numbers: dict[str, float]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    seconds_per_image: float | None = None
    forward_passes_per_image: float | None = None
    other: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary, the intervals as `KEY_interval` and the curves as `KEY_curve`."""
        found: dict[str, Any] = {}
        for key, value in self.numbers.items():
            found[key] = value
            if key in self.intervals:
                found[f"{key}_interval"] = self.intervals[key]
        found |= {f"{key}_curve": values for key, values in self.curves.items()}
        return {**found, **self.other, **_recorded(self, *_MEASURED)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MetricResult:
        """What `to_json` wrote, or a metric's `compute` gave."""
        rest = {key: entry for key, entry in value.items() if key not in _MEASURED}
        numbers = {key: rest.pop(key) for key, entry in value.items() if key in rest and _is_number(entry)}
        intervals = {key: rest.pop(f"{key}_interval") for key in numbers if f"{key}_interval" in rest}
        named = [key for key, entry in rest.items() if key.endswith("_curve") and isinstance(entry, list)]
        curves = {key.removesuffix("_curve"): rest.pop(key) for key in named}
        measured = {key: value[key] for key in _MEASURED if key in value}
        return cls(numbers, intervals, curves, **measured, other=rest)


@dataclass
class SanityResult:
    """
    What [`~hf_explain.evaluation.sanity.check_sanity`] found.

    Args:
        passed (`bool`): Whether the checks that can fail passed.
        verdict (`str`): The same in one line, with the reasons.
        checks (`dict[str, dict]`): Name to `passed` and numbers.
        cascade (`list[dict]`): The number of tensors redrawn, similarity, AUC-D and gain kept.
        independent (`list[dict]`, *optional*): The same where only one part of the layers is redrawn.
        own_auc_d, random_map_auc_d, centre_auc_d (`float`): AUC-D of the explainer and of the controls.
        thresholds (`dict[str, float]`): What decided.
        num_images, seed (`int`): Of the checks.
    """

    passed: bool
    verdict: str | None = None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    cascade: list[dict[str, Any]] = field(default_factory=list)
    independent: list[dict[str, Any]] | None = None
    own_auc_d: float | None = None
    random_map_auc_d: float | None = None
    centre_auc_d: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    num_images: int | None = None
    seed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every field."""
        return _recorded(self, *(one.name for one in fields(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SanityResult:
        """What `to_json` wrote."""
        return _from_recorded(cls, value)


@dataclass
class ExplainerResult:
    """
    One explainer on a data set.

    Args:
        metrics (`dict[str, MetricResult]`): By name.
        explainer (`dict`): Names, options and checksums that identify it.
        num_images (`int`, *optional*): Images explained.
        seconds_per_image, forward_passes_per_image, tail_passes_per_image (`float`, *optional*): What explaining alone
            cost; a tail pass enters the classifier at an inner layer.
        sanity ([`SanityResult`], *optional*): The sanity checks, where they ran.
    """

    metrics: dict[str, MetricResult]
    explainer: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    seconds_per_image: float | None = None
    forward_passes_per_image: float | None = None
    tail_passes_per_image: float | None = None
    sanity: SanityResult | None = None

    def value(self, metric: str, key: str) -> float | None:
        """A number of a metric, where it was measured."""
        return self.metrics[metric].numbers.get(key) if metric in self.metrics else None

    def interval(self, metric: str, key: str) -> list[float] | None:
        """Its bootstrap interval, where there is one."""
        return self.metrics[metric].intervals.get(key) if metric in self.metrics else None

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every metric and one for every other field."""
        found = {name: result.to_json() for name, result in self.metrics.items()}
        found |= _recorded(self, *COST, "explainer")
        return found if self.sanity is None else {**found, "sanity": self.sanity.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ExplainerResult:
        """What `to_json` wrote, here or in an [`EvaluationResult`]."""
        others = {one.name for kind in (cls, EvaluationResult) for one in fields(kind)} | {"columns"}
        metrics = {
            name: MetricResult.from_json(entry)
            for name, entry in value.items()
            if name not in others and isinstance(entry, Mapping)
        }
        sanity = SanityResult.from_json(value["sanity"]) if value.get("sanity") else None
        return _from_recorded(cls, {**value, "sanity": sanity}, metrics=metrics)


@dataclass
class FailedExplainer:
    """An explainer that could not be measured, with the reason."""

    error: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary with the reason."""
        return {"error": self.error}


@dataclass
class EvaluationResult:
    """
    What [`SaliencyEvaluator`] found, and under what circumstances.

    Args:
        found ([`ExplainerResult`]): The numbers.
        dataset, settings, versions (`dict`): What they were measured on and how, and the packages' versions.
        device (`str`, *optional*): Type of the device.
    """

    found: ExplainerResult
    dataset: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None

    def to_json(self) -> dict[str, Any]:
        """One dictionary with the keys of `found` and one for every other field."""
        return {**self.found.to_json(), **_recorded(self, "dataset", "settings", "versions", "device")}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvaluationResult:
        """What `to_json` wrote."""
        return _from_recorded(cls, value, found=ExplainerResult.from_json(value))


class Column(NamedTuple):
    """A number that explainers are compared by."""

    metric: str
    key: str
    number: Number


@dataclass
class Difference:
    """
    How far one explainer is ahead of another one by one number, on the same images.

    Args:
        metric, key (`str`): The number.
        first, second (`str`): The explainers, the better one first.
        difference (`float`): Mean over the images, at least 0.
        interval (`list[float]`): Its 95 % bootstrap interval over images.
        num_images (`int`): Images that both were measured on.
    """

    metric: str
    key: str
    first: str
    second: str
    difference: float
    interval: list[float]
    num_images: int

    @property
    def pair(self) -> tuple[str, str]:
        """The two explainers."""
        return self.first, self.second

    @property
    def is_ahead(self) -> bool:
        """Whether the interval lies above 0."""
        return self.interval[0] > 0

    @property
    def is_level(self) -> bool:
        """Whether it does not."""
        return not self.is_ahead

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every field."""
        return _recorded(self, *(one.name for one in fields(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Difference:
        """What `to_json` wrote."""
        return _from_recorded(cls, value)


@dataclass
class Agreement:
    """
    How far two metrics put the explainers in the same order.

    Args:
        metric, other (`str`): The metrics, by their main numbers.
        tau (`float`, *optional*): Kendall's τ-b in [−1, 1]; `None` where one of them has no order.
        num_explainers (`int`): Explainers that both measured, without controls.
        contradictions (`list[list[str]]`): Two explainers each: by `metric` the first is ahead of the second, by
            `other` it is behind, both by intervals that do not hold 0.
    """

    metric: str
    other: str
    tau: float | None
    num_explainers: int
    contradictions: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every field."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Agreement:
        """What `to_json` wrote."""
        return _from_recorded(cls, value)


@dataclass
class SeedSpread:
    """
    One number of heads that differ in their seed alone: two sources of spread, which are not to be mixed.

    Args:
        metric, key (`str`): The number.
        name (`str`): What the heads are called together.
        explainers (`list[str]`): Their own names.
        mean (`float`): Mean of the heads' numbers.
        deviation (`float`): Standard deviation of the heads' numbers: what another seed may change.
        interval (`list[float]`, *optional*): 95 % bootstrap interval over images of the mean of the heads, image by
            image: what other images may change. `None` where the number has no value per image.
        num_images (`int`): Images that all of them were measured on.
    """

    metric: str
    key: str
    name: str
    explainers: list[str]
    mean: float
    deviation: float
    interval: list[float] | None
    num_images: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every field."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SeedSpread:
        """What `to_json` wrote."""
        return _from_recorded(cls, value)


@dataclass
class Reach:
    """
    How much of what is possible an explainer reaches by one number.

    Args:
        metric, key (`str`): The number.
        explainer (`str`): The explainer.
        percent (`float`): 0 is what random maps get and 100 what the oracle gets, both on the same images.
        num_images (`int`): Those images: the ones that the oracle was measured on.
    """

    metric: str
    key: str
    explainer: str
    percent: float
    num_images: int

    def to_json(self) -> dict[str, Any]:
        """A dictionary with a key for every field."""
        return _recorded(self, *(one.name for one in fields(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reach:
        """What `to_json` wrote."""
        return _from_recorded(cls, value)


@dataclass
class Comparison:
    """
    Several explainers of one classifier on the same images: `results.json`.

    Args:
        explainers (`dict[str, ExplainerResult or FailedExplainer]`): By name, in the order of the table.
        classifier (`dict`): `id`, `classifier_fingerprint`, `num_labels` and the like.
        dataset, settings, versions, device: As for [`EvaluationResult`].
        num_images (`int`, *optional*): Images that most of them were measured on.
        numbers (`dict[str, tuple[Number, ...]]`): What the metrics say of their numbers, by metric.
        differences (`list[Difference]`): Every two explainers by every number; empty in results of earlier versions.
            Heads that differ in their seed alone are one explainer here.
        agreement (`list[Agreement]`): Every two metrics, those that agree least first; likewise.
        seeds (`list[SeedSpread]`): Every number of such heads; empty where there are none.
        reach (`list[Reach]`): Every explainer by the main number of every metric; empty without the oracle.
    """

    explainers: dict[str, ExplainerResult | FailedExplainer]
    classifier: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str | None = None
    numbers: dict[str, tuple[Number, ...]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    agreement: list[Agreement] = field(default_factory=list)
    seeds: list[SeedSpread] = field(default_factory=list)
    reach: list[Reach] = field(default_factory=list)

    @property
    def measured(self) -> dict[str, ExplainerResult]:
        """The explainers that did not fail."""
        return {name: one for name, one in self.explainers.items() if isinstance(one, ExplainerResult)}

    def means(self, metric: str, key: str) -> dict[str, float]:
        """A number of every explainer that has it; heads that differ in their seed alone are one, by their mean."""
        spreads = [one for one in self.seeds if (one.metric, one.key) == (metric, key)]
        one_of = {name: one for one in spreads for name in one.explainers}
        found: dict[str, float] = {}
        for name, result in self.measured.items():
            value = one_of[name].mean if name in one_of else result.value(metric, key)
            if value is not None:
                found[one_of[name].name if name in one_of else name] = value
        return found

    def number(self, metric: str, key: str) -> Number:
        """What `key` of a metric's result is."""
        return find_number(self.numbers.get(metric, ()), key)

    def columns(self) -> Iterator[Column]:
        """Every number that was measured: metric by metric, the main number of each first."""
        found: dict[str, dict[str, None]] = {}
        for result in self.measured.values():
            for metric, one in result.metrics.items():
                found.setdefault(metric, {}).update(dict.fromkeys(one.numbers))
        for metric, keys in found.items():
            main = self.numbers[metric][0].key if self.numbers.get(metric) else metric
            for key in sorted(keys, key=lambda key: key != main):
                yield Column(metric, key, self.number(metric, key))

    def distinct_columns(self) -> list[Column]:
        """The same without a main number that is the first of a series, such as the average drop at 100 %."""
        columns = list(self.columns())
        series = {column.number.key for column in columns if column.key != column.number.key}
        return [column for column in columns if column.key not in series]

    def to_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        found = _recorded(self, "classifier", "dataset", "num_images", "settings", "versions", "device")
        numbers = {metric: [number.to_json() for number in own] for metric, own in self.numbers.items()}
        explainers = {name: one.to_json() for name, one in self.explainers.items()}
        found = {"format": FORMAT, "explainers": explainers, **found, "numbers": numbers}
        for name in ("differences", "agreement", "seeds", "reach"):
            if entries := getattr(self, name):
                found[name] = [one.to_json() for one in entries]
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Comparison:
        """
        What `to_json` wrote, in this version or an earlier one.

        Raises:
            ValueError: If it is not a comparison, or was written by a later version.
        """
        if not isinstance(value.get("explainers"), Mapping):
            raise ValueError("it has no `explainers`; give the results.json of an evaluation.")
        if value.get("format", 1) not in range(1, FORMAT + 1):
            raise ValueError(f"it has format {value['format']!r}, of a later version; this one reads up to {FORMAT}.")
        value = _upgrade(value)
        explainers = {
            name: FailedExplainer(one["error"]) if "error" in one else ExplainerResult.from_json(one)
            for name, one in value["explainers"].items()
        }
        numbers = {metric: tuple(map(Number.from_json, own)) for metric, own in value["numbers"].items()}
        differences = [Difference.from_json(one) for one in value.get("differences", ())]
        agreement = [Agreement.from_json(one) for one in value.get("agreement", ())]
        made = {"explainers": explainers, "numbers": numbers, "differences": differences, "agreement": agreement}
        made["seeds"] = [SeedSpread.from_json(one) for one in value.get("seeds", ())]
        made["reach"] = [Reach.from_json(one) for one in value.get("reach", ())]
        return _from_recorded(cls, value, **made)


def read_evaluation(value: Mapping[str, Any]) -> Comparison:
    """
    A comparison, or the result of a single evaluation as a comparison of one.

    Args:
        value (`dict`): `results.json` of a comparison, or what [`SaliencyEvaluator`] returned or wrote.

    Returns:
        [`Comparison`].

    Raises:
        ValueError: If it is neither.
    """
    if "explainers" in value or "settings" not in value or "explainer" not in value:
        return Comparison.from_json(value)
    result = EvaluationResult.from_json(value)
    return Comparison(
        {result.found.explainer["explainer"]: result.found},
        {"id": result.found.explainer["classifier"]},
        result.dataset,
        result.found.num_images,
        result.settings,
        result.versions,
        result.device,
        _known_numbers(result.found.metrics),
    )


# ------------------------------------------------------------------------------------------------- what JSON has of it


def _recorded(value: Any, *names: str) -> dict[str, Any]:
    """Fields of an object, without those that are `None`."""
    return {name: found for name in names if (found := getattr(value, name)) is not None}


def _from_recorded(kind: type, value: Mapping[str, Any], **made: Any) -> Any:
    """An object from its fields in `value` and those `made` by the caller; other keys are ignored."""
    return kind(
        **{one.name: value[one.name] for one in fields(kind) if one.name in value and one.name not in made}, **made
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _known_numbers(metrics: Mapping[str, Any]) -> dict[str, tuple[Number, ...]]:
    """What this package's metrics say of their numbers; no other metric could be in a result of format 1."""
    known = names()
    return {metric: metric_numbers(metric) for metric in metrics if split_name(metric)[0] in known}


def _upgrade(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A comparison's JSON of an earlier version, as this one writes it."""
    if "format" in value:
        return value
    if "made_by" in value:
        value = {
            **value,
            "explainers": {name: _from_quickstart(row, value) for name, row in value["explainers"].items()},
        }
    metrics = dict.fromkeys(metric for one in value["explainers"].values() for metric in one)
    numbers = {metric: [number.to_json() for number in own] for metric, own in _known_numbers(metrics).items()}
    return {**value, "numbers": numbers}


def _from_quickstart(row: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the quickstart's results.json, whose metrics lie side by side."""
    protocol = value.get("protocol", {})
    drops = {f"average_drop_{percent}": number for percent, number in row.get("AD", {}).items()}
    gains = {f"increase_in_confidence_{percent}": number for percent, number in row.get("IC", {}).items()}
    areas = {key: number for key, number in row.items() if "auc" in key}
    return {
        "auc_d": {**areas, "protocol": protocol.get("auc_d", {})},
        "average_drop": {**drops, **gains, "protocol": protocol.get("average_drop", {})},
    }
