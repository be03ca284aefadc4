"""The quickstart: data, classifier, T-TAME head, pipeline, numbers, page; one call, no network."""

from __future__ import annotations

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

import torch

from hf_explain.apps.arguments import QuickstartCommand
from hf_explain.apps.quickstart.classifier import train_classifier
from hf_explain.apps.quickstart.data import BIASED_LABEL, IMAGE_SIZE, NUM_TRAIN, NUM_VALIDATION, make_datasets
from hf_explain.apps.quickstart.measure import (
    COMPARED,
    HEAD,
    KINDS,
    MEASURES,
    RIVAL,
    explain,
    measure,
    ranked,
    sentence,
)
from hf_explain.apps.quickstart.page import render_page
from hf_explain.heads.ttame import TTameForSaliency
from hf_explain.io.charts import bar_chart, plot_curves
from hf_explain.io.files import read_json_file, write_atomically, write_json_file
from hf_explain.io.paths import output_folder
from hf_explain.io.pictures import overlay, saliency_grid, save_image
from hf_explain.pipeline import load_pipeline
from hf_explain.training.loop import ExplainerTrainingArguments, train


MADE_BY = "hf-explain quickstart"
PRESET = "ranking"
_PICTURES = ("saliency.png", "bias.png", "removal.png", "overlap.png", "removed_first.png", "removed_last.png")


