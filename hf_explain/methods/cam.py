"""Class activation maps: a layer's feature map, weighted by what each channel or position means for the target."""

from __future__ import annotations

import torch

from hf_explain.backbones import FrozenClassifier
from hf_explain.methods.common import features_and_target, positive_part, saliency_output, tail_gradient
from hf_explain.outputs import SaliencyOutput


@torch.inference_mode(False)  # or autograd would record nothing for a caller in inference mode
def gradcam(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target=None, *, layer: str | int | None = None
) -> SaliencyOutput:
    r"""
    Grad-CAM: channels weighted by the mean over positions of the target logit's gradient, then ReLU.

    One forward pass without a graph, then only the tail after `layer` again with one.

    Source: Selvaraju et al., ICCV 2017 (https://huggingface.co/papers/1610.02391), equations 1 and 2.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Layer whose feature map is used; the last whose positions reach the logits
            (for ViT and DeiT the one before the last block) when not given.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] at the layer's resolution, `saliency_logits` before scaling. Where no
        position speaks for the target, the map before the ReLU, so that no map is all zeros.

    Raises:
        ValueError: If the layer does not exist or its positions have no effect on the logits, or the target is none
            of the classifier's.
    """
    features, logits, classes = features_and_target(classifier, pixel_values, target, layer)
    weights = tail_gradient(classifier, features, classes).mean((2, 3))
    maps = torch.einsum("bc,bchw->bhw", weights, features.feature_map.float())
    return saliency_output(positive_part(maps), logits, classes)
