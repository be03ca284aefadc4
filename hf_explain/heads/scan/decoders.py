"""SCAN's two decoders: masked features in, an image and a confidence channel out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.heads.distributed import GlobalBatchNorm2d
from hf_explain.tensors.maps import grid_to_tokens, resize_maps, tokens_to_grid


# channels towards the grid, in units of those at full resolution; the paper's 64, 128, 192, 256, 384, 512
_CNN_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16)


def default_widths(decoder: str, levels: int, width: int | None = None) -> list[int]:
    """
    Channels of every level, from the grid to full resolution.

    Args:
        decoder (`str`): `"cnn"` or `"transformer"`.
        levels (`int`): Doublings between the grid and the image.
        width (`int`, *optional*): Channels at full resolution; the paper's 64 or 32 when not given.

    Returns:
        `list[int]`: `levels + 1` numbers for `"cnn"`, `levels` for `"transformer"`.
    """
    if decoder == "transformer":
        return [(width or 32) * 2**level for level in reversed(range(levels))]
    return [(width or 64) * _CNN_WIDTHS[min(level, len(_CNN_WIDTHS) - 1)] for level in reversed(range(levels + 1))]


class ResidualModule(nn.Module):
    """Pre-activation bottleneck: BN-ReLU-1×1 to half the width, BN-ReLU-3×3, BN-ReLU-1×1 back, plus the input."""

    def __init__(self, width: int):
        super().__init__()
        narrow = max(1, width // 2)
        self.norm1 = GlobalBatchNorm2d(width)
        self.norm2, self.norm3 = GlobalBatchNorm2d(narrow), GlobalBatchNorm2d(narrow)
        self.conv1 = nn.Conv2d(width, narrow, kernel_size=1, bias=False)
        self.conv2 = nn.Conv2d(narrow, narrow, kernel_size=3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(narrow, width, kernel_size=1)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        # in place: BatchNorm's gradient does not need its output
        out = self.conv1(F.relu_(self.norm1(state)))
        out = self.conv2(F.relu_(self.norm2(out)))
        return state + self.conv3(F.relu_(self.norm3(out)))


def _upsampling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Exactly twice the size; four taps, since with three every second pixel gets more: maps show a checkerboard."""
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)


class _Output(nn.Module):
    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.norm = GlobalBatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, channels, kernel_size=1)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.conv(F.relu_(self.norm(state)))


class CnnDecoder(nn.Module):
    """
    A 1×1 projection, then per level two residual modules and a stride-2 transposed convolution.

    The skip of a level goes around its modules and its upsampling: the level's input, projected to the new width and
    resized bilinearly, is added to the level's output. Nothing but the masked features of the one tap comes in: a skip
    from the classifier's earlier layers would carry the image past the mask.

    Args:
        channels (`int`): Of the tapped layer.
        widths (sequence of `int`): Of every level, from the grid to full resolution.
        outputs (`int`): Channels made: those of the image and the confidence.
        num_residual_modules (`int`): Per level.
    """

    def __init__(self, channels: int, widths: Sequence[int], outputs: int, num_residual_modules: int):
        super().__init__()
        self.projection = nn.Conv2d(channels, widths[0], kernel_size=1)
        self.modules_per_level = nn.ModuleList(
            nn.Sequential(*(ResidualModule(width) for _ in range(num_residual_modules))) for width in widths
        )
        pairs = list(zip(widths, widths[1:]))
        self.upsamplings = nn.ModuleList(_upsampling(*pair) for pair in pairs)
        self.skips = nn.ModuleList(nn.Conv2d(*pair, kernel_size=1) for pair in pairs)
        self.output = _Output(widths[-1], outputs)

    def forward(self, feature_map: torch.Tensor, prefix_tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Prefix tokens, which have no place on the grid, are dropped."""
        state = self.projection(feature_map)
        for modules, upsampling, skip in zip(self.modules_per_level, self.upsamplings, self.skips):
            up = upsampling(modules(state))
            state = up + resize_maps(skip(state), tuple(up.shape[-2:]))
        return self.output(self.modules_per_level[-1](state))


class AttentionBlock(nn.Module):
    """Self-attention and a GELU layer of four times the width, each followed by its LayerNorm (post-norm)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = max(heads for heads in range(1, num_heads + 1) if width % heads == 0)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.expansion, self.contraction = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        heads = self.query_key_value(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads.unbind(0)).transpose(1, 2).flatten(2)
        tokens = self.norm1(tokens + self.projection(attended))
        return self.norm2(tokens + self.contraction(F.gelu(self.expansion(tokens))))


class TransformerDecoder(nn.Module):
    """
    Attention blocks over all tokens, prefix tokens included; these are dropped where the rest becomes a grid. Then per
    level a stride-2 transposed convolution and two residual modules.

    Args:
        channels (`int`): Of the tapped layer: its hidden size.
        widths (sequence of `int`): Of every level, from coarse to full resolution.
        outputs (`int`): Channels made: those of the image and the confidence.
        num_residual_modules (`int`): Per level.
        num_attention_blocks (`int`): Blocks.
        num_attention_heads (`int`): Heads, at most.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        outputs: int,
        num_residual_modules: int,
        num_attention_blocks: int,
        num_attention_heads: int,
    ):
        super().__init__()
        self.blocks = nn.Sequential(
            *(AttentionBlock(channels, num_attention_heads) for _ in range(num_attention_blocks))
        )
        self.levels = nn.Sequential(
            *(
                nn.Sequential(_upsampling(*pair), *(ResidualModule(pair[1]) for _ in range(num_residual_modules)))
                for pair in zip([channels, *widths], widths)
            )
        )
        self.output = _Output(widths[-1] if len(widths) else channels, outputs)

    def forward(self, feature_map: torch.Tensor, prefix_tokens: torch.Tensor | None = None) -> torch.Tensor:
        tokens = self.blocks(grid_to_tokens(feature_map, prefix_tokens))
        num_prefix = 0 if prefix_tokens is None else prefix_tokens.shape[1]
        grid = tokens_to_grid(tokens, feature_map.shape[-2:], num_prefix)
        return self.output(self.levels(grid))