def run_quickstart(
    output_dir: str | os.PathLike,
    seed: int = 0,
    *,
    num_train: int = NUM_TRAIN,
    num_validation: int = NUM_VALIDATION,
    image_size: int = IMAGE_SIZE,
    classifier_epochs: int = 8,
    head_epochs: int = 2,
    num_tested: int = 64,
    disable_tqdm: bool = False,
) -> dict[str, Any]:
    """
    From nothing to a trained explainer, its pictures and its numbers.

    Draws a picture data set with exact masks and a planted bias, trains a small ResNet, trains a T-TAME head with the
    preset `ranking` on it with [`~hf_explain.training.loop.train`], saves both, loads the head through
    `pipeline("saliency")`, explains the validation images with it, with training-free methods and with the controls, a
    centre Gaussian and random maps, measures all of them, and writes a folder:
    `classifier/` and `head/` (for `from_pretrained`), `data/` (the validation images, for the other commands),
    `results.json`, pictures and `index.html`, which shows both.

    Args:
        output_dir (`str` or `os.PathLike`): The folder to write. It appears whole at the end or not at all; the
            folder of an earlier quickstart is replaced.
        seed (`int`, *optional*, defaults to 0): Of the data, the weights and the order of training.
        num_train, num_validation (`int`, *optional*): Images.
        image_size (`int`, *optional*, defaults to 112): Side of the images, in pixels.
        classifier_epochs, head_epochs (`int`, *optional*): Passes over the training images.
        num_tested (`int`, *optional*, defaults to 64): Validation images of the removal test, which takes most of the
            time of measuring.
        disable_tqdm (`bool`, *optional*, defaults to `False`): No progress bars.

    Returns:
        `dict[str, Any]`: What `results.json` holds.

    Raises:
        FileExistsError: If `output_dir` is a file, or a folder with something else in it.
    """
    output_dir = output_folder(output_dir).expanduser().absolute()
    _check_replaceable(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    work = output_dir.with_name(f".{output_dir.name}.{uuid.uuid4().hex[:8]}.tmp")
    work.mkdir()
    clock = _Clock()
    try:
        with clock("data"):
            data = make_datasets(num_train, num_validation, seed, image_size)
            (work / "data").mkdir()
            data["validation"].to_parquet(work / "data" / "validation.parquet")
        with clock("classifier"):
            classifier_record = train_classifier(
                data["train"], work / "classifier", num_epochs=classifier_epochs, seed=seed, disable_tqdm=disable_tqdm
            )
        with clock("head"):
            head_record = _train_head(work, data["train"], head_epochs, seed, disable_tqdm)
        with clock("explain"):
            pipe = load_pipeline(str(work / "head"))
            assert pipe.head is not None  # the directory holds one
            explained = explain(pipe, data["validation"])
        with clock("measure"):
            results, curves = measure(pipe, data["validation"], explained, num_tested, seed)
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
                "num_tested": num_tested,
                "head": {"kind": "ttame", "preset": PRESET},
            },
            **results,
            "classifier": {**results["classifier"], **classifier_record},
            "head": {"steps": head_record["steps"], "num_parameters": _num_head_parameters(pipe.head)},
            "next": next_steps(),
            "seconds": clock.seconds,
            "cpu_seconds": round(time.process_time() - clock.cpu_start, 1),
            "peak_memory_gb": _peak_memory(),
            "versions": _versions(),
        }
        write_json_file(work / "results.json", results)
        pictures = {name: (work / name).read_bytes() for name in _PICTURES}
        write_atomically(work / "index.html", render_page(results, pictures).encode())
        _replace(output_dir, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    own = results["next"]["own"].replace("\n", "\n  ")
    print(f"\n{format_table(results)}\n\nPage: {output_dir / 'index.html'}")
    print(f"\nThe same for a classifier and pictures of yours (Hub ids or folders):\n  {own}")
    return results


def run(arguments: QuickstartCommand) -> None:
    """`hf-explain quickstart`, see [`run_quickstart`]."""
    run_quickstart(arguments.output_dir, arguments.seed, disable_tqdm=not arguments.progress)


def format_table(results: dict[str, Any]) -> str:
    """The main numbers of `results.json` as text, the best first, and what they say."""
    rows, protocol = results["explainers"], results["protocol"]
    lines = [
        f"The classifier is right on {results['classifier']['accuracy_without_tag']:.1f} % of new pictures. "
        "Do the maps show why? (%, higher is better)",
        "",
        f"{'':34}{'on the':>12}{'removal test':>14}{'removal test':>14}",
        f"{'':34}{'object':>12}{'seen fills':>14}{'unseen fill':>14}",
    ]
    for name in ranked(rows, "object_overlap"):
        cells = []
        for key in MEASURES:
            low, high = rows[name][f"{key}_interval"]
            cells.append(f"{rows[name][key]:.1f} ±{(high - low) / 2:.1f}")
        lines.append(f"{f'{name} ({KINDS[name]})':34}{cells[0]:>12}{cells[1]:>14}{cells[2]:>14}")
    lines += ["", *map(sentence, results["verdicts"])]
    return "\n".join(
        [
            *lines,
            "",
            "on the object: of the pixels that a map ranks first, as many as the object has, the share that is on it.",
            "removal test (AUC-D): how much longer the answer holds when a map's last pixels go first than when its",
            f"first do. They become {', '.join(protocol['removal_seen'])} (seen: the head was trained with these) or",
            "another picture (unseen).",
            "control: looks at nothing; what cannot beat it says nothing.",
        ]
    )


def next_steps() -> dict[str, str]:
    """Commands: the same for a reader's own classifier and pictures, and the study of this one's mistakes."""
    train_own = "hf-explain train --classifier CLASSIFIER --dataset PICTURES --head ttame --preset ranking -o my-head"
    explain_own = "hf-explain explain PICTURE --method ttame=my-head --method gradcam -o map.png"
    study = "hf-explain errors --model head --dataset data -o errors"
    return {"own": f"{train_own}\n{explain_own}", "study": study}


# ----------------------------------------------------------------------------------------------------------- the parts


def _train_head(work: Path, dataset, num_epochs: int, seed: int, disable_tqdm: bool) -> dict[str, Any]:
    torch.manual_seed(seed)
    head = TTameForSaliency.from_classifier(str(work / "classifier"), preset=PRESET)
    arguments = ExplainerTrainingArguments(
        output_dir=str(work / "head"),
        num_train_epochs=num_epochs,
        per_device_batch_size=32,
        optimizer="adamw",
        learning_rate=0.01,
        weight_decay=0.0,
        augmentation="flip",
        image_column="image",
        seed=seed,
        save_steps=0,
        dataloader_num_workers=0,
        disable_tqdm=disable_tqdm,
    )
    return train(head, dataset, args=arguments, description={"dataset": MADE_BY})


def _num_head_parameters(head) -> int:
    return sum(tensor.numel() for tensor in head.state_dict().values())  # a head's state is its own


# ------------------------------------------------------------------------------------------------------------ pictures


def _draw_pictures(work: Path, dataset, explained, results: dict[str, Any], curves) -> None:
    labels, has_cue = dataset["label"][:], dataset["has_cue"][:]
    names = dataset.features["label"].names
    predicted, scores = explained[HEAD]["label"], explained[HEAD]["score"]
    shown = [HEAD, RIVAL, "random"]

    def grid(chosen: list[int], name: str) -> None:
        rows, sentences = [], []
        for index in chosen:
            image, truth = dataset[index]["image"], names[labels[index]]
            maps = [explained[explainer]["saliency"][index] for explainer in shown]
            rows.append([image, *(overlay(image, one, alpha=0.85, grayscale=True) for one in maps)])
            wrong = "" if truth == predicted[index] else f", but it is a {truth}"
            sentences.append(f"“{predicted[index]}”, {100 * scores[index]:.0f} %{wrong}")
        columns = ["picture", *shown]
        save_image(saliency_grid(rows, columns, row_labels=sentences, cell_size=180, text_size=22), work / name)

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
    for key, name, title in (
        ("object_overlap", "overlap.png", "On the object (higher is better)"),
        ("removal_unseen", "removal.png", "Removal test, unseen fill (higher is better)"),
    ):
        order = ranked(numbers, key)
        chart = bar_chart(
            {explainer: numbers[explainer][key] for explainer in order},
            {explainer: tuple(numbers[explainer][f"{key}_interval"]) for explainer in order},
            title=title,
            x_label="% (whiskers: 95 % interval)",
            kinds=KINDS,
        )
        save_image(chart, work / name)
    for direction, name, title in (
        ("positive", "removed_first.png", "Most salient pixels removed first (lower is better)"),
        ("negative", "removed_last.png", "Most salient pixels removed last (higher is better)"),
    ):
        chart = plot_curves(
            {explainer: curves[explainer][direction] for explainer in COMPARED},
            [100 * fraction for fraction in curves["fractions"]],
            title=title,
            x_label="pixels made black (%)",
            y_label="answer unchanged (%)",
            kinds=KINDS,
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
            f"`output_dir` {str(output_dir)!r} holds something other than a quickstart; name a new folder or an empty "
            "one."
        )
    if os.path.lexists(output_dir):
        raise FileExistsError(f"`output_dir` {str(output_dir)!r} is not a folder; name a new folder or an empty one.")


def _is_quickstart(directory: Path) -> bool:
    try:
        return read_json_file(directory / "results.json").get("made_by") == MADE_BY
    except (OSError, ValueError):
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
