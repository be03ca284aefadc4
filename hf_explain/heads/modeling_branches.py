"""Layers refined by a small branch each and fused into one map per class, shared by T-TAME and P-TAME."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.class_maps import ClassConv2d, class_maps, is_bare
from hf_explain.heads.distributed import GlobalBatchNorm2d
from hf_explain.heads.modeling_mask_trained import MaskTrainedConfig, MaskTrainedExplainer
from hf_explain.heads.taps import spread_blocks
from hf_explain.tensors.maps import resize_maps
from hf_explain.tensors.scalars import check_choice, check_count


class BranchedConfig(MaskTrainedConfig):
    """
    Fields of the branches, beside those of the loss.

    Args:
        feature_kind (`str`, *optional*): What a tap of ViT or DeiT reads: `"hidden_state"`, the layer's output, or
            `"pre_norm"`, that output after the LayerNorm the next block applies before its attention, as released.
            `"pre_norm"` for ViT and DeiT when not given, `"hidden_state"` for everything else.
        token_product (`bool`, *optional*, defaults to `False`): Multiply every patch token channel-wise by the CLS
            token (the papers' variant "TTAME").
        context_size (`int`, *optional*, defaults to 1): 1 as published: a branch judges a position by its own features
            alone. Larger (ours), odd: a depthwise convolution of this size before the 1×1 one, so that a position is
            judged beside its neighbours on the tap's grid.
        skip (`bool`, *optional*, defaults to `True`): Add a branch's input to its output; off is an ablation.
        batch_norm (`bool`, *optional*, defaults to `True`): BatchNorm in every branch; off is an ablation. In training
            its statistics are those of the batch of all processes.
        branch_activation (`str`, *optional*, defaults to `"relu"`): `"relu"` or, as an ablation, `"sigmoid"`.
        max_map_size (`int`, *optional*, defaults to 56): Upper bound of the map's height and width.
        mask_space (`str`, *optional*): As in [`MaskTrainedConfig`]; when not given, `"normalized"` for ViT and DeiT
            and `"pixel"` for everything else, as released.
        kwargs: The loss, see [`MaskTrainedConfig`].
    """

    additions: ClassVar[dict[str, str]] = {
        **MaskTrainedConfig.additions,
        "context_size": "context",
        "tap_products": "products of taps",
    }

    feature_kind: str | None = None
    token_product: bool = False
    context_size: int = 1
    tap_products: bool = False
    skip: bool = True
    batch_norm: bool = True
    branch_activation: str = "relu"
    max_map_size: int = 56
    mask_space: str | None = None

    def validate_explainer(self) -> None:
        super().validate_explainer()
        check_choice(self.feature_kind, "feature_kind", ("hidden_state", "pre_norm"), optional=True)
        check_choice(self.branch_activation, "branch_activation", ("relu", "sigmoid"))
        if self.context_size < 1 or self.context_size % 2 == 0:
            raise ValueError(f"`context_size` must be odd and at least 1, got {self.context_size}.")
        check_count(self.max_map_size, "max_map_size")
        layers = list(self.feature_layers or ())
        repeated = [layer for layer in layers if layers.count(layer) > 1]
        if repeated:
            raise ValueError(f"`feature_layers` names {repeated[0]!r} more than once; name each layer once.")


class BranchedExplainer(MaskTrainedExplainer):
    """
    Several layers of a classifier, each refined by a residual 1×1 convolution, fused into one map per class.

    As published, every branch is resized to the map's size, all are concatenated and a 1×1 convolution makes a map of
    every class. Fusing and resizing are both linear and commute, and one class is asked for: here each branch is first
    reduced to the one channel of the target, and only that channel is resized. The numbers are the same; a tensor with
    a map of every class, or with all branches at the map's size, never exists.
    """

    config_class = BranchedConfig
    config: BranchedConfig
    fuser_bias: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ranking": {
            "ranking_weight": 1.0,
            "ce_weight": 1.0,
            "area_weight": 0.0,
            "regularize": "own",
            "contrast": 2.0,
            # all but "photo": what a table measures with it, no head has seen
            "mask_fills": ["black", "mean", "blur", "white", "noise", "color"],
        }
    }

    def __init__(self, config: BranchedConfig):
        super().__init__(config)
        channels = list(config.taps.values())
        self.convs = nn.ModuleList(nn.Conv2d(width, width, kernel_size=1) for width in channels)
        if config.context_size > 1:
            self.contexts = nn.ModuleList(
                nn.Conv2d(width, width, config.context_size, padding="same", groups=width) for width in channels
            )
        self.bns = self._norms(channels)
        fused = sum(channels)
        if config.tap_products:
            first, *others = channels
            self.gates = nn.ModuleList(nn.Conv2d(width, first, kernel_size=1) for width in others)
            self.gate_norms = self._norms([first] * len(others))
            self.product_norms = self._norms([first] * len(others))
            fused += first * len(others)
        assert config.num_labels is not None  # a configuration has two where nothing else is said
        self.fuser = ClassConv2d(fused, config.num_labels, kernel_size=1, bias=self.fuser_bias)
        self.post_init()

    def _norms(self, channels: Sequence[int]) -> nn.ModuleList | None:
        return nn.ModuleList(GlobalBatchNorm2d(width) for width in channels) if self.config.batch_norm else None

    @classmethod
    def preset_fields(cls, preset: str, classifier: FrozenClassifier) -> dict[str, Any]:
        fields = super().preset_fields(preset, classifier)
        # where the patches that are read are the map's own positions: not in Swin, which merges them
        plain = classifier.patch_size is not None and classifier.token_layout is not None
        if plain:
            fields["mask_grid"] = "patch"
        # Asking for smooth maps costs the order of positions, and thresholds of 0.3 are too hard, 1 too soft: measured
        # on ViT, DeiT and ConvNeXt. A ResNet lost by it, and others were not measured.
        if plain or _is_convnext(classifier):
            fields |= {"variation_weight": 0.0, "ranking_temperature": 0.6}
        return fields

    @classmethod
    def preset_taps(cls, preset: str, tapped: FrozenClassifier) -> dict[str, Any]:
        if tapped.is_transformer:
            return {"feature_layers": spread_blocks(tapped), "tap_products": True}
        if not _is_convnext(tapped):
            return {}  # a ResNet gained nothing from products and context, a ViT nothing from context
        return {"feature_layers": list(tapped.layer_names[1:]), "context_size": 3, "tap_products": True}

    @classmethod
    def complete_config(cls, classifier: FrozenClassifier, config: Any) -> None:
        super().complete_config(classifier, config)
        if config.mask_space is None:
            config.mask_space = "normalized" if classifier.is_transformer else "pixel"

    @classmethod
    def complete_taps(cls, tapped: FrozenClassifier, config: Any) -> None:
        if config.feature_kind is None:
            config.feature_kind = "pre_norm" if tapped.is_transformer else "hidden_state"
        if config.feature_kind == "pre_norm":
            for layer in config.feature_layers:
                if not tapped.is_transformer or layer == tapped.layer_names[-1]:
                    raise ValueError(
                        f"`feature_kind` 'pre_norm' reads the LayerNorm before the next block's attention, which "
                        f"layer {layer!r} of {tapped.model_class} is not followed by; tap an earlier "
                        "layer of a ViT or DeiT, or use feature_kind='hidden_state'."
                    )
        if config.token_product and not tapped.num_prefix_tokens:
            raise ValueError(
                "`token_product` multiplies patch tokens by the CLS token, which is known for ViT and DeiT but not "
                f"for {tapped.model_class}; use token_product=False."
            )

    @property
    def tapped(self) -> FrozenClassifier:
        """The classifier whose layers are tapped."""
        return self.attached

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        return self._maps(features, target, pairwise=False)

    def pairwise_saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        return self._maps(features, target, pairwise=True)

    def _maps(self, features: ClassifierFeatures, target: torch.Tensor, pairwise: bool) -> torch.Tensor:
        taps = list(self.config.taps)
        size = [min(side, self.config.max_map_size) for side in features[taps[0]].feature_map.shape[-2:]]
        return self.on_grid(class_maps(self.fuser, self._branches(features), target, size, pairwise), features)

    def _branches(self, features: ClassifierFeatures) -> Iterator[torch.Tensor]:
        """What is fused, one after the other: what has been reduced to the target need not be kept."""
        factors: list[torch.Tensor] = []  # the first tap's branch and the other taps, where products are asked for
        for index, layer in enumerate(self.config.taps):
            feature_map = self._tap(features[layer])
            branch = self._branch(index, feature_map)
            if self.config.tap_products:
                factors.append(feature_map if factors else branch)
            yield branch
        for index, feature_map in enumerate(factors[1:]):
            yield self._product(index, factors[0], feature_map)

    def _tap(self, features: LayerFeatures) -> torch.Tensor:
        """One layer's features as its branch reads them."""
        if self.config.feature_kind == "pre_norm":
            features = self.tapped.pre_attention_norm(features)
        feature_map = features.feature_map.to(self.fuser.weight.dtype)
        if self.config.token_product:
            assert features.prefix_tokens is not None  # `complete_taps` refuses a classifier without them
            feature_map = feature_map * features.prefix_tokens[:, 0, :, None, None].to(feature_map.dtype)
        return feature_map

    def _branch(self, index: int, feature_map: torch.Tensor) -> torch.Tensor:
        """Convolutions, BatchNorm, skip, activation of one tap, `(batch_size, channels, height, width)`."""
        seen = feature_map if self.config.context_size == 1 else self.contexts[index](feature_map)
        norm = self.bns[index] if self.bns is not None else None
        branch = self._convolved(self.convs[index], norm, seen, feature_map if self.config.skip else None)
        # in place: neither a convolution, nor BatchNorm, nor a sum needs its output for its gradient
        return branch.relu_() if self.config.branch_activation == "relu" else branch.sigmoid_()

    def _product(self, index: int, first: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
        """The first tap's branch times what another tap makes of its channels, on the first one's grid."""
        norm = self.gate_norms[index] if self.gate_norms is not None else None
        gate = self._convolved(self.gates[index], norm, feature_map)
        product = first * resize_maps(gate, first.shape[-2:])
        return self.product_norms[index](product) if self.product_norms is not None else product

    def _convolved(
        self, conv: nn.Module, norm: nn.Module | None, feature_map: torch.Tensor, skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A 1×1 convolution, BatchNorm and `skip` added: in evaluation one convolution, where they fold."""
        if self.training or not (is_bare(conv) and (norm is None or is_bare(norm))):
            convolved = conv(feature_map)
            if norm is not None:
                convolved = norm(convolved)
        else:
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm | None)
            folds = skip is feature_map
            weight, bias = _folded(conv, norm, folds)
            # a convolution, not a product over positions: on a CPU its kernels take half the time on every grid
            convolved = F.conv2d(feature_map, weight[:, :, None, None], bias)
            skip = None if folds else skip
        return convolved if skip is None else convolved + skip


def _is_convnext(classifier: FrozenClassifier) -> bool:
    return getattr(classifier.config, "model_type", "").startswith("convnext")


def _folded(conv: nn.Conv2d, norm: _BatchNorm | None, skip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Weight, `(channels, channels)`, and bias of the one 1×1 convolution that equals convolution, BatchNorm of the
    running statistics and skip.

    Computed anew at every call from the stored parameters, which stay as they are, so it can never be out of date.
    """
    assert conv.bias is not None
    weight, bias = conv.weight[:, :, 0, 0].float(), conv.bias.float()
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.float() * torch.rsqrt(norm.running_var.float() + norm.eps)
        weight = weight * scale[:, None]
        bias = torch.addcmul(norm.bias.float(), bias - norm.running_mean.float(), scale)
    if skip:
        if norm is None:
            weight = weight.clone()  # still the parameter's own memory
        # of the tensor itself: TorchScript's exporter loses what is written through a view
        places = torch.arange(weight.shape[0], device=weight.device)[:, None]
        weight.scatter_add_(1, places, torch.ones_like(weight[:, :1]))
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)
