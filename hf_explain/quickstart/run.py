"""The quickstart: data, classifier, L-CAM head, pipeline, numbers, page; one call, no network."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline

from hf_explain.checkpointing import write_atomically
from hf_explain.heads.lcam import LCamForSaliency
from hf_explain.metrics.functional import PRESETS, auc_d, average_drop
from hf_explain.quickstart.classifier import load_pixels, train_classifier
from hf_explain.quickstart.data import BIASED_LABEL, TRAINING_CUE_RATE, make_datasets
from hf_explain.quickstart.page import render_page
from hf_explain.training import ExplainerTrainingArguments, train
from hf_explain.visualization import bar_chart, overlay, plot_curves, saliency_grid, save_image


MADE_BY = "hf-explain quickstart"
# Column name to the pipeline's `method`; the head needs none
EXPLAINERS = {"L-CAM-Img": None, "Grad-CAM": "gradcam", "centre": "centre", "random": "random"}
HEAD = "L-CAM-Img"
# The published loss alone lets a head answer with an empty map for whichever class the classifier gives to a black
# image: nothing kept, class kept. The removal term closes that door, as the object must then be what is removed.
HEAD_CONFIG = {"variant": "img", "removal_weight": 1.0}
_PICTURES = ("saliency.png", "bias.png", "auc_d.png", "overlap.png", "removed_first.png", "removed_last.png")


def run_quickstart(
    output_dir: str | os.PathLike,
    seed: int = 0,
    *,
    num_train: int = 2400,
    num_validation: int = 600,
    image_size: int = 96,
    classifier_epochs: int = 12,
    head_epochs: int = 3,
    disable_tqdm: bool = False,
) -> dict[str, Any]:
    """
    From nothing to a trained explainer, its pictures and its numbers.

    Draws a picture data set with exact masks and a planted bias, trains a small ResNet, trains an L-CAM head on it
    with [`~hf_explain.training.train`], saves both, loads the head through `pipeline("saliency")`, explains the
    validation images with it, Grad-CAM, a centre Gaussian and random maps, measures all four, and writes a folder:
    `classifier/` and `head/` (for `from_pretrained`), `results.json`, pictures and `index.html`, which shows both.

    Args:
        output_dir (`str` or `os.PathLike`): The folder to write. It appears whole at the end or not at all; the
            folder of an earlier quickstart is replaced.
        seed (`int`, *optional*, defaults to 0): Of the data, the weights and the order of training.
        num_train, num_validation (`int`, *optional*): Images.
        image_size (`int`, *optional*, defaults to 96): Side of the images, in pixels.
        classifier_epochs, head_epochs (`int`, *optional*): Passes over the training images.
        disable_tqdm (`bool`, *optional*, defaults to `False`): No progress bars.

    Returns:
        `dict[str, Any]`: What `results.json` holds.

    Raises:
        FileExistsError: If `output_dir` is a file, or a folder with something else in it.
    """
    output_dir = Path(output_dir).expanduser().absolute()
    _check_replaceable(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    work = output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex[:8]}.tmp")
    work.mkdir()
    clock = _Clock()
    try:
        with clock("data"):
            data = make_datasets(num_train, num_validation, seed, image_size)
        with clock("classifier"):
            classifier_record = train_classifier(
                data["train"], work / "classifier", num_epochs=classifier_epochs, seed=seed, disable_tqdm=disable_tqdm
            )
        with clock("head"):
            head_record = _train_head(work, data["train"], head_epochs, seed, disable_tqdm)
        with clock("explain"):
            pipe = pipeline("saliency", model=str(work / "head"))
            explained = _explain(pipe, data["validation"])
        with clock("measure"):
            results, curves = _measure(pipe, data["validation"], explained, seed)
        with clock("pictures"):
            _draw_pictures(work, data["validation"], explained, results, curves)
        results = {
            "made_by": MADE_BY,
            "seed": seed,
            "settings": {
                "num_train": num_train,
                "num_validation": num_validation,
                "image_size": image_size,
                "classifier_epochs": classifier_epochs,
                "head_epochs": head_epochs,
                "head_config": HEAD_CONFIG,
            },
            **results,
            "classifier": {**results["classifier"], **classifier_record},
            "head": {"steps": head_record["steps"], "num_parameters": pipe.head.num_parameters()},
            "seconds": clock.seconds,
            "cpu_seconds": round(time.process_time() - clock.cpu_start, 1),
            "peak_memory_gb": _peak_memory(),
            "versions": _versions(),
        }
        write_atomically(work / "results.json", json.dumps(results, indent=2).encode())
        pictures = {name: (work / name).read_bytes() for name in _PICTURES}
        write_atomically(work / "index.html", render_page(results, pictures).encode())
        # The head names its classifier by the place it will have
        pipe.head.config.backbone = str(output_dir / "classifier")
        pipe.head.config.save_pretrained(work / "head")
        _replace(output_dir, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(format_table(results))
    print(f"\nPage: {output_dir / 'index.html'}")
    return results


def format_table(results: dict[str, Any]) -> str:
    """The main numbers of `results.json` as text, one line per explainer."""
    lines = [f"{'':11}{'AUC-D':>14}{'overlap':>14}{'AD 100/50/15':>20}{'IC 100/50/15':>20}"]
    for name, row in results["explainers"].items():
        ad, ic = ("/".join(f"{row[key][v]:.1f}" for v in ("100", "50", "15")) for key in ("AD", "IC"))
        area, overlap = (
            f"{row[key]:.1f} ±{(row[key + '_interval'][1] - row[key + '_interval'][0]) / 2:.1f}"
            for key in ("auc_d", "object_overlap")
        )
        lines.append(f"{name:11}{area:>14}{overlap:>14}{ad:>20}{ic:>20}")
    lines += [f"{'yes' if passed else 'NO ':3} {sentence}" for sentence, passed in results["checks"].items()]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------------------- the parts


def _train_head(work: Path, dataset, num_epochs: int, seed: int, disable_tqdm: bool) -> dict[str, Any]:
    torch.manual_seed(seed)
    head = LCamForSaliency.from_classifier(str(work / "classifier"), **HEAD_CONFIG)
    arguments = ExplainerTrainingArguments(
        output_dir=str(work / "head"),
        num_train_epochs=num_epochs,
        per_device_batch_size=32,
        optimizer="adamw",
        learning_rate=0.02,
        weight_decay=0.0,
        augmentation="flip",
        image_column="image",
        seed=seed,
        save_steps=0,
        dataloader_num_workers=0,
        disable_tqdm=disable_tqdm,
    )
    return train(head, dataset, args=arguments, description={"dataset": MADE_BY})


def _explain(pipe, dataset) -> dict[str, dict[str, Any]]:
    """For every explainer: `saliency` `(num_images, size, size)`, and the labels and scores it explained."""
    explained = {}
    for name, method in EXPLAINERS.items():
        options = {} if method is None else {"method": method}
        entries = [found[0] for found in pipe(dataset["image"], batch_size=32, **options)]
        explained[name] = {
            "saliency": torch.from_numpy(np.stack([entry["saliency_map"] for entry in entries])),
            "label": [entry["label"] for entry in entries],
            "score": [entry["score"] for entry in entries],
        }
    return explained


def _measure(pipe, dataset, explained, seed: int) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """The numbers of `results.json`, and the mean perturbation curves."""
    names = dataset.features["label"].names
    predicted = torch.tensor([names.index(label) for label in explained[HEAD]["label"]])
    labels, has_cue = torch.tensor(dataset["label"][:]), torch.tensor(dataset["has_cue"][:])
    pixel_values = load_pixels(dataset, pipe.image_processor)
    objects, cues = (_load_masks(dataset, column) for column in ("object_mask", "cue_mask"))
    classifier = pipe.classifier
    statistics = {"image_mean": classifier.image_mean, "image_std": classifier.image_std}
    plain = ~has_cue  # where the object is all there is to see
    rows, curves, protocol = {}, {}, {}
    for name, entry in explained.items():
        saliency = entry["saliency"]
        with torch.inference_mode():
            areas = auc_d(
                classifier, pixel_values[plain], saliency[plain], **PRESETS["auc_d"]["default"], **statistics
            )
            drops = average_drop(
                classifier, pixel_values[plain], saliency[plain], **PRESETS["average_drop"]["default"], **statistics
            )
        energy, overlap = (100 * measure(saliency[plain], objects[plain]) for measure in (energy_inside, overlap_with))
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
    for control in ("random", "centre"):
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


# ------------------------------------------------------------------------------------------------------------ pictures


def _draw_pictures(work: Path, dataset, explained, results: dict[str, Any], curves) -> None:
    labels, has_cue = dataset["label"][:], dataset["has_cue"][:]
    names = dataset.features["label"].names
    predicted = explained[HEAD]["label"]

    def grid(chosen: list[int], name: str) -> None:
        rows, sentences = [], []
        for index in chosen:
            image = dataset[index]["image"]
            maps = [explained[column]["saliency"][index] for column in EXPLAINERS]
            rows.append([image, *(overlay(image, saliency, alpha=0.85, grayscale=True) for saliency in maps)])
            said = f"{names[labels[index]]}: called {predicted[index]}, {explained[HEAD]['score'][index]:.2f}"
            sentences.append(said)
        columns = ["image", *EXPLAINERS]
        save_image(saliency_grid(rows, columns, row_labels=sentences, cell_size=144, text_size=21), work / name)

    rows = [
        {"index": index, "label": names[label], "cue": cue, "said": said}
        for index, (label, cue, said) in enumerate(zip(labels, has_cue, predicted))
    ]

    def pick(count: int, condition: Callable[[dict[str, Any]], bool]) -> list[int]:
        return [row["index"] for row in rows if condition(row)][:count]

    plain = {name: [row for row in rows if row["label"] == name and not row["cue"]] for name in names}
    # of each class the first image that the classifier gets right, or, if there is none, the first
    grid(
        [min(found, key=lambda row: row["said"] != row["label"])["index"] for found in plain.values() if found],
        "saliency.png",
    )
    grid(
        pick(2, lambda row: row["label"] == BIASED_LABEL and row["cue"])
        + pick(1, lambda row: row["label"] == BIASED_LABEL and not row["cue"])
        + pick(3, lambda row: row["label"] != BIASED_LABEL and row["cue"] and row["said"] == BIASED_LABEL),
        "bias.png",
    )

    numbers = results["explainers"]
    for key, name, title, axis in (
        ("auc_d", "auc_d.png", "AUC-D (higher is better)", "AUC-D, bars: 95 % interval"),
        ("object_overlap", "overlap.png", "Overlap with the true object (%)", "%, bars: 95 % interval"),
    ):
        chart = bar_chart(
            {column: row[key] for column, row in numbers.items()},
            {column: tuple(row[key + "_interval"]) for column, row in numbers.items()},
            title=title,
            x_label=axis,
            highlight=HEAD,
        )
        save_image(chart, work / name)
    for order, name, title in (
        ("positive", "removed_first.png", "Most salient pixels removed first (lower is better)"),
        ("negative", "removed_last.png", "Most salient pixels removed last (higher is better)"),
    ):
        chart = plot_curves(
            {column: curves[column][order] for column in EXPLAINERS},
            [100 * fraction for fraction in curves["fractions"]],
            title=title,
            y_label="prediction unchanged (%)",
        )
        save_image(chart, work / name)


# --------------------------------------------------------------------------------------------------------- bookkeeping


class _Clock:
    """`with clock("stage"):` adds the stage's wall-clock seconds to `seconds`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.cpu_start = time.process_time()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 1)


