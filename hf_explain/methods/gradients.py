"""Methods that read the target's gradient at the pixels: input × gradient, SmoothGrad, integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.methods.common import (
    BACKWARD_BATCH_SIZE,
    chunks,
    logits_and_target,
    mask_fill,
    saliency_output,
    signed_output,
    target_logits,
)
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.randomness import image_keys, random_normal
from hf_explain.tensors.scalars import check_count, check_number


@torch.inference_mode(False)
def input_x_gradient(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    batch_size: int = BACKWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Input × gradient: `pixel_values` times the target logit's gradient there, summed over channels; then ReLU.

    Formula, with `x` the `pixel_values`, `S` the target logit, colours `c`:

        L = ReLU(Σ_c x_c ∂S/∂x_c)

    Source: Shrikumar et al., 2016 (https://huggingface.co/papers/1605.01713).

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): Class index or label name, for all images
            or one each; the classifier's top class when not given.
        layer (`str` or `int`, *optional*): Not used; the gradient is taken at the pixels.
        batch_size (`int`, *optional*, defaults to 16): Images per forward and backward pass.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] at the image's resolution. Where no pixel speaks for the target, the
        map before the ReLU, so that no map is all zeros.

    Raises:
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.gradients import input_x_gradient

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> input_x_gradient(classifier, pixel_values, target=1).saliency.shape
    torch.Size([2, 32, 32])
    ```
    """
    check_count(batch_size, "batch_size")
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    gradient = _pixel_gradient(classifier, pixel_values, classes, batch_size)
    return signed_output((gradient * pixel_values).sum(1), logits, classes)


