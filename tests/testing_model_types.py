"""A tiny random classifier of every model type that Transformers classifies images with, and its image processor."""

import json
import types

import torch
import transformers
from testing_common import LABELS, randomize
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES, AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.timm_wrapper import modeling_timm_wrapper


_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24]}
_SWIN = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 4}
_PVT = {**_STAGES, "image_size": 64, "num_attention_heads": [1, 2, 2, 2], "num_labels": len(LABELS)}
_TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 32}
# what makes a model type small
CONFIGS = {
    "beit": _VIT,
    "bit": {**_STAGES, "embedding_size": 8, "num_groups": 2},
    "clip": {"vision_config": _VIT},
    "convnext": {**_STAGES, "image_size": 64},
    "convnextv2": {**_STAGES, "image_size": 64},
    "cvt": {"embed_dim": [8, 12, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": _VIT,
    "deit": _VIT,
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3},
    "dinov2": _VIT,
    "dinov2_with_registers": {**_VIT, "num_register_tokens": 2},
    "donut-swin": _SWIN,
    "efficientnet": {
        "image_size": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "hidden_dim": 320,
        "num_block_repeats": [1] * 7,
    },
    "focalnet": {
        "image_size": 64,
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "hgnet_v2": {
        "embedding_size": 8,
        "depths": [1, 1],
        "hidden_sizes": [16, 24],
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 24],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [1, 1],
    },
    "hiera": {
        "embed_dim": 8,
        "image_size": [64, 64],
        "depths": [1, 1, 2],
        "num_heads": [1, 1, 2],
        "num_query_pool": 2,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, True, False],
    },
    "ijepa": _VIT,
    "imagegpt": {"vocab_size": 17, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "levit": {
        "image_size": 128,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "metaclip_2": {"vision_config": _VIT},
    "mobilenet_v1": {"image_size": 64, "depth_multiplier": 0.25},
    "mobilenet_v2": {"image_size": 64, "depth_multiplier": 0.25},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 48],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 16,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
        "image_size": 32,
    },
    "poolformer": _STAGES,
    "pp_lcnet": {"scale": 0.25, "class_expand": 32},
    "pvt": _PVT,
    "pvt_v2": _PVT,
    "regnet": {**_STAGES, "embedding_size": 8, "groups_width": 4},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
    "segformer": {**_STAGES, "num_attention_heads": [1, 2, 2, 2]},
    "shieldgemma2": {
        "text_config": {**_TEXT, "num_key_value_heads": 1, "head_dim": 8},
        "vision_config": _VIT,
    },
    "siglip": {"vision_config": _VIT},
    "siglip2": {"vision_config": {**_VIT, "num_patches": 16}},
    "swiftformer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 12, 16, 24]},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "textnet": {
        "image_size": 64,
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 12, 16, 24],
        "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
        "conv_layer_strides": [[2]] * 4,
    },
    "timm_wrapper": {"architecture": "stand-in", "pretrained_cfg": {"input_size": [3, 32, 32]}},
    "vit": _VIT,
    "vit_msn": _VIT,
}
CLASSES = [
    (kind, name)
    for kind, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
    for name in ((names,) if isinstance(names, str) else names)
]


class TimmStandIn(nn.Module):
    """What `timm.create_model` gives, in its manner: positions first, attention by the fused kernel, a class token."""

    num_prefix_tokens = 1

    def __init__(self, num_classes):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, 8, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.blocks = nn.Sequential(*(_Block() for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, num_classes)

    def forward(self, pixel_values):
        tokens = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        tokens = self.blocks(torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1))
        return self.head(self.norm(tokens)[:, 0])


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn, self.mlp = _Attention(), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, tokens):
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, tokens):
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


def stand_in_for_timm(monkeypatch):
    """timm needs torchvision, which this package does without: Transformers' wrapper is run around a stand-in."""
    timm = types.SimpleNamespace(create_model=lambda architecture, pretrained, num_classes: TimmStandIn(num_classes))
    monkeypatch.setattr(modeling_timm_wrapper, "timm", timm, raising=False)
    monkeypatch.setattr(modeling_timm_wrapper, "requires_backends", lambda *args: None)


def build(kind, name):
    """A classifier of one class with random weights of unit gain."""
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(CONFIG_MAPPING[kind](**CONFIGS[kind], **labels))
    return randomize(model)


def image_processor(kind, directory, size):
    """The image processor of a type, for images of `size`, loaded from a directory as a user gets it."""
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}
    # PP-LCNet's and timm's own need torchvision
    own = names.get("torchvision") if kind not in ("pp_lcnet", "timm_wrapper") else None
    settings = {"image_processor_type": own or "ViTImageProcessor"}
    for _ in range(2):  # the second time with the sides that the first one has
        (directory / "preprocessor_config.json").write_text(json.dumps(settings))
        processor = AutoImageProcessor.from_pretrained(directory)
        for key in ("size", "crop_size"):
            sides = processor.to_dict().get(key)
            if sides:
                settings[key] = {side: size for side, value in sides.items() if value}
    return processor
