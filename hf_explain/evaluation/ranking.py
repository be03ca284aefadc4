"""Which explainer is ahead of which by every metric, image by image, and where the metrics do not agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch

from hf_explain.evaluation.results import Agreement, Column, Comparison, Difference, ExplainerResult
from hf_explain.metrics.statistics import paired_difference, rank_agreement
from hf_explain.registry import METHOD_ENTRIES


def paired_differences(comparison: Comparison, columns: Mapping[str, Mapping[str, Sequence]]) -> list[Difference]:
    """
    Every two explainers by every number that has a direction and one value per image.

    Args:
        comparison ([`Comparison`]): What was measured.
        columns (`dict[str, dict[str, list]]`): By explainer, the values of every image as `METRIC/KEY`. An explainer
            with fewer images was measured on the first of them; a pair is compared on those that both have.

    Returns:
        `list[Difference]`: Metric by metric, of each pair the one that is ahead first.
    """
    found = []
    for column in comparison.columns():
        direction, place = column.number.higher_is_better, f"{column.metric}/{column.key}"
        values = {name: own[place] for name, own in columns.items() if place in own and name in comparison.measured}
        if direction is None or column.metric == "win_rate":
            continue
        if any(isinstance(entry, list) for own in values.values() for entry in own[:1]):
            continue  # a curve of the number's name, as ROAD's of each order
        pairs_of = defaultdict(list)  # those with equally many images are resampled together
        for first, second in combinations(values, 2):
            pairs_of[min(len(values[first]), len(values[second]))].append((first, second))
        for count, pairs in pairs_of.items():
            tensors = {
                name: torch.tensor(values[name][:count], dtype=torch.float64) for pair in pairs for name in pair
            }
            scores, others = (torch.stack([tensors[pair[side]] for pair in pairs], dim=1) for side in (0, 1))
            ahead = paired_difference(scores, others, higher_is_better=direction)
            for pair, mean, *ends in zip(pairs, *(one.tolist() for one in (ahead.difference, ahead.low, ahead.high))):
                names = pair if mean >= 0 else pair[::-1]
                interval = ends if mean >= 0 else [-ends[1], -ends[0]]
                found.append(Difference(column.metric, column.key, names[0], names[1], abs(mean), interval, count))
    return found


def is_control(name: str, result: ExplainerResult) -> bool:
    """Whether an explainer is there for comparison alone: a control, or the maps of another one in another form."""
    method = METHOD_ENTRIES.get(result.explainer.get("explainer", name))
    return "form" in result.explainer or method is not None and method.control


def metric_agreement(comparison: Comparison) -> list[Agreement]:
    """
    How far every two metrics put the explainers in the same order, by Kendall's τ-b between their main numbers.

    Controls do not count: every metric puts them last, which says nothing about the others.

    Args:
        comparison ([`Comparison`]): With its `differences`.

    Returns:
        `list[Agreement]`: Those that agree least first.
    """
    columns = [column for column in _main_columns(comparison) if column.metric != "win_rate"]
    ahead = {(one.metric, one.key, one.first, one.second) for one in comparison.differences if one.is_ahead}
    found = []
    for one, other in combinations(columns, 2):
        values = {
            name: (result.value(one.metric, one.key), result.value(other.metric, other.key))
            for name, result in comparison.measured.items()
            if not is_control(name, result)
        }
        names = [name for name, pair in values.items() if None not in pair]
        if len(names) < 2:
            continue
        signs = torch.tensor([1.0 if column.number.higher_is_better else -1.0 for column in (one, other)])
        first, second = (torch.tensor([values[name] for name in names], dtype=torch.float64) * signs).unbind(1)
        contradictions = [
            [better, worse]
            for metric, key, better, worse in sorted(ahead)
            if (metric, key) == (one.metric, one.key)
            and {better, worse} <= set(names)
            and (other.metric, other.key, worse, better) in ahead
        ]
        found.append(Agreement(one.metric, other.metric, rank_agreement(first, second), len(names), contradictions))
    return sorted(found, key=lambda one: 2.0 if one.tau is None else one.tau)


def standings(comparison: Comparison) -> Iterator[tuple[str, list[tuple[str, str, list[str], list[str]]]]]:
    """
    Every metric's heading, and its explainers, the best first: name, number, those it is ahead of, those it is level
    with, by the interval of their difference.
    """
    for column in _main_columns(comparison):
        own = [one for one in comparison.differences if (one.metric, one.key) == (column.metric, column.key)]
        if not own:
            continue
        means = {name: result.value(column.metric, column.key) for name, result in comparison.measured.items()}
        measured = [(name, mean) for name, mean in means.items() if mean is not None]
        order = [
            name for name, _ in sorted(measured, key=lambda one: one[1], reverse=bool(column.number.higher_is_better))
        ]
        rows = []
        for name in order:
            behind = [one.second for one in own if one.first == name and one.is_ahead]
            level = [
                one.second if one.first == name else one.first for one in own if name in one.pair and one.is_level
            ]
            places = order.index
            rows.append((name, f"{means[name]:.2f}", sorted(behind, key=places), sorted(level, key=places)))
        yield column.number.heading_of(column.key), rows


def _main_columns(comparison: Comparison) -> Iterator[Column]:
    """The main number of every metric that has a direction."""
    seen = set()
    for column in comparison.columns():
        if column.metric not in seen and column.number.higher_is_better is not None:
            seen.add(column.metric)
            yield column
