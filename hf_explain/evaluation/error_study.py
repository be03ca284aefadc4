"""What a classifier's mistakes have in common: where it looked for its answer, for the true class, and for each class.

Source: the qualitative study of L-CAM (ECCV Workshops 2022), made countable.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hf_explain.evaluation.arguments import ErrorStudyArguments, EvaluationArguments
from hf_explain.evaluation.explainer import Explainer, evaluating, resolve_explainer
from hf_explain.evaluation.inputs import Example, ExampleReader, choose_precision
from hf_explain.evaluation.partial_results import check_rows, claim, give_back, read_shards, write_shard
from hf_explain.heads.modeling_explainer import check_output
from hf_explain.io.processes import package_versions
from hf_explain.metrics.localization import pointing
from hf_explain.metrics.regions import BORDER_PLACES, border_shares, region_overlap, top_region
from hf_explain.metrics.statistics import GroupExcess, group_excess
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.scalars import check_count


GROUPS = ("same_region", "ambiguous", "different_regions", "no_map")
OFF_OBJECT = "off the object"
_GRID = (32, 32)  # of the mean regions: what a page shows, however large the images
_FORMAT = 1  # of the partial results; raised when their content changes


@dataclass
class ErrorStudy:
    """
    What [`study_errors`] found.

    Args:
        result (`dict`): Everything, as JSON: counts, `groups`, `pairs`, `errors`, `class_biases`, `protocol`.
        explainer ([`Explainer`]): What made the maps.
        reader ([`ExampleReader`]): Reads the images again, for pictures.
        evidence (`dict[int, list[int]]`): For each biased class the images that show it, the clearest first.
        mean_regions (`dict[int, tuple[torch.Tensor, torch.Tensor]]`): For each biased class the mean region of its
            images and of all others, `(32, 32)` each.
    """

    result: dict[str, Any]
    explainer: Explainer
    reader: ExampleReader
    evidence: dict[int, list[int]]
    mean_regions: dict[int, tuple[torch.Tensor, torch.Tensor]]


def study_errors(
    model_or_pipeline,
    data,
    arguments: ErrorStudyArguments | None = None,
    *,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mask_column: str | None = None,
    batch_size: int = EvaluationArguments.batch_size,
    max_examples: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    output_dir: str | os.PathLike | None = None,
    shard_size: int = EvaluationArguments.shard_size,
    dtype: str = EvaluationArguments.dtype,
    dataset_info: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ErrorStudy:
    """
    Explain every image for the classifier's own answer, and every mistake for the true class as well.

    Mistakes are grouped by how much of the two maps' regions is common: the *same region* speaks of related classes,
    *different regions* of several objects in the image. The classes are tested for a bias: one whose maps lie off the
    object (with `mask_column`), or at one place of the border (without), far more than those of the other classes.

    Args:
        model_or_pipeline (`str`, [`SaliencyPipeline`], [`ExplainerPreTrainedModel`], [`FrozenClassifier`] or
            `torch.nn.Module`): What explains; its classifier is what is studied.
        data: `datasets` data set, map-style or streaming, or a sequence of dictionaries.
        arguments ([`ErrorStudyArguments`], *optional*): Thresholds.
        method (`str`, *optional*): A training-free method instead of the head.
        method_options (`dict`, *optional*): Its options.
        image_column, label_column (`str`, *optional*): Columns; found by their types where not given.
        mask_column (`str`, *optional*): Masks of the object, as large as the image.
        batch_size (`int`, *optional*, defaults to 8): Images per pass.
        max_examples (`int`, *optional*): Use only this many images, the first ones.
        seed (`int`, *optional*, defaults to 0): Seed of everything random.
        device (*optional*): Device of a model that is given by name.
        output_dir (`str` or `os.PathLike`, *optional*): Folder for partial results: a study that was killed continues
            there with the same call.
        shard_size (`int`, *optional*, defaults to 64): Images per partial result.
        dtype (`str`, *optional*, defaults to `"float32"`): As for [`SaliencyEvaluator.compute`].
        dataset_info (`dict`, *optional*): Name, split, revision and the like, for the result.
        progress (`bool`, *optional*, defaults to `True`): Shows a bar.

    Returns:
        [`ErrorStudy`].

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a column is missing, a label is not one of the classifier's, an image cannot be used, or
            `output_dir` holds the partial results of another study.
        OSError: If `output_dir` cannot be written to, or another run is using it.
    """
    arguments = arguments or ErrorStudyArguments()
    check_count(batch_size, "batch_size")
    check_count(shard_size, "shard_size")
    explainer = resolve_explainer(model_or_pipeline, method, method_options, seed, device)
    classifier = explainer.classifier
    if getattr(classifier.config, "problem_type", None) == "multi_label_classification" or classifier.num_labels < 2:
        raise ValueError(
            "`model_or_pipeline` is not a classifier with one answer out of several per image; errors are defined for "
            "those only."
        )
    reader = ExampleReader(
        data, explainer, image_column, label_column, mask_column, need_labels=True, max_examples=max_examples
    )
    _check_labels(data, reader.label_column, classifier)
    dataset = {**reader.identity, **dict(dataset_info or {})}
    folder = None if output_dir is None else Path(output_dir)
    precision = choose_precision(dtype, explainer, reader, batch_size)
    identity = {**explainer.identity, **precision.settings(classifier, explainer.allows_bfloat16)}
    settings = {
        "format": _FORMAT,
        "explainer": identity,
        "dataset": dataset,
        "columns": [reader.image_column, reader.label_column, reader.mask_column],
        "region_percent": arguments.region_percent,
        "max_examples": max_examples,
        "shard_size": shard_size,
    }
    seen = _Seen(classifier.num_labels)
    with contextlib.ExitStack() as held:
        if folder is not None:
            claim(folder, json.loads(json.dumps(settings, default=str)), held)
        finished = read_shards(folder)
        bar = held.enter_context(tqdm(total=reader.total, unit="image", desc="errors", disable=not progress))
        try:
            for shard, rows in reader.shards(shard_size, lambda shard: True):
                checksum = reader.checksum(rows)
                if shard in finished:
                    check_rows(folder, finished[shard], checksum)
                    bar.update(len(rows))
                else:
                    with precision.passes(classifier, explainer.allows_bfloat16):
                        part = _look_at(rows, reader, explainer, arguments, batch_size, bar)
                    finished[shard] = {"shard": shard, "start": rows[0][0], "rows_sha256": checksum, **part.to_json()}
                    if folder is not None:
                        write_shard(folder, shard, finished[shard])
                seen.add_part(finished.pop(shard))
            for record in finished.values():  # a stream that has become shorter
                check_rows(folder, record, "")
        except Exception:
            give_back(folder)
            raise
    study = _summarize(seen, arguments, explainer, reader, seed, dataset)
    study.result["protocol"] |= precision.protocol(classifier, explainer.allows_bfloat16)
    return study


def _check_labels(data, label_column: str | None, classifier) -> None:
    names = getattr((getattr(data, "features", None) or {}).get(label_column), "names", None)
    if names and len(names) != classifier.num_labels:
        raise ValueError(
            f"label_column {label_column!r} has {len(names)} classes and the classifier {classifier.num_labels}, so "
            "that its numbers are not the classifier's; give a column with the classifier's own label names as text."
        )


# --------------------------------------------------------------------------------------------------------- the looking


@dataclass
class _Seen:
    """What is kept of the maps: a few numbers per image, and sums."""

    num_labels: int
    columns: dict[str, list] = field(default_factory=dict)
    errors: dict[int, dict[str, Any]] = field(default_factory=dict)
    region_sums: torch.Tensor = field(init=False)
    pair_sums: torch.Tensor = field(init=False)
    common: float = 0.0

    def __post_init__(self) -> None:
        self.region_sums = torch.zeros(self.num_labels, *_GRID, dtype=torch.float64)  # by answer
        self.pair_sums = torch.zeros(2, *_GRID, dtype=torch.float64)  # of mistakes: of the answer, of the true class

    def add(self, **columns: torch.Tensor) -> None:
        for name, values in columns.items():
            self.columns.setdefault(name, []).extend(values.tolist())

    def to_json(self) -> dict[str, Any]:
        """All of it, as a partial result keeps it."""
        classes = sorted(set(self.columns["prediction"]))
        return {
            "columns": self.columns,
            "errors": [[image, found] for image, found in self.errors.items()],
            "classes": classes,  # of the others the sums are 0
            "region_sums": _encoded(self.region_sums[classes]),
            "pair_sums": _encoded(self.pair_sums),
            "common": self.common,
        }

    def add_part(self, part: Mapping[str, Any]) -> None:
        """Add what `to_json` gave for the images that come next."""
        for name, values in part["columns"].items():
            self.columns.setdefault(name, []).extend(values)
        self.errors.update(part["errors"])
        self.region_sums[part["classes"]] += _decoded(part["region_sums"])
        self.pair_sums += _decoded(part["pair_sums"])
        self.common += part["common"]


def _encoded(sums: torch.Tensor) -> str:
    return base64.b64encode(sums.numpy().tobytes()).decode()


def _decoded(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float64).view(-1, *_GRID)


def _look_at(
    rows: list, reader: ExampleReader, explainer: Explainer, arguments: ErrorStudyArguments, batch_size: int, bar: tqdm
) -> _Seen:
    """What is seen in some rows."""
    seen = _Seen(explainer.classifier.num_labels)
    for start in range(0, len(rows), batch_size):
        examples = [reader.read(index, row) for index, row in rows[start : start + batch_size]]
        # an image processor may leave images of different sizes; those of one size go together
        sizes: dict[tuple[int, ...], list[Example]] = {}
        for example in examples:
            sizes.setdefault(tuple(example.pixel_values.shape), []).append(example)
        for batch in sizes.values():
            _look(batch, explainer, arguments, seen)
            bar.update(len(batch))
    return seen


def _look(batch: list[Example], explainer: Explainer, arguments: ErrorStudyArguments, seen: _Seen) -> None:
    classifier = explainer.classifier
    pixel_values = torch.stack([example.pixel_values for example in batch])
    pixel_values = pixel_values.to(device=classifier.device, dtype=classifier.dtype)
    ids = torch.tensor([example.index for example in batch])
    labels = torch.tensor([example.label for example in batch], device=classifier.device)
    size = tuple(pixel_values.shape[-2:])

    own, true, logits, wrong = maps_of_both(explainer, pixel_values, labels, ids)
    own, true = (resize_maps(maps.float(), size).clamp(0, 1) for maps in (own, true))
    prediction, scores = logits.argmax(-1), logits.float().softmax(-1)
    region = top_region(own, arguments.region_percent)
    grid = resize_maps(region.float(), _GRID).cpu().double()
    seen.region_sums.index_add_(0, prediction.cpu(), grid)
    has_map = region.flatten(1).any(1)
    seen.add(
        image=ids,
        label=labels,
        prediction=prediction,
        confidence=scores.gather(1, prediction[:, None])[:, 0],
        has_map=has_map,
        border=border_shares(region),
    )
    if batch[0].mask is not None:
        masks = torch.stack([example.mask for example in batch if example.mask is not None]).to(classifier.device) != 0
        visible = masks.flatten(1).any(1)
        # a region can be larger or smaller than the object: the share is of what can lie on it
        room = torch.minimum(region.flatten(1).sum(1), masks.flatten(1).sum(1)).clamp(min=1)
        energy = torch.zeros(len(batch), device=classifier.device)
        if bool(visible.any()):
            energy[visible] = pointing(own[visible], masks[visible]).energy.to(energy)
        seen.add(
            visible=visible,
            off_object=1 - (region & masks).flatten(1).sum(1) / room,
            energy_on_object=energy,
        )
    if len(true) == 0:
        return
    region, true_region = region[wrong], top_region(true, arguments.region_percent)
    overlap = region_overlap(region, true_region)
    both = has_map[wrong] & true_region.flatten(1).any(1)
    # the overlap to expect of random regions of these sizes
    sizes = region.flatten(1).float().mean(1), true_region.flatten(1).float().mean(1)
    chance = 2 * sizes[0] * sizes[1] / (sizes[0] + sizes[1]).clamp(min=1e-12)
    grids = torch.stack([grid[wrong.cpu()], resize_maps(true_region.float(), _GRID).cpu().double()])
    seen.pair_sums += grids.sum(1)
    seen.common += (grids[0] * grids[1]).sum().item()
    names = ("overlap", "chance", "both", "confidence_label")
    columns = (overlap, chance, both, scores[wrong].gather(1, labels[wrong, None])[:, 0])
    entries = zip(ids[wrong.cpu()].tolist(), *(column.tolist() for column in columns))
    seen.errors.update((index, dict(zip(names, values))) for index, *values in entries)


def maps_of_both(
    explainer: Explainer, pixel_values: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Maps of the classifier's own answer for every image, and of the true class where the two differ.

    A trained head gives both from one pass of the classifier; a training-free method runs again, on the mistakes
    only.

    Args:
        explainer ([`Explainer`]): What explains.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Images.
        labels (`torch.LongTensor` of shape `(batch_size,)`): True classes.
        ids (`torch.LongTensor` of shape `(batch_size,)`): Indices of the images, for methods that draw random numbers.

    Returns:
        `tuple`: maps `(batch_size, h, w)`, maps of the true class `(num_errors, h, w)`, logits
        `(batch_size, num_labels)`, and which images are mistakes `(batch_size,)`.
    """
    head = explainer.head
    if head is not None:
        with evaluating(head), torch.no_grad():
            features = head.forward_features(pixel_values)
            output = check_output(head.forward_head(features))
            wrong = output.target != labels
            true = output.saliency
            if bool(wrong.any()):
                true = check_output(head.forward_head(features, labels)).saliency
        return output.saliency, true[wrong], output.logits, wrong
    output = explainer.explain(pixel_values, None, ids)
    wrong = output.target != labels
    true = output.saliency[:0]
    if bool(wrong.any()):
        true = explainer.explain(pixel_values[wrong], labels[wrong], ids[wrong.to(ids.device)]).saliency
    return output.saliency, true, output.logits, wrong


