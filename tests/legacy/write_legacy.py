"""
How everything else in this directory was written: by the package as it was at commit 0bede3a, 48 modules in one place.

`test_legacy.py` loads, resumes and reads it with today's code, and compares with what that version found. Do not write
it again with a later version; what a later one writes otherwise gets a directory of its own.

```bash
git worktree add /tmp/older 0bede3a
PYTHONPATH=/tmp/older python tests/legacy/write_legacy.py /tmp/legacy
```
"""

import json
import os
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification, pipeline

from hf_explain.cards import build_model_card
from hf_explain.cli import main
from hf_explain.mapping import AutoModelForSaliency
from hf_explain.remote_code import auto_map, remote_code_files


LABELS = ("tench, Tinca tinca", "cat", "tiger cat")
HEADS = {
    "lcam-fm": ["--head", "lcam", "--head_option", "variant=fm"],
    "lcam-img": ["--head", "lcam", "--head_option", "variant=img"],
    "ttame": ["--head", "ttame"],
    "ttame-ranking": ["--head", "ttame", "--preset", "ranking"],
    "scan": ["--head", "scan", "--head_option", "decoder_width=1"],
    "ttame-self-contained": ["--head", "ttame", "--head_option", "self_contained=true"],
}
TRAINING = ["--dataset", "pictures", "--per_device_batch_size", "3", "--learning_rate", "0.02", "--logging_steps", "1",
            "--dataloader_num_workers", "0", "--disable_tqdm"]  # fmt: skip
NORMALIZE = {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2], "do_rescale": True}
PROCESSORS = {
    "classifier": {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 48},
        "crop_pct": 0.875,
        **NORMALIZE,
    },  # fmt: skip
    "vit": {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 16, "width": 24},
        **NORMALIZE,
    },  # fmt: skip
}


def write_classifiers() -> None:
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    torch.manual_seed(0)
    models = {
        "classifier": ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 12], depths=[1, 1, 1], layer_type="basic", **labels)
        ),
        "vit": ViTForImageClassification(
            ViTConfig(
                image_size=[16, 24],
                patch_size=8,
                hidden_size=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=16,
                **labels,
            )  # fmt: skip
        ),
    }
    for name, model in models.items():
        for key, tensor in (*model.named_parameters(), *model.named_buffers()):
            if key.endswith("running_var"):
                tensor.data.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim >= 2:
                tensor.data.normal_(0, tensor[0].numel() ** -0.5)
            elif tensor.is_floating_point():
                tensor.data += 0.1 * torch.randn(tensor.shape)
        model.eval().save_pretrained(name)
        Path(name, "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name], indent=2) + "\n")


def write_pictures() -> None:
    """Twelve pictures of a few coloured tiles, in two shards."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (7, 8, 3), dtype=np.uint8).repeat(5, 0).repeat(6, 1) for _ in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))})
    rows = {"image": [Image.fromarray(picture) for picture in pictures], "label": [i % 3 for i in range(12)]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    Path("pictures/data").mkdir(parents=True)
    for shard in range(2):
        part = dataset.shard(2, shard, contiguous=True)
        part.to_parquet(f"pictures/data/train-{shard:05d}-of-00002.parquet")


def command(*words: str) -> None:
    if main(list(words)) != 0:
        raise SystemExit(f"hf-explain {' '.join(words)} failed")


def write_heads() -> None:
    for name, options in HEADS.items():
        classifier = "vit" if name == "ttame-self-contained" else "classifier"
        command("train", "--classifier", classifier, *TRAINING, *options, "--max_steps", "3", "--save_steps", "0",
                "--output_dir", name)  # fmt: skip
    # as `hf-explain push` uploads it
    directory = Path("ttame-self-contained")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = auto_map(config, "stub")
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file, text in remote_code_files(config, "stub").items():
        (directory / file).write_text(text)


def write_trainings() -> None:
    """Two runs to their ends, each with the checkpoint from its middle; validation and accumulation in one of them."""
    train = ["train", "--classifier", "classifier", *TRAINING, "--head_option", "variant=img",
             "--save_steps", "3", "--save_total_limit", "1"]  # fmt: skip
    more = ["--eval_split", "train", "--eval_steps", "2", "--target", "label", "--optimizer", "adamw",
            "--gradient_accumulation_steps", "2"]  # fmt: skip
    command(*train, *more, "--max_steps", "5", "--output_dir", "training-map")
    command(*train, "--streaming", "--num_examples", "12", "--shuffle_buffer_size", "4", "--max_steps", "5",
            "--output_dir", "training-stream")  # fmt: skip


def write_maps() -> None:
    """What every head says of four pictures, and the pipeline of one."""
    found = {}
    pictures = datasets.load_dataset("pictures", split="train")["image"][:4]
    for name in HEADS:
        head = AutoModelForSaliency.from_pretrained(name)
        pixel_values = head.backbone.image_processor(pictures, return_tensors="pt")["pixel_values"]
        output = head(pixel_values, target=[0, 2, 1, 0])
        found |= {f"{name}.saliency": output.saliency, f"{name}.logits": output.logits}
    result = pipeline("saliency", model="lcam-img")(pictures[0], target="cat")[0]
    found |= {
        "pipeline.map": torch.from_numpy(result["saliency_map"]),
        "pipeline.score": torch.tensor(result["score"]),
    }
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in found.items()}, "maps.safetensors")


def write_measurements() -> None:
    """A comparison with its partial results, the study of errors, and an export, all of them finished."""
    command("evaluate", "--classifier", "classifier", "--explainers", "lcam=lcam-img,gradcam,rise", "--dataset",
            "pictures", "--split", "train", "--metrics", "auc_d,average_drop,win_rate", "--slow_examples", "6",
            "--method_option", "rise.num_masks=4", "--metric_option", "auc_d.steps=4", "--sanity",
            "--sanity_examples", "2", "--shard_size", "4", "--batch_size", "4", "--pictures", "0", "--no_progress",
            "-o", "comparison")  # fmt: skip
    command("errors", "--model", "lcam-img", "--dataset", "pictures", "--split", "train", "--min_images", "2",
            "--pictures", "0", "--no_progress", "-o", "errors")  # fmt: skip
    command("export", "--model", "lcam-img", "--dataset", "pictures", "--top_k", "2", "--shard_size", "8",
            "--batch_size", "4", "--use_cpu", "--disable_tqdm", "-o", "export")  # fmt: skip


def write_card() -> None:
    card = build_model_card("lcam-img", repo_id="me/lcam-img", evaluation="comparison/results.json")
    Path("card.md").write_text(str(card))


def tidy() -> None:
    """Leave out what is only to be looked at, or there more than once."""
    for pattern in ("**/*.png", "errors/*.md", "errors/*.html", "vit/*"):
        for file in Path(".").glob(pattern):
            file.unlink()
    for name in ("gradcam", "rise", "random", "centre"):
        shutil.rmtree(f"comparison/explainers/{name}")
    Path("vit").rmdir()


if __name__ == "__main__":
    os.makedirs(sys.argv[1])
    os.chdir(sys.argv[1])
    write_classifiers()
    write_pictures()
    write_heads()
    write_trainings()
    write_maps()
    write_measurements()
    write_card()
    tidy()
