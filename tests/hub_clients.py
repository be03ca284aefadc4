"""What the Hub tests share: a tiny classifier, a head of it, and both on the test Hub."""

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_explain import LCamForSaliency
from hf_explain.publish.hub import push_explainer


# A repository's own classes, whose file leaves a trace when it is run: `.format(canary=FILE)`
FOREIGN_CODE = """
from pathlib import Path
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

with open({canary!r}, "a") as file:
    file.write("ran")


class Config(ResNetConfig):
    model_type = "evil"


class Model(ResNetForImageClassification):
    config_class = Config


class Processor(ViTImageProcessorPil):
    pass
"""


def tiny_classifier(seed=0):
    torch.manual_seed(seed)
    labels = {0: "tench", 1: "church", 2: "parachute"}
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            id2label=labels,
            label2id={name: index for index, name in labels.items()},
        )
    ).eval()


def tiny_processor():
    return ViTImageProcessor(size={"height": 32, "width": 32})


def push_classifier(repo_id="user/resnet", seed=0):
    tiny_classifier(seed).push_to_hub(repo_id)
    tiny_processor().push_to_hub(repo_id)


def tiny_head(classifier="user/resnet"):
    torch.manual_seed(1)
    return LCamForSaliency.from_classifier(classifier)


def tiny_image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def pixels():
    return tiny_processor()(images=tiny_image(), return_tensors="pt")["pixel_values"]


def push_quietly(*args, **kwargs):
    return push_explainer(*args, **{"report": None, **kwargs})