# --------------------------------------------------------------------------------------------------------- the summary


def _summarize(seen: _Seen, arguments, explainer, reader, seed: int, dataset: dict[str, Any]) -> ErrorStudy:
    names = {index: str(name) for index, name in explainer.classifier.id2label.items()}
    columns = seen.columns
    predicted = dict(zip(columns["image"], zip(columns["label"], columns["prediction"], columns["confidence"])))
    errors = []
    for image, found in seen.errors.items():
        label, prediction, confidence = predicted[image]
        errors.append(
            {
                "image": image,
                "label": label,
                "label_name": names[label],
                "prediction": prediction,
                "prediction_name": names[prediction],
                "confidence": confidence,
                "confidence_label": found["confidence_label"],
                "overlap": found["overlap"] if found["both"] else None,
                "group": _group(found["overlap"] if found["both"] else None, arguments),
            }
        )
    overlaps = [error["overlap"] for error in errors if error["overlap"] is not None]
    chances = [found["chance"] for found in seen.errors.values() if found["both"]]
    biases, evidence, mean_regions = _class_biases(seen, arguments, names, reader.mask_column is not None, seed)
    num_images = len(columns["image"])
    result = {
        "num_images": num_images,
        "num_errors": len(errors),
        "accuracy": 1 - len(errors) / num_images,
        "groups": {group: sum(error["group"] == group for error in errors) for group in GROUPS},
        "overlap": {
            "mean": _mean(overlaps),
            "random_regions": _mean(chances),
            "different_images": _different_images(seen),
        },
        "pairs": _pairs(errors),
        "class_biases": biases,
        "errors": errors,
        "protocol": {
            **asdict(arguments),
            "seed": seed,
            "region": f"the {arguments.region_percent:g} % most salient pixels of a map at the size of the "
            "classifier's input, those at its minimum left out",
            "overlap": "2 |A and B| / (|A| + |B|) of the regions of the maps of the predicted and of the true class",
            "random_regions": "mean overlap to expect of regions of these sizes at random places",
            "different_images": "mean overlap of the predicted class' region in one mistake with the true class' "
            "region in another one",
            "groups": {
                "same_region": f"overlap >= {arguments.same_region:g}",
                "different_regions": f"overlap <= {arguments.different_regions:g}",
                "ambiguous": "in between",
                "no_map": "one of the two maps is constant",
            },
        },
        "explainer": explainer.identity,
        "dataset": dataset,
        "columns": {"image": reader.image_column, "label": reader.label_column, "mask": reader.mask_column},
        "versions": package_versions(),
        "device": explainer.classifier.device.type,
    }
    return ErrorStudy(result, explainer, reader, evidence, mean_regions)


