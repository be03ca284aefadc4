"""What the training-free methods share: one pass for features and logits, the tail's gradient, the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hf_explain.classifiers.features import LayerFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.passes import shared_pass
from hf_explain.classifiers.targets import Target
from hf_explain.tensors.checks import check_pixel_values, refuse
from hf_explain.tensors.maps import check_finite, min_max, position_contributions, positive_part
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.perturbation import fill_values
from hf_explain.tensors.sharing import shared


# Images per pass, by default: a backward pass keeps every layer's output
FORWARD_BATCH_SIZE = 64
BACKWARD_BATCH_SIZE = 16


@shared
def prepare_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """Checked `pixel_values`, detached and usable by autograd even if they were made in inference mode."""
    pixel_values = check_pixel_values(pixel_values).detach()
    return pixel_values.clone() if pixel_values.is_inference() else pixel_values


def features_and_target(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, layer: str | int | None
) -> tuple[LayerFeatures, torch.Tensor, torch.Tensor]:
    """
    One pass without a graph: the features of `layer` (the classifier's default one for `None`), logits and classes.

    Returns:
        `tuple`: [`LayerFeatures`], logits of shape `(batch_size, num_labels)`, classes of shape `(batch_size,)`.
    """
    layer = classifier.default_layer if layer is None else classifier.resolve_layer(layer)
    pixel_values = prepare_pixels(pixel_values)
    features = shared_pass(classifier, "features", pixel_values, [layer])
    check_finite(features.logits, "logits that are")
    classes = classifier.resolve_target(target, len(pixel_values), features.logits)
    return features[layer], features.logits, classes


def logits_and_target(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, target: Target, layer: str | int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Checked pixels, logits and classes of a method without a layer; a wrong `layer` is still an error."""
    if layer is not None:
        classifier.resolve_layer(layer)
    pixel_values = prepare_pixels(pixel_values)
    logits = shared_pass(classifier, "forward", pixel_values)
    check_finite(logits, "logits that are")
    return pixel_values, logits, classifier.resolve_target(target, len(pixel_values), logits)


def target_logits(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The logit of each image's class, shape `(batch_size,)`."""
    return logits.gather(1, classes[:, None])[:, 0]


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """
    The softmax over the classes, float32; of a single logit, whose softmax is 1 whatever the image shows, the sigmoid,
    as Transformers' `pipeline("image-classification")` has it.
    """
    logits = logits.float()
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


def compared_probabilities(classifier: FrozenClassifier, logits: torch.Tensor) -> torch.Tensor:
    """
    [`class_probabilities`] for a method that compares them from image to image.

    Raises:
        ValueError: If the only class is a text of a model whose probabilities sum to 1: it would be 1 for any image.
    """
    sums_to_one = getattr(classifier.config, "problem_type", None) != "multi_label_classification"
    if classifier.takes_texts and classifier.num_labels == 1 and sums_to_one:
        raise ValueError(
            f"The probability of a single text ({classifier.id2label[0]!r}) is 1 whatever an image shows, so there is "
            "nothing to compare; give several texts, as candidate_labels or target, or take a method of the logit, "
            "such as gradcam."
        )
    return class_probabilities(logits)


def tail_gradient(classifier: FrozenClassifier, features: LayerFeatures, classes: torch.Tensor) -> torch.Tensor:
    """
    Gradient of the target logit with respect to a layer's feature map; only the tail after the layer has a graph.

    Args:
        classifier ([`FrozenClassifier`]): The classifier.
        features ([`LayerFeatures`]): From [`features_and_target`].
        classes (`torch.LongTensor` of shape `(batch_size,)`): Classes explained.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, channels, height, width)`, float32.

    Raises:
        ValueError: If no position of the layer's feature map reaches the logits.
    """
    with torch.enable_grad():
        feature_map = features.feature_map.detach().requires_grad_()
        logits = classifier.forward_from_features(features.replace(feature_map=feature_map))
        if logits.requires_grad:
            score = target_logits(logits, classes).sum()
            gradient = torch.autograd.grad(score, feature_map, materialize_grads=True)[0]
        else:
            gradient = torch.zeros_like(feature_map)
    check_reaches_logits(classifier, features.layer, gradient)
    return gradient.float()


def contributions(classifier: FrozenClassifier, features: LayerFeatures, classes: torch.Tensor) -> torch.Tensor:
    """
    [`~hf_explain.tensors.maps.position_contributions`] of a layer. Where a LayerNorm follows
    ([`~FrozenClassifier.behind_norm`]) they are taken behind it, because before it they are 0.

    Args:
        classifier, features, classes: As for [`tail_gradient`].

    Returns:
        `torch.FloatTensor` of shape `(batch_size, height, width)`, float32.

    Raises:
        ValueError: As for [`tail_gradient`], or if the products cancel at every position nevertheless.
    """
    with torch.no_grad():
        normed = classifier.behind_norm(features)
    if normed is None:
        activation, gradient = features.feature_map, tail_gradient(classifier, features, classes)
    else:
        activation = normed.feature_map.detach().requires_grad_()
        with torch.enable_grad():
            logits = classifier.forward_from_features(features, normed.replace(feature_map=activation))
            (gradient,) = torch.autograd.grad(target_logits(logits, classes).sum(), activation)
    return position_contributions(activation.detach().float(), gradient.float(), features.layer)


def check_reaches_logits(classifier: FrozenClassifier, layer: str, effect: torch.Tensor) -> None:
    """A ValueError, rather than a map of zeros, where a layer's positions have no `effect` on any image's logits."""

    def error() -> ValueError:
        return ValueError(
            f"`layer` {layer!r} has no effect on the logits through its positions (after a transformer's last block "
            f"the classifier reads the prefix tokens alone); choose an earlier layer than {layer!r}"
            + ("." if layer == classifier.default_layer else f", for example {classifier.default_layer!r}.")
        )

    refuse(~effect.any(), error)


def saliency_output(maps: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor) -> SaliencyOutput:
    """
    The output of a method whose raw maps are `maps`: `saliency` is their min-max, everything detached.

    Args:
        maps (`torch.FloatTensor` of shape `(batch_size, height, width)`): Raw maps.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The classifier's logits.
        classes (`torch.LongTensor` of shape `(batch_size,)`): Classes explained.

    Raises:
        ValueError: If a map is not finite, for example because a gradient is not: scaled, it would be a map of zeros.
    """
    maps = maps.detach().float()
    check_finite(maps, "a map that is")
    return SaliencyOutput(saliency=min_max(maps), logits=logits.detach(), target=classes, saliency_logits=maps)


def signed_output(maps: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor) -> SaliencyOutput:
    """
    As [`saliency_output`], of a method whose raw maps have a sign: `saliency` is made of their [`positive_part`],
    `contributions` are the maps themselves.
    """
    output = saliency_output(positive_part(maps), logits, classes)
    output.contributions = maps.detach().float()
    return output


def repeat_features(features: LayerFeatures, count: int, feature_map: torch.Tensor) -> LayerFeatures:
    """`features` of each image `count` times in a row, with `feature_map` (already repeated, and changed) in them."""
    prefix, pixels = (
        None if value is None else value.repeat_interleave(count, dim=0)
        for value in (features.prefix_tokens, features.pixel_values)
    )
    return features.replace(feature_map=feature_map, prefix_tokens=prefix, pixel_values=pixels)


def mask_fill(classifier: FrozenClassifier, pixel_values: torch.Tensor, fill: str | Sequence[float]) -> torch.Tensor:
    """[`~hf_explain.tensors.perturbation.fill_values`] with the classifier's own normalisation."""
    return fill_values(pixel_values, fill, classifier.image_mean, classifier.image_std)


def score_masked(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    kept: torch.Tensor,
    filled: torch.Tensor,
    classes: torch.Tensor,
    batch_size: int,
    probability: bool,
) -> torch.Tensor:
    """
    The target's score on every image under every mask, `batch_size` masked images per forward pass.

    Args:
        classifier ([`FrozenClassifier`]): The classifier.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Images.
        kept (`torch.FloatTensor` of shape `(1 or batch_size, num_masks, height, width)`): What stays, in [0, 1].
        filled (`torch.FloatTensor` broadcastable to `pixel_values`): What the rest becomes.
        classes (`torch.LongTensor` of shape `(batch_size,)`): Classes explained.
        batch_size (`int`): Most masked images per forward pass.
        probability (`bool`): The target's probability if true, its logit if not.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_masks)`, float32.
    """
    total, count = len(pixel_values), kept.shape[1]
    channels_last = classifier.memory_format is torch.channels_last
    filled = filled.expand(-1, *pixel_values.shape[1:])
    if channels_last:
        # Images and masks as they lie in memory, and a mask once for every channel: all of it dense
        pixel_values, filled = pixel_values.permute(0, 2, 3, 1), filled.permute(0, 2, 3, 1).contiguous()
        kept = (kept[..., None].to(filled.dtype) @ filled.new_ones(1, filled.shape[-1])).contiguous()
    else:
        kept = kept[:, :, None].to(filled.dtype)
    scores = []
    for images in chunks(total, max(1, batch_size // count)):
        fill = filled[images] if len(filled) > 1 else filled
        keep = kept[images] if len(kept) > 1 else kept
        masked = torch.addcmul(fill[:, None], keep, (pixel_values[images] - fill)[:, None]).flatten(0, 1)
        logits = classifier(masked.permute(0, 3, 1, 2) if channels_last else masked).float()
        values = compared_probabilities(classifier, logits) if probability else logits
        scores.append(target_logits(values, classes[images].repeat_interleave(count)).view(-1, count))
    return torch.cat(scores)


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(total)`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
