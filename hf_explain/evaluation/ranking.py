"""
Which explainer is ahead of which by every metric, image by image, where the metrics do not agree, what another seed
would change, and how much of what is possible is reached.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import torch

from hf_explain.evaluation.results import (
    Agreement,
    Column,
    Comparison,
    Difference,
    ExplainerResult,
    Reach,
    SeedSpread,
)
from hf_explain.metrics.statistics import bootstrap_interval, paired_difference, rank_agreement
from hf_explain.registry import METHOD_ENTRIES


Columns = Mapping[str, Mapping[str, Sequence]]
RANDOM, ORACLE = "random", "oracle"


def seed_groups(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """
    Heads that differ in their seed alone: those called `NAME-seedN`, and `NAME` itself beside them, whose settings are
    the same.

    Args:
        settings (`dict[str, dict]`): By name the configuration of every head, without what tells its weights apart.

    Returns:
        `dict[str, list[str]]`: What they are called together, `"NAME (3 seeds)"`, to their names.
    """
    found: dict[str, list[str]] = {}
    for name in settings:
        numbered = re.fullmatch(r"(.+)-seed\d+", name)
        found.setdefault(numbered[1] if numbered else name, []).append(name)
    return {
        f"{base} ({len(names)} seeds)": names
        for base, names in found.items()
        if len(names) > 1 and all(settings[name] == settings[names[0]] for name in names)
    }


def seed_spreads(
    comparison: Comparison, columns: Columns, groups: Mapping[str, Sequence[str]]
) -> tuple[list[SeedSpread], dict[str, Mapping[str, Sequence]]]:
    """
    Every number of heads that differ in their seed alone, and columns in which they are one explainer.

    Args:
        comparison ([`Comparison`]): What was measured.
        columns (`dict[str, dict[str, list]]`): As for [`paired_differences`].
        groups (`dict[str, list[str]]`): As [`seed_groups`] gives them.

    Returns:
        `tuple`: list of [`SeedSpread`]; and the columns, those of a group the mean of its heads', image by image.
    """
    own = {name: group for group, names in groups.items() for name in names}
    pooled: dict[str, Mapping[str, Sequence]] = {}
    for name, found in columns.items():
        names = groups.get(own.get(name, ""), [name])
        if len(names) == 1:
            pooled[name] = found
        elif name == names[0]:
            pooled[own[name]] = {
                place: torch.tensor([columns[one][place] for one in names], dtype=torch.float64).mean(0).tolist()
                for place, values in found.items()
                if isinstance(values[0], (int, float))
            }
    spreads = []
    for column in comparison.columns():
        for group, names in groups.items():
            values = [comparison.measured[name].value(column.metric, column.key) for name in names]
            numbers = [value for value in values if value is not None]
            if len(numbers) < len(names):
                continue
            images, interval = pooled[group].get(f"{column.metric}/{column.key}"), None
            if images is not None:
                interval = [end.item() for end in bootstrap_interval(torch.tensor(images, dtype=torch.float64))]
            count = comparison.measured[names[0]].num_images or 0
            spread = fmean(numbers), stdev(numbers), interval, count
            spreads.append(SeedSpread(column.metric, column.key, group, list(names), *spread))
    return spreads, pooled


def reached(comparison: Comparison, columns: Columns) -> list[Reach]:
    """
    How much of what is possible every explainer reaches, between random maps and the oracle, by the main number of
    every metric by which the oracle is better than random maps.

    Args:
        comparison ([`Comparison`]): What was measured.
        columns (`dict[str, dict[str, list]]`): As for [`paired_differences`].

    Returns:
        `list[Reach]`: Metric by metric, the best first; empty where the oracle was not measured.
    """
    found = []
    for column in _main_columns(comparison):
        place = f"{column.metric}/{column.key}"
        values = {name: own[place] for name, own in columns.items() if place in own}
        if ORACLE not in values or RANDOM not in values:
            continue
        count = min(len(values[ORACLE]), len(values[RANDOM]))
        means = {name: fmean(own[:count]) for name, own in values.items() if len(own) >= count}
        floor, ceiling = means.pop(RANDOM), means.pop(ORACLE)
        if (ceiling > floor) != column.number.higher_is_better or ceiling == floor:
            continue
        reach = {name: 100 * (mean - floor) / (ceiling - floor) for name, mean in means.items()}
        order = sorted(reach, key=lambda name: -reach[name])
        found += [Reach(column.metric, column.key, name, reach[name], count) for name in order]
    return found


def paired_differences(comparison: Comparison, columns: Columns) -> list[Difference]:
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
        values = {name: own[place] for name, own in columns.items() if place in own}
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
        means = [comparison.means(column.metric, column.key) for column in (one, other)]
        controls = {name for name, result in comparison.measured.items() if is_control(name, result)}
        names = [name for name in means[0] if name in means[1] and name not in controls]
        if len(names) < 2:
            continue
        signs = torch.tensor([1.0 if column.number.higher_is_better else -1.0 for column in (one, other)])
        values = torch.tensor([[mean[name] for mean in means] for name in names], dtype=torch.float64)
        first, second = (values * signs).unbind(1)
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
    with, by the interval of their difference; by the metric's main number and those that say they rank.
    """
    for column in standing_columns(comparison):
        own = [one for one in comparison.differences if (one.metric, one.key) == (column.metric, column.key)]
        if not own:
            continue
        means = comparison.means(column.metric, column.key)
        order = sorted(means, key=lambda name: means[name], reverse=bool(column.number.higher_is_better))
        rows = []
        for name in order:
            behind = [one.second for one in own if one.first == name and one.is_ahead]
            level = [
                one.second if one.first == name else one.first for one in own if name in one.pair and one.is_level
            ]
            places = order.index
            rows.append((name, f"{means[name]:.2f}", sorted(behind, key=places), sorted(level, key=places)))
        yield column.number.heading_of(column.key), rows


def standing_columns(comparison: Comparison) -> Iterator[Column]:
    """The numbers by which it is told who is ahead."""
    main = set(_main_columns(comparison))
    yield from (one for one in comparison.columns() if one in main or one.number.ranks)


def _main_columns(comparison: Comparison) -> Iterator[Column]:
    """The main number of every metric that has a direction."""
    seen = set()
    for column in comparison.columns():
        if column.metric not in seen and column.number.higher_is_better is not None:
            seen.add(column.metric)
            yield column
