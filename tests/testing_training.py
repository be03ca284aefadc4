"""A head small enough to train in milliseconds, and pictures to train it on."""

import copy
import functools
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers.utils import ModelOutput

from hf_explain.io.transformers_names import AutoImageProcessor


# `datasets` waits 5 s after a pass over several shards, for a pyarrow that may crash when a process ends just then
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


@dataclass
class TinyOutput(ModelOutput):
    loss: torch.Tensor | None = None
    loss_terms: dict | None = None


class TinyHead(nn.Module):
    """Frozen BatchNorm'd stem, trainable 1x1 conv; draws random numbers in training, as some heads do."""

    def __init__(self, noise: float = 0.1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.stem.requires_grad_(False)
        self.norm.requires_grad_(False)
        self.noise = noise
        self.seen = []

    def train(self, mode: bool = True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, pixel_values, target=None, return_loss=False):
        features = self.norm(self.stem(pixel_values))
        if self.training:
            self.seen.append(pixel_values.detach().clone())
            features = features + self.noise * torch.randn_like(features)
        logits = self.head(features).mean((2, 3))
        target = logits.argmax(-1) if target is None else target
        loss = nn.functional.cross_entropy(logits, target) + 0.1 * logits.square().mean()
        return TinyOutput(loss=loss, loss_terms={"size": logits.square().mean().detach()})

    def save_pretrained(self, directory):
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_file(
            {"weight": self.head.weight.data, "bias": self.head.bias.data}, Path(directory) / "model.safetensors"
        )


def picture(index: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    rng = np.random.default_rng(index)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(index: int) -> bytes:
    buffer = io.BytesIO()
    picture(index).save(buffer, format="PNG")
    return buffer.getvalue()


def picture_dataset(count: int = 30, image: str = "image", label: str = "label") -> datasets.Dataset:
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=["a", "b", "c"])})
    rows = {image: [{"bytes": encoded(i), "path": None} for i in range(count)], label: [i % 3 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def parquet_shards(directory: Path, count: int = 30, shards: int = 4) -> Path:
    """A directory like ImageNet's on the Hub: data/train-00000-of-00004.parquet and so on."""
    dataset = picture_dataset(count)
    (directory / "data").mkdir(parents=True)
    for shard in range(shards):
        part = dataset.shard(shards, shard, contiguous=True)
        part.to_parquet(str(directory / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"))
    return directory


@functools.cache
def _processor(size: int):
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": size, "width": size},
              "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "preprocessor_config.json").write_text(json.dumps(config))
        return AutoImageProcessor.from_pretrained(directory)


def processor(size: int = 16):
    """A ViT's image processor: warps to a square, mean and standard deviation 0.5."""
    return copy.deepcopy(_processor(size))


# every head whose training step mixes the images of a batch
HEADS = {
    "lcam": ("lcam", {"regularize": "batch"}),
    "ttame": (
        "ttame",
        {"regularize": "batch", "removal_weight": 0.5, "ranking_weight": 0.5, "mask_fills": ["black", "mean", "blur"]},
    ),
    "scan": ("scan", {"feature_layers": ["stage2"], "decoder_width": 2}),
}

# the same, where the first steps go by a method that draws
DISTILLED = {"distill_method": "rise", "distill_steps": 2, "method_options": {"rise": {"num_masks": 20}}}


def train_head(name: str, directory: Path, **options) -> list[float]:
    """Train a real head for a few steps on a tiny classifier; its trainable weights and statistics."""
    from testing_common import tiny_classifier

    from hf_explain.registry import METHODS, resolve_head
    from hf_explain.training.arguments import ExplainerTrainingArguments
    from hf_explain.training.loop import train

    kind, fields = HEADS[name]
    torch.manual_seed(0)
    head = resolve_head(kind).from_classifier(tiny_classifier("resnet"), **fields)
    args = ExplainerTrainingArguments(
        output_dir=str(directory),
        max_steps=4,
        learning_rate=0.01,
        disable_tqdm=True,
        dataloader_num_workers=0,
        **{"save_steps": 0, **options},
    )
    train(head, picture_dataset(), None, processor(), args, method=METHODS.get(args.distill_method))
    own = (value for key, value in head.state_dict().items() if not key.startswith("backbone."))
    return torch.cat([value.flatten().double() for value in own]).tolist()
