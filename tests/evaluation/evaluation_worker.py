"""What each of two processes does in `test_evaluator.py`, and what it finds."""

import contextlib
from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from testing_training import picture_dataset
from torch.utils.data import DataLoader, TensorDataset

from hf_explain import FrozenClassifier, SaliencyEvaluator
from hf_explain.evaluation.arguments import EvaluationArguments
from hf_explain.evaluation.comparison import compare
from hf_explain.evaluation.evaluator import load_metrics
from hf_explain.evaluation.explainer import resolve_explainer
from hf_explain.evaluation.sweep import evaluate_all
from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import lock_directory
from hf_explain.io.image_processor import to_pixel_values
from hf_explain.metrics import path
from hf_explain.registry import METHODS


def gathered(directory: Path) -> tuple[float, int]:
    """A custom loop: seven images over two processes, the padding of the last batch gathered away."""
    accelerator = Accelerator(cpu=True)
    classifier = FrozenClassifier.from_pretrained(directory / "classifier")
    normalisation = {"image_mean": classifier.image_mean, "image_std": classifier.image_std}
    images = classifier.image_processor(images=picture_dataset(7)["image"][:], return_tensors="pt")["pixel_values"]
    loader = accelerator.prepare(DataLoader(TensorDataset(images, torch.arange(7)), batch_size=2))
    collected: dict[str, list] = {}
    metric = evaluate.load(path("auc_d"), experiment_id=str(accelerator.process_index))
    for pixel_values, ids in loader:
        saliency = METHODS["random"](classifier, pixel_values, image_ids=ids).saliency
        columns = metric.measure(classifier, pixel_values, saliency, image_ids=ids, **normalisation)
        for name, column in columns.items():
            whole = accelerator.gather_for_metrics(torch.tensor(column, dtype=torch.float64))
            collected.setdefault(name, []).extend(whole.tolist())
    result = metric.compute(**collected)
    return result["auc_d"], result["num_images"]


def fills_and_games(directory: Path) -> dict:
    """AUC-D with every fill, the grid pointing game and single deletion, on pictures of what the classifier sees."""
    classifier, pictures = FrozenClassifier.from_pretrained(directory), picture_dataset(12)
    with torch.no_grad():
        seen = classifier(to_pixel_values(classifier.image_processor, pictures["image"][:])).argmax(-1).tolist()
    data = [{"image": row["image"], "label": label} for row, label in zip(pictures, seen)]
    result = SaliencyEvaluator().compute(
        classifier, data, ["auc_d_fills@all", "grid_pointing", "single_deletion"], method="gradcam", progress=False,
        metric_options={"auc_d_fills@all": {"steps": 2}, "grid_pointing": {"confidence": 0}}, return_columns=True,
    )  # fmt: skip
    return result["columns"]


def main(rank: int, directory: Path) -> dict:
    def run(data, **options):
        return SaliencyEvaluator().compute(
            str(directory / "classifier"), data, ["auc_d"], method="random", progress=False, **options
        )["auc_d"]["auc_d"]

    found = {
        "map": run(picture_dataset(7)),
        "folder": run(picture_dataset(7), output_dir=directory / "out", shard_size=2),
        "stream": run(load_image_dataset(directory / "shards", streaming=True), shard_size=2),
    }
    found["fills_and_games"] = fills_and_games(directory / "convnext")
    found["gathered"], found["num_gathered"] = gathered(directory)
    bad = [dict(row) for row in picture_dataset(5)]
    bad[4]["image"] = "nowhere.png"
    try:
        run(bad, image_column="image")
    except (ValueError, RuntimeError) as error:
        found["bad"] = str(error)
    # one of them fails on both processes, the other explainers are measured all the same
    compared = compare(
        directory / "classifier", picture_dataset(5), "gradcam,raw_attention", "auc_d",
        output_dir=directory / "comparison", shard_size=2, pictures=0, progress=False, report=lambda line: None,
    )["explainers"]  # fmt: skip
    found["comparison"] = {name: one.get("error") or one["num_images"] for name, one in compared.items()}
    # no folder, and fewer images for one than for the other: the shards are the longer one's
    tasks = {}
    for name, count in (("short", 3), ("long", 7)):
        arguments = EvaluationArguments(metrics="auc_d", max_examples=count, progress=False)
        explainer = resolve_explainer(str(directory / "classifier"), "random", None, 0, "cpu")
        tasks[name] = explainer, load_metrics(arguments), arguments
    outcomes = evaluate_all(tasks, picture_dataset(7), essential=tuple(tasks))
    found["lengths"] = {name: outcome[0].found.num_images for name, outcome in outcomes.items()}
    # the first process alone asks for the lock; the other one learns what it was told
    with lock_directory(directory / "busy") if rank == 0 else contextlib.nullcontext():
        for name, start in (
            ("busy", lambda folder: run(picture_dataset(2), output_dir=folder)),
            ("compared", lambda folder: compare("nowhere", [], "gradcam", output_dir=folder)),
        ):
            try:
                start(directory / "busy")
            except OSError as error:
                found[name] = str(error)
    return found
