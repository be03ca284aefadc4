from __future__ import annotations

import torch

from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures
from hf_explain.heads.class_maps import ClassConv2d, class_maps
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
        self.attention = ClassConv2d(channels, config.num_labels, kernel_size=1)
        self.post_init()

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        return self._maps(features, target, pairwise=False)

    def pairwise_saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        return self._maps(features, target, pairwise=True)

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

    def _maps(self, features: ClassifierFeatures, target: torch.Tensor, pairwise: bool) -> torch.Tensor:
        feature_map = self._tapped(features).feature_map.to(self.attention.weight.dtype)
        maps = class_maps(self.attention, [feature_map], target, feature_map.shape[-2:], pairwise)
        return self.on_grid(maps, features)