def _check_replaceable(output_dir: Path) -> None:
    if output_dir.is_dir():
        if not any(output_dir.iterdir()) or _is_quickstart(output_dir):
            return
        raise FileExistsError(
            f"`output_dir` {str(output_dir)!r} holds something that is no quickstart's; name a new folder or an empty "
            "one."
        )
    if os.path.lexists(output_dir):
        raise FileExistsError(f"`output_dir` {str(output_dir)!r} is not a folder; name a new folder or an empty one.")


def _is_quickstart(directory: Path) -> bool:
    try:
        return json.loads((directory / "results.json").read_text()).get("made_by") == MADE_BY
    except (OSError, ValueError, AttributeError):
        return False


def _replace(output_dir: Path, work: Path) -> None:
    """Put `work` in the place of `output_dir`; an earlier quickstart steps aside first and comes back on failure."""
    if not output_dir.exists():
        os.rename(work, output_dir)
        return
    _check_replaceable(output_dir)  # somebody may have put something there meanwhile
    aside = work.with_suffix(".old")
    os.rename(output_dir, aside)
    try:
        os.rename(work, output_dir)
    except BaseException:
        os.rename(aside, output_dir)
        raise
    shutil.rmtree(aside)


def _peak_memory() -> float | None:
    """Peak resident memory of this process in GB, where the system tells it (not on Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e9 if sys.platform == "darwin" else 1e6), 2)


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "datasets", "accelerate", "huggingface_hub", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