@torch.inference_mode(False)
def integrated_gradients(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    steps: int = 50,
    baseline: str | Sequence[float] = "black",
    batch_size: int = BACKWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    Integrated gradients: the image minus a baseline, times the mean of the target logit's gradient on the straight
    path between the two (midpoint rule), summed over channels; then ReLU. Before the ReLU a map sums, up to the error
    of the rule, to the logit's difference between image and baseline.

    Formula, with `x` the `pixel_values`, `r` the baseline, `S` the target logit, `n` steps, colours `c`:

        L = ReLU(Σ_c (x_c − r_c) 1/n Σ_m ∂S/∂x_c (r + (m − 1/2)/n (x − r))),  m = 1 ... n

    Source: Sundararajan et al., ICML 2017 (https://huggingface.co/papers/1703.01365), equation 1.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): See [`input_x_gradient`].
        layer (`str` or `int`, *optional*): Not used; the gradient is taken at the pixels.
        steps (`int`, *optional*, defaults to 50): Points on the path.
        baseline (`str` or sequence of `float`, *optional*, defaults to `"black"`): `"black"`, `"mean"`, `"blur"` or a
            colour, see [`~hf_explain.tensors.perturbation.fill_values`].
        batch_size (`int`, *optional*, defaults to 16): Images per forward and backward pass.

    Returns:
        [`SaliencyOutput`]: See [`input_x_gradient`].

    Raises:
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.gradients import integrated_gradients

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> integrated_gradients(classifier, pixel_values, target=1, steps=8, baseline="mean").saliency.shape
    torch.Size([2, 32, 32])
    ```
    """
    check_count(steps, "steps")
    check_count(batch_size, "batch_size")
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    start = mask_fill(classifier, pixel_values, baseline)
    difference = pixel_values - start
    total = torch.zeros_like(pixel_values, dtype=torch.float32)
    for span in chunks(steps, max(1, batch_size // len(pixel_values))):
        place = (torch.arange(span.start, span.stop, device=pixel_values.device) + 0.5) / steps
        points = start[:, None] + place.to(difference.dtype).view(-1, 1, 1, 1) * difference[:, None]
        total += _gradient_sum(classifier, points, classes, batch_size)
    return signed_output((difference * total / steps).sum(1), logits, classes)


@torch.inference_mode(False)
def smoothgrad(
    classifier: FrozenClassifier,
    pixel_values: torch.Tensor,
    target: Target = None,
    *,
    layer: str | int | None = None,
    num_samples: int = 50,
    noise_level: float = 0.15,
    seed: int = 0,
    batch_size: int = BACKWARD_BATCH_SIZE,
) -> SaliencyOutput:
    r"""
    SmoothGrad: the mean of the target logit's gradient over noisy copies of the image, its magnitude summed over
    channels. The noise comes from the image and the seed, never from the batch.

    Formula, with `x` the `pixel_values`, `S` the target logit, `ε_m` standard normal noise, `n` samples:

        L = Σ_c |1/n Σ_m ∂S/∂x_c (x + noise_level (max x − min x) ε_m)|

    Source: Smilkov et al., 2017 (https://huggingface.co/papers/1706.03825); 10 to 20 % noise and 50
    samples are its recommendation, magnitudes its choice for natural images.

    Args:
        classifier ([`FrozenClassifier`]): The classifier to explain.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
        target (`int`, `str`, list of them or `torch.Tensor`, *optional*): See [`input_x_gradient`].
        layer (`str` or `int`, *optional*): Not used; the gradient is taken at the pixels.
        num_samples (`int`, *optional*, defaults to 50): Noisy copies per image.
        noise_level (`float`, *optional*, defaults to 0.15): Standard deviation of the noise, as a fraction of the
            image's range (maximum minus minimum of its `pixel_values`); 0 gives the plain gradient.
        seed (`int`, *optional*, defaults to 0): Changes the noise.
        batch_size (`int`, *optional*, defaults to 16): Images per forward and backward pass.

    Returns:
        [`SaliencyOutput`]: `saliency` in [0, 1] at the image's resolution.

    Raises:
        ValueError: If an option is out of range or the classifier has no such class.

    Example:

    ```python
    >>> import torch
    >>> from transformers import ResNetConfig
    >>> from hf_explain import FrozenClassifier
    >>> from hf_explain.methods.gradients import smoothgrad

    >>> _ = torch.manual_seed(0)
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    >>> classifier = FrozenClassifier.from_config(config)
    >>> pixel_values = torch.randn(2, 3, 32, 32)
    >>> maps = smoothgrad(classifier, pixel_values, target=1, num_samples=4).saliency
    >>> maps.shape
    torch.Size([2, 32, 32])
    >>> torch.equal(maps, smoothgrad(classifier, pixel_values, target=1, num_samples=4).saliency)
    True
    ```
    """
    check_count(num_samples, "num_samples")
    check_count(batch_size, "batch_size")
    check_number(noise_level, "noise_level", "[0, inf)", "is a fraction of the image's range and")
    pixel_values, logits, classes = logits_and_target(classifier, pixel_values, target, layer)
    spread = noise_level * (pixel_values.flatten(1).amax(1) - pixel_values.flatten(1).amin(1))
    keys = image_keys(pixel_values, seed=seed)
    size = pixel_values[0].numel()
    total = torch.zeros_like(pixel_values, dtype=torch.float32)
    for span in chunks(num_samples, max(1, batch_size // len(pixel_values))):
        ids = (keys[:, None] + torch.arange(span.start, span.stop, device=keys.device)).flatten()
        noise = random_normal(image_keys(ids, ids, seed), size).view(len(keys), -1, *pixel_values.shape[1:])
        noisy = pixel_values[:, None] + (spread.view(-1, 1, 1, 1, 1) * noise).to(pixel_values.dtype)
        total += _gradient_sum(classifier, noisy, classes, batch_size)
    return saliency_output((total / num_samples).abs().sum(1), logits, classes)


def _pixel_gradient(
    classifier: FrozenClassifier, pixel_values: torch.Tensor, classes: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Gradient of each image's target logit at its pixels, float32, `batch_size` images with a graph at a time."""
    gradients = []
    for span in chunks(len(pixel_values), batch_size):
        with torch.enable_grad():
            pixels = pixel_values[span].detach().requires_grad_()
            score = target_logits(classifier(pixels), classes[span]).sum()
            gradients.append(torch.autograd.grad(score, pixels)[0].float())
    return torch.cat(gradients)


def _gradient_sum(
    classifier: FrozenClassifier, points: torch.Tensor, classes: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Gradients at `points` of shape `(batch_size, count, channels, height, width)`, summed over `count`."""
    count = points.shape[1]
    gradient = _pixel_gradient(classifier, points.flatten(0, 1), classes.repeat_interleave(count), batch_size)
    return gradient.unflatten(0, (-1, count)).sum(1)
