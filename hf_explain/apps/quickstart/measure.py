"""The quickstart's numbers: the head beside training-free methods and controls, against masks known to the pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_explain.apps.quickstart.classifier import load_pixels
from hf_explain.apps.quickstart.data import BIASED_LABEL, TRAINING_CUE_RATE
from hf_explain.io.html import number
from hf_explain.metrics.functional import (
    PRESETS,
    auc_d_fills,
    average_drop,
    bootstrap_interval,
    paired_difference,
)
from hf_explain.metrics.photographs import Photographs


HEAD, RIVAL = "T-TAME", "Grad-CAM"
# What stands beside the head: its kind, as charts call it, and the pipeline's `method`; the head needs none
COMPARED: dict[str, tuple[str, str | None]] = {
    HEAD: ("trained head", None),
    RIVAL: ("training-free method", "gradcam"),
    "LayerCAM": ("training-free method", "layercam"),
    "centre": ("control", "centre"),
    "random": ("control", "random"),
}
KINDS = {name: kind for name, (kind, _) in COMPARED.items()}
SEEN_FILLS, UNSEEN_FILLS = ("black", "mean", "blur"), ("photo",)  # by a head with the preset `ranking`
# Key of a row of `results.json`, and what it is in words
MEASURES = {
    "object_overlap": "on the object",
    "removal_seen": "removal test, seen fills",
    "removal_unseen": "removal test, unseen fill",
}


def explain(pipe, dataset) -> dict[str, dict[str, Any]]:
    """For every explainer: `saliency` `(num_images, size, size)`, and the labels and scores it explained."""
    explained = {}
    for name, (_, method) in COMPARED.items():
        options = {} if method is None else {"method": method}
        entries = [found[0] for found in pipe(dataset["image"], batch_size=32, **options)]
        explained[name] = {
            "saliency": torch.from_numpy(np.stack([entry["saliency_map"] for entry in entries])),
            "label": [entry["label"] for entry in entries],
            "score": [entry["score"] for entry in entries],
        }
    return explained


def measure(pipe, dataset, explained, num_images: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The numbers of `results.json`; the mean perturbation curves, beside `fractions`, where they are measured.

    The removal test takes the first `num_images` images without the tag, where the object is all there is to see.
    """
    names = dataset.features["label"].names
    predicted = torch.tensor([names.index(label) for label in explained[HEAD]["label"]])
    labels, has_cue = torch.tensor(dataset["label"][:]), torch.tensor(dataset["has_cue"][:])
    objects, cues = (_load_masks(dataset, column) for column in ("object_mask", "cue_mask"))
    classifier = pipe.classifier
    plain = ~has_cue
    tested = plain & (plain.cumsum(0) <= num_images)
    everything = load_pixels(dataset, pipe.image_processor).to(classifier.device)
    pixel_values, image_ids = everything[tested], tested.nonzero()[:, 0]
    statistics = {"image_mean": classifier.image_mean, "image_std": classifier.image_std}
    # by their true classes, of which there are several however a classifier answers
    photos = Photographs(everything, F.one_hot(labels, len(names)).float(), torch.arange(len(labels)))
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, torch.Tensor]] = {}
    curves: dict[str, dict[str, torch.Tensor]] = {}
    protocol: dict[str, Any] = {}
    for name, entry in explained.items():
        saliency = entry["saliency"][tested]
        with torch.inference_mode():
            areas = auc_d_fills(
                classifier,
                pixel_values,
                saliency,
                **{**PRESETS["auc_d_fills"]["default"], "fills": (*SEEN_FILLS, *UNSEEN_FILLS)},
                **statistics,
                photos=photos,
                image_ids=image_ids,
                seed=seed,
            )
            drops = average_drop(
                classifier, pixel_values, saliency, **PRESETS["average_drop"]["default"], **statistics
            )
        scores[name] = {
            "object_overlap": 100 * overlap_with(entry["saliency"][plain], objects[plain]),
            "removal_seen": _mean_over(areas, SEEN_FILLS),
            "removal_unseen": _mean_over(areas, UNSEEN_FILLS),
        }
        black = areas.by_fill["black"]
        percents = [f"{percent:g}" for percent in drops.percents]
        rows[name] = {
            "kind": KINDS[name],
            "auc_d": black.auc_d.mean().item(),
            "positive_auc": black.positive_auc.mean().item(),
            "negative_auc": black.negative_auc.mean().item(),
            "AD": dict(zip(percents, drops.average_drop.tolist())),
            "IC": dict(zip(percents, drops.increase_in_confidence.tolist())),
            "fills": {fill: one.auc_d.mean().item() for fill, one in areas.by_fill.items()},
        }
        for key, values in scores[name].items():
            low, high = bootstrap_interval(values, seed=seed)
            rows[name] |= {key: values.mean().item(), f"{key}_interval": [low.item(), high.item()]}
        curves[name] = {
            order: 100 * getattr(black.curves, order).double().mean(0).cpu() for order in ("positive", "negative")
        }
        protocol = {
            "auc_d": {**black.protocol, "num_examples": int(tested.sum())},
            "average_drop": {**drops.protocol, "num_examples": int(tested.sum())},
        }
    protocol |= {
        "images": f"{int(plain.sum())} validation images without the tag, explained for their own top-1",
        "object_overlap": "share of the n most salient pixels that lie on the object, n being the object's own number "
        "of pixels",
        "removal": f"AUC-D of the first {int(tested.sum())} of them, the mean over fills",
        "removal_seen": list(SEEN_FILLS),
        "removal_unseen": list(UNSEEN_FILLS),
        "interval": "95 % of bootstrap samples of the images",
    }
    results = {
        "explainers": rows,
        "verdicts": find_verdicts(rows, scores, seed),
        "bias": _measure_bias(explained, predicted, labels, has_cue, objects, cues, names.index(BIASED_LABEL)),
        "classifier": {
            "accuracy_without_tag": 100 * (predicted == labels)[plain].double().mean().item(),
            "object_area": 100 * objects[plain].double().mean().item(),
        },
        "protocol": protocol,
    }
    return results, {**curves, "fractions": black.curves.fractions}


