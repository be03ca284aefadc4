from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.frozen_classifier import ClassifierFeatures, FrozenClassifier
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

    def __init__(self, config: LCamConfig):
        super().__init__(config)
        self.attention = nn.Conv2d(config.feature_channels[0], config.num_labels, kernel_size=1)
        self.post_init()

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: LCamConfig) -> list[str]:
        return [classifier.default_layer]

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        feature_map = self._feature_map(features)
        # indexing the parameters keeps the other rows out of the pass, forward and backward
        weight, bias = self.attention.weight[target, :, 0, 0], self.attention.bias[target]
        return torch.einsum("bchw,bc->bhw", feature_map, weight) + bias[:, None, None]

    def pairwise_saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        return F.conv2d(self._feature_map(features), self.attention.weight[target], self.attention.bias[target])

    def masked_logits(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, attention: torch.Tensor
    ) -> torch.Tensor:
        if self.config.variant == "img":
            return super().masked_logits(pixel_values, features, attention)
        tapped = features[self.config.feature_layers[0]]
        copies = len(attention) // len(tapped.feature_map)
        feature_map = tapped.feature_map.repeat(copies, 1, 1, 1)
        prefix, pixels = tapped.prefix_tokens, tapped.pixel_values
        masked = tapped.replace(
            feature_map=feature_map * resize_maps(attention, tuple(feature_map.shape[-2:]))[:, None],
            prefix_tokens=None if prefix is None else prefix.repeat(copies, 1, 1),
            pixel_values=None if pixels is None else pixels.repeat(copies, 1, 1, 1),
        )
        return self.backbone.forward_from_features(masked)

    def _feature_map(self, features: ClassifierFeatures) -> torch.Tensor:
        return features[self.config.feature_layers[0]].feature_map.to(self.attention.weight.dtype)
