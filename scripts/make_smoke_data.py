#!/usr/bin/env python
"""Tiny classifiers of the four families and a handful of pictures, for `scripts/reproduce_*.sh --smoke`.

python scripts/make_smoke_data.py DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)


LABELS = {"id2label": {0: "left", 1: "right"}, "label2id": {"left": 0, "right": 1}}
SIDE = 32
TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
CONFIGS = {
    "resnet": ResNetConfig(embedding_size=8, layer_type="basic", **STAGES, **LABELS),
    "convnext": ConvNextConfig(image_size=SIDE, **STAGES, **LABELS),
    "vit": ViTConfig(**TRANSFORMER, **LABELS),
    "deit": DeiTConfig(**TRANSFORMER, **LABELS),
}
MODELS = {
    "resnet": ResNetForImageClassification,
    "convnext": ConvNextForImageClassification,
    "vit": ViTForImageClassification,
    "deit": DeiTForImageClassification,
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def main(directory: Path) -> None:
    torch.manual_seed(0)
    for family, config in CONFIGS.items():
        MODELS[family](config).save_pretrained(directory / family)
        (directory / family / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (48, 40, 3), dtype=np.uint8)) for _ in range(8)]
    labels = datasets.ClassLabel(names=list(LABELS["label2id"]))
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    dataset = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 4}, features=features)
    dataset.to_parquet(directory / "images.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