def ranked(rows: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """Names from the best by `key`, controls last: they are what the others have to beat."""
    return sorted(rows, key=lambda name: (rows[name]["kind"] == "control", -rows[name][key]))


def sentence(verdict: dict[str, Any]) -> str:
    """What a verdict says, for people."""
    against = f"the best {verdict['kind']}, {verdict['against']}"
    place = {"ahead": "is ahead of", "behind": "is behind", "level": "does not differ clearly from"}
    difference, low, high = (number(value) for value in (verdict["difference"], *verdict["interval"]))
    said = f"{HEAD} {place[verdict['verdict']]} {against}"
    return f"{verdict['words'].capitalize()}: {said}: {difference} (95 % interval {low} to {high})."


def _mean_over(areas, fills) -> torch.Tensor:
    return torch.stack([areas.by_fill[fill].auc_d for fill in fills]).mean(0)


def find_verdicts(rows, scores: dict[str, dict[str, torch.Tensor]], seed: int) -> list[dict[str, Any]]:
    """By every measure, the head against the best of the training-free methods and the best of the controls."""
    found = []
    for key, words in MEASURES.items():
        for kind in ("training-free method", "control"):
            best = next(name for name in ranked(rows, key) if rows[name]["kind"] == kind)
            apart = paired_difference(scores[HEAD][key], scores[best][key], higher_is_better=True, seed=seed)
            low, high = apart.low.item(), apart.high.item()
            found.append(
                {
                    "measure": key,
                    "words": words,
                    "against": best,
                    "kind": kind,
                    "difference": apart.difference.item(),
                    "interval": [low, high],
                    "verdict": "ahead" if low > 0 else "behind" if high < 0 else "level",
                }
            )
    return found


def _measure_bias(explained, predicted, labels, has_cue, objects, cues, biased: int) -> dict[str, Any]:
    """What the classifier owes to the planted tag, and which maps show it."""
    right, member = predicted == labels, labels == biased

    def accuracy(chosen: torch.Tensor) -> float | None:
        return 100 * right[chosen].double().mean().item() if bool(chosen.any()) else None

    fooled = has_cue & ~member & (predicted == biased)
    shown = {}
    if bool(fooled.any()):
        for name, entry in explained.items():
            saliency = entry["saliency"][fooled]
            shown[name] = {
                "tag_overlap": 100 * overlap_with(saliency, cues[fooled]).mean().item(),
                "object_overlap": 100 * overlap_with(saliency, objects[fooled]).mean().item(),
            }
    return {
        "biased_label": BIASED_LABEL,
        "training_rate": TRAINING_CUE_RATE,
        "accuracy": {
            "class with its tag": accuracy(member & has_cue),
            "class without its tag": accuracy(member & ~has_cue),
            "other classes with the tag": accuracy(~member & has_cue),
            "other classes without the tag": accuracy(~member & ~has_cue),
        },
        "num_fooled": int(fooled.sum()),
        "fooled_meaning": f"images of other classes with the tag, called {BIASED_LABEL!r}",
        "fooled_maps": shown,
    }


def overlap_with(saliency: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Share of the n most salient pixels that lie inside the mask, n being the mask's own number of pixels.

    It reads the order of the pixels only, so maps of different sharpness compare fairly; a random map scores the
    mask's share of the image, a perfect one 1.

    Args:
        saliency (`torch.FloatTensor` of shape `(batch_size, height, width)`): Maps.
        masks (`torch.BoolTensor` of the same shape): True on the object, somewhere in each image.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size,)`, in [0, 1].
    """
    order = saliency.flatten(1).argsort(dim=1, descending=True, stable=True)
    inside = masks.flatten(1).gather(1, order).double()
    count = masks.flatten(1).sum(1)
    hits = inside.cumsum(1).gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(count > 0, hits / count.clamp(min=1), 0.0)


def _load_masks(dataset, column: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(mask) > 0 for mask in dataset[column][:]]))
