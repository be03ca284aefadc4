from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures
from hf_explain.heads.lcam.configuration_lcam import LCamConfig
from hf_explain.heads.modeling_mask_trained import MaskTrainedExplainer
from hf_explain.tensors.maps import resize_maps


class LCamForSaliency(MaskTrainedExplainer):
    """
    L-CAM: one 1×1 convolution on one layer of the classifier, a row of weights per class.

    Only the rows asked for are ever computed: a map costs one dot product per position.

    Example:

    ```python
    >>> head = LCamForSaliency.from_classifier("microsoft/resnet-50", variant="img")
    >>> saliency = head(pixel_values, target="tench").saliency
    ```
    """

    config_class = LCamConfig
    config: LCamConfig

    def __init__(self, config: LCamConfig):
        super().__init__(config)
        (channels,) = config.taps.values()
        assert config.num_labels is not None  # a configuration has two where nothing else is said
        self.attention = nn.Conv2d(channels, config.num_labels, kernel_size=1)
        self.post_init()

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        weight, bias = self._rows(target)
        feature_map = self._tapped(features).feature_map.to(weight.dtype)
        return torch.einsum("bchw,bc->bhw", feature_map, weight[:, :, 0, 0]) + bias[:, None, None]

    def pairwise_saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        weight, bias = self._rows(target)
        return F.conv2d(self._tapped(features).feature_map.to(weight.dtype), weight, bias)

    def masked_logits(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, attention: torch.Tensor
    ) -> torch.Tensor:
        if self.config.variant == "img":
            return super().masked_logits(pixel_values, features, attention)
        tapped = self._tapped(features)
        copies = len(attention) // len(tapped.feature_map)
        feature_map = tapped.feature_map.repeat(copies, 1, 1, 1)
        prefix, pixels = tapped.prefix_tokens, tapped.pixel_values
        masked = tapped.replace(
            feature_map=feature_map * resize_maps(attention, feature_map.shape[-2:])[:, None],
            prefix_tokens=None if prefix is None else prefix.repeat(copies, 1, 1),
            pixel_values=None if pixels is None else pixels.repeat(copies, 1, 1, 1),
        )
        return self.attached.forward_from_features(masked)

    def _tapped(self, features: ClassifierFeatures) -> LayerFeatures:
        (layer,) = self.config.taps
        return features[layer]

    def _rows(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and biases of the classes asked for: the others stay out of the pass, forward and backward."""
        assert self.attention.bias is not None
        return self.attention.weight[target], self.attention.bias[target]
