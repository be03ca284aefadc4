"""The quickstart's numbers: the head beside Grad-CAM and the controls, against masks that are exactly known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_explain.apps.quickstart.classifier import load_pixels
from hf_explain.apps.quickstart.data import BIASED_LABEL, TRAINING_CUE_RATE
from hf_explain.metrics.functional import PRESETS, auc_d, average_drop
from hf_explain.registry import CONTROLS


# Column name to the pipeline's `method`; the head needs none
COMPARED = {"L-CAM-Img": None, "Grad-CAM": "gradcam", "centre": "centre", "random": "random"}
HEAD = "L-CAM-Img"


def explain(pipe, dataset) -> dict[str, dict[str, Any]]:
    """For every explainer: `saliency` `(num_images, size, size)`, and the labels and scores it explained."""
    explained = {}
    for name, method in COMPARED.items():
        options = {} if method is None else {"method": method}
        entries = [found[0] for found in pipe(dataset["image"], batch_size=32, **options)]
        explained[name] = {
            "saliency": torch.from_numpy(np.stack([entry["saliency_map"] for entry in entries])),
            "label": [entry["label"] for entry in entries],
            "score": [entry["score"] for entry in entries],
        }
    return explained


def measure(pipe, dataset, explained, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The numbers of `results.json`; the mean perturbation curves, beside `fractions`, where they are measured."""
    names = dataset.features["label"].names
    predicted = torch.tensor([names.index(label) for label in explained[HEAD]["label"]])
    labels, has_cue = torch.tensor(dataset["label"][:]), torch.tensor(dataset["has_cue"][:])
    objects, cues = (_load_masks(dataset, column) for column in ("object_mask", "cue_mask"))
    classifier = pipe.classifier
    pixel_values = load_pixels(dataset, pipe.image_processor).to(classifier.device)
    statistics = {"image_mean": classifier.image_mean, "image_std": classifier.image_std}
    plain = ~has_cue  # where the object is all there is to see
    rows: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, torch.Tensor]] = {}
    protocol: dict[str, Any] = {}
    for name, entry in explained.items():
        saliency = entry["saliency"]
        with torch.inference_mode():
            areas = auc_d(
                classifier, pixel_values[plain], saliency[plain], **PRESETS["auc_d"]["default"], **statistics
            )
            drops = average_drop(
                classifier, pixel_values[plain], saliency[plain], **PRESETS["average_drop"]["default"], **statistics
            )
        energy, overlap = (100 * share(saliency[plain], objects[plain]) for share in (energy_inside, overlap_with))
        percents = [f"{percent:g}" for percent in drops.percents]
        rows[name] = {
            "auc_d": areas.auc_d.mean().item(),
            "auc_d_interval": bootstrap_interval(areas.auc_d, seed),
            "positive_auc": areas.positive_auc.mean().item(),
            "negative_auc": areas.negative_auc.mean().item(),
            "AD": dict(zip(percents, drops.average_drop.tolist())),
            "IC": dict(zip(percents, drops.increase_in_confidence.tolist())),
            "object_overlap": overlap.mean().item(),
            "object_overlap_interval": bootstrap_interval(overlap, seed),
            "object_energy": energy.mean().item(),
        }
        curves[name] = {
            order: 100 * getattr(areas.curves, order).double().mean(0).cpu() for order in ("positive", "negative")
        }
        protocol = {"auc_d": areas.protocol, "average_drop": drops.protocol}
    protocol["images"] = f"{int(plain.sum())} validation images without the tag, explained for their own top-1"
    protocol["object_overlap"] = (
        "share of the n most salient pixels that lie on the object, n being the object's own number of pixels"
    )
    protocol["object_energy"] = "share of the map's sum that lies on the object"
    protocol["interval"] = "95 % of 2000 bootstrap samples of the images"
    results = {
        "explainers": rows,
        "checks": _checks(rows),
        "bias": _measure_bias(explained, predicted, labels, has_cue, objects, cues, names.index(BIASED_LABEL)),
        "classifier": {
            "accuracy_without_tag": 100 * (predicted == labels)[plain].double().mean().item(),
            "object_area": 100 * objects[plain].double().mean().item(),
        },
        "protocol": protocol,
    }
    return results, {**curves, "fractions": areas.curves.fractions}


def _checks(rows: dict[str, dict[str, Any]]) -> dict[str, bool]:
    checks = {}
    for control in CONTROLS:
        for key, words in (("auc_d", "AUC-D"), ("object_overlap", "overlap with the object")):
            checks[f"{HEAD} beats {control} on {words}"] = rows[HEAD][key] > rows[control][key]
    return checks


def _measure_bias(explained, predicted, labels, has_cue, objects, cues, biased: int) -> dict[str, Any]:
    """What the classifier owes to the planted tag, and which maps show it."""
    right, star = predicted == labels, labels == biased

    def accuracy(chosen: torch.Tensor) -> float | None:
        return 100 * right[chosen].double().mean().item() if bool(chosen.any()) else None

    fooled = has_cue & ~star & (predicted == biased)
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
            "class with its tag": accuracy(star & has_cue),
            "class without its tag": accuracy(star & ~has_cue),
            "other classes with the tag": accuracy(~star & has_cue),
            "other classes without the tag": accuracy(~star & ~has_cue),
        },
        "num_fooled": int(fooled.sum()),
        "fooled_meaning": f"images of other classes with the tag, called {BIASED_LABEL!r}",
        "fooled_maps": shown,
    }


def energy_inside(saliency: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Share of each map's sum that lies inside its mask; 0 for an empty map.

    Args:
        saliency (`torch.FloatTensor` of shape `(batch_size, height, width)`): Non-negative maps.
        masks (`torch.BoolTensor` of the same shape): True on the object.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size,)`, in [0, 1].
    """
    saliency = saliency.double()
    inside, total = (saliency * masks).sum((1, 2)), saliency.sum((1, 2))
    return torch.where(total > 0, inside / torch.where(total > 0, total, 1.0), 0.0)


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


def bootstrap_interval(values: torch.Tensor, seed: int, samples: int = 2000) -> list[float]:
    """The central 95 % of the means of `samples` draws with replacement from per-image `values`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (samples, len(values)), generator=generator)
    means = values.cpu().double()[drawn].mean(1)
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def _load_masks(dataset, column: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(mask) > 0 for mask in dataset[column][:]]))