def _group(overlap: float | None, arguments: ErrorStudyArguments) -> str:
    if overlap is None:
        return "no_map"
    if overlap >= arguments.same_region:
        return "same_region"
    return "different_regions" if overlap <= arguments.different_regions else "ambiguous"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _different_images(seen: _Seen) -> float | None:
    """Mean overlap over all pairs of two mistakes, from sums: no pair of maps is ever held."""
    count = len(seen.errors)
    sizes = seen.pair_sums.sum().item() / max(count, 1)
    if count < 2 or sizes == 0:
        return None
    common = (seen.pair_sums[0] * seen.pair_sums[1]).sum().item() - seen.common
    return 2 * common / (count * (count - 1)) / sizes


def _pairs(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mistakes by true and predicted class, the most frequent first."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for error in errors:
        found.setdefault((error["label"], error["prediction"]), []).append(error)
    pairs = []
    for members in sorted(found.values(), key=len, reverse=True):
        first = members[0]
        groups = {group: sum(error["group"] == group for error in members) for group in GROUPS}
        pairs.append(
            {
                **{key: first[key] for key in ("label", "label_name", "prediction", "prediction_name")},
                "count": len(members),
                **groups,
                "share_same_region": groups["same_region"] / len(members),
                "mean_overlap": _mean([error["overlap"] for error in members if error["overlap"] is not None]),
            }
        )
    return pairs


# ---------------------------------------------------------------------------------------------------------- the biases


def _class_biases(
    seen: _Seen, arguments: ErrorStudyArguments, names: Mapping[int, str], by_mask: bool, seed: int
) -> tuple[dict[str, Any], dict[int, list[int]], dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """The classes, with how much of their maps lies off the object or at the border, and which of them are biased."""
    columns = {key: torch.tensor(values) for key, values in seen.columns.items()}
    used = columns["has_map"] & columns["visible"] if by_mask else columns["has_map"]
    places = (OFF_OBJECT,) if by_mask else BORDER_PLACES
    values = (columns["off_object"][:, None] if by_mask else columns["border"])[used].double()
    images, prediction = columns["image"][used], columns["prediction"][used]
    measure = {
        "measure": "object" if by_mask else "border",
        "statistic": "share of a map's region that lies off the object's mask (of what can lie on it: a region larger "
        "than the object is whole on it when it covers it)"
        if by_mask
        else "share of a map's region in each of nine places of the border: the corners (a quarter of each side), all "
        "four of them, the edges (the outer quarter)",
        "maps": "of the classifier's own answer; a class' images are those the classifier takes for it",
        "rule": f"excess >= {arguments.min_excess:g} and p_value <= {arguments.significance:g}",
        "num_images": int(used.sum()),
        "num_without_map": int((~columns["has_map"]).sum()),
    }
    if by_mask:
        measure["num_without_visible_object"] = int((~columns["visible"]).sum())
    if len(values) == 0:
        return {**measure, "biased": [], "classes": []}, {}, {}
    excess = group_excess(
        values,
        prediction,
        len(names),
        min_count=arguments.min_images,
        permutations=arguments.permutations,
        seed=seed,
    )
    classes, evidence, mean_regions = [], {}, {}
    for index in excess.count.nonzero()[:, 0].tolist():
        entry, place = _judge(excess, index, places, arguments)
        own = prediction == index
        if by_mask:
            energy = columns["energy_on_object"][used]
            entry["energy_on_object"] = energy[own].mean().item()
            entry["energy_on_object_others"] = energy[~own].mean().item() if bool((~own).any()) else None
        classes.append({"label": index, "name": names[index], **entry})
        if entry["biased"]:
            order = values[own, place].argsort(descending=True, stable=True)
            evidence[index] = images[own][order].tolist()
            count = (columns["prediction"] == index).sum().item()
            rest = (seen.region_sums.sum(0) - seen.region_sums[index]) / max(len(columns["image"]) - count, 1)
            mean_regions[index] = seen.region_sums[index] / count, rest
    classes.sort(key=lambda entry: (not entry["biased"], not entry["tested"], -entry["excess"]))
    biased = [{"label": entry["label"], "name": entry["name"]} for entry in classes if entry["biased"]]
    return {**measure, "test": excess.protocol, "biased": biased, "classes": classes}, evidence, mean_regions


def _judge(
    excess: GroupExcess, index: int, places: tuple[str, ...], arguments: ErrorStudyArguments
) -> tuple[dict[str, Any], int]:
    """The entry of one class, and the index of the place it describes."""
    count = int(excess.count[index])
    tested = arguments.min_images <= count < int(excess.count.sum())
    difference = excess.mean[index] - excess.others[index]
    biased = (difference >= arguments.min_excess) & (excess.p_value[index] <= arguments.significance) & tested
    # of several places the one that separates the class best: a corner also fills two edges
    candidates = biased if bool(biased.any()) else torch.ones_like(biased)
    place = int(excess.statistic[index].where(candidates, -torch.inf).argmax())
    entry = {
        "num_images": count,
        "tested": tested,
        "place": places[place],
        "share": excess.mean[index, place].item(),
        "share_others": excess.others[index, place].item(),
        "excess": difference[place].item(),
        "p_value": excess.p_value[index, place].item() if tested else None,
        "biased": bool(biased.any()),
    }
    return entry, place
