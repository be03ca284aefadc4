"""Tiny seeded models of images and texts, one of every type that Transformers' zero-shot pipeline takes."""

import functools
import json
import os

import torch
from testing_common import randomize
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AltCLIPConfig,
    AltCLIPModel,
    BlipConfig,
    BlipModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    Tipsv2Config,
    Tipsv2Model,
)


WORDS = ("<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "This", "is", ".", "cat", "dog", "remote", "control")
MAX_TOKENS = 16
_SIDES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
_IMAGE = {**_SIDES, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
_TEXT = {
    **_SIDES,
    "num_hidden_layers": 2,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "sep_token_id": 3,
}
_BOTH = {"text_config": _TEXT, "vision_config": _IMAGE}
_BLOCKS = {"width_coefficient": 0.25, "depth_coefficient": 0.25, "num_block_repeats": [1] * 7, "image_size": 64}
_PATCHES = {**_SIDES, "num_hidden_layers": 2, "num_patches": 16, "patch_size": 8}
# model_type: (class, config)
MODELS = {
    "align": (AlignModel, lambda: AlignConfig(text_config=_TEXT, vision_config=_BLOCKS, projection_dim=80)),
    "altclip": (
        AltCLIPModel,
        # its positions start behind the padding's
        lambda: AltCLIPConfig(**{**_BOTH, "text_config": {**_TEXT, "project_dim": 24}}, projection_dim=16),
    ),
    "blip": (
        BlipModel,
        lambda: BlipConfig(**{**_BOTH, "text_config": {**_TEXT, "encoder_hidden_size": 32}}, projection_dim=16),
    ),
    "chinese_clip": (ChineseCLIPModel, lambda: ChineseCLIPConfig(**_BOTH, projection_dim=16)),
    "clip": (CLIPModel, lambda: CLIPConfig(**_BOTH, projection_dim=16)),
    "clipseg": (CLIPSegModel, lambda: CLIPSegConfig(**_BOTH, projection_dim=16)),
    "metaclip_2": (MetaClip2Model, lambda: MetaClip2Config(**_BOTH, projection_dim=16)),
    "siglip": (SiglipModel, lambda: SiglipConfig(**_BOTH)),
    "siglip2": (Siglip2Model, lambda: Siglip2Config(text_config=_TEXT, vision_config=_PATCHES)),
    "tipsv2": (Tipsv2Model, lambda: Tipsv2Config(**_BOTH)),
}
_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.25, 0.2],
}
# SigLIP warps to its size
_WARPING = {**_PROCESSOR, "image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
del _WARPING["do_center_crop"], _WARPING["crop_size"]


@functools.cache
def tiny_tokenizer():
    """One token per word, and one at each end."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=MAX_TOKENS,
    )


def tiny_zero_shot(model_type: str, seed: int = 0):
    """A model of images and texts, in eval mode."""
    cls, config = MODELS[model_type]
    with torch.random.fork_rng(devices=[]):  # some biases keep their first values, which torch draws
        torch.manual_seed(seed)
        return randomize(cls(config()), seed)


def save_zero_shot(model_type: str, directory, tokenizer: bool = True) -> str:
    """One with its image processor and tokenizer in a directory, as the Hub holds them."""
    tiny_zero_shot(model_type).save_pretrained(directory)
    with open(os.path.join(directory, "preprocessor_config.json"), "w") as file:
        json.dump(_WARPING if model_type == "siglip" else _PROCESSOR, file)
    if tokenizer:
        tiny_tokenizer().save_pretrained(directory)
    return str(directory)
