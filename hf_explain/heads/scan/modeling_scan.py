from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers.utils import can_return_tuple

from hf_explain.classifiers.features import ClassifierFeatures, LayerFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.heads.distributed import batch_uniform
from hf_explain.heads.losses import confidence_loss, confident_reconstruction_loss
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel, check_output, lost_weights
from hf_explain.heads.scan.configuration_scan import ScanConfig
from hf_explain.heads.scan.decoders import CnnDecoder, TransformerDecoder, default_widths
from hf_explain.tensors.maps import check_finite, min_max, position_contributions, resize_maps
from hf_explain.tensors.outputs import SaliencyOutput


class ScanFeatures(ClassifierFeatures):
    """
    The tapped layer, the logits, and the graph between the two: several classes share one pass of the classifier.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The logits, with their graph.
        tap ([`LayerFeatures`]): The tapped layer.
        read ([`LayerFeatures`]): Where gradients are taken, the leaves of the graph: the tap, or for contributions
            what lies behind the norm that follows it.
        layer_names (`tuple[str, ...]`): The classifier's layers.
        image_size (sequence of two `int`): Height and width of the images, in pixels.
    """

    def __init__(
        self,
        scores: torch.Tensor,
        tap: LayerFeatures,
        read: LayerFeatures,
        layer_names: tuple[str, ...],
        image_size: Sequence[int],
    ):
        super().__init__(scores.detach(), {tap.layer: tap}, layer_names, image_size)
        self.scores, self.tap, self.read = scores, tap, read


class ScanForSaliency(ExplainerPreTrainedModel):
    """
    SCAN: of one layer's features, those that the class depends on most are kept, a decoder reconstructs the image from
    them, and the map is where the decoder is confident.

    The gradient of the class score reaches from the logits to the tap and no further: nothing upstream of the tap ever
    gets a graph, and the pass that gives the logits is the one that is differentiated. Prefix tokens (CLS,
    distillation) are masked by their gradients as the patches are, count towards the percentile, take part in the
    transformer decoder's attention, and are dropped where its tokens become a grid.

    An image none of whose features has a positive gradient keeps none.

    `from_classifier(..., preset="contribution")` is what ranked pixels best in this package's own measurements: whole
    positions of an early layer kept by their contribution (see [`ScanConfig`]), many of them, a sigmoid and a small
    decoder.

    Example:

    ```python
    >>> head = ScanForSaliency.from_classifier("google/vit-base-patch16-224")
    >>> output = head(pixel_values, target="tench", percentile=90)
    >>> output.saliency, output.reconstruction
    ```
    """

    one_graph = False  # each map needs a gradient of its own, which torch.export does not put into a graph
    config_class = ScanConfig
    config: ScanConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "contribution": {
            "mask_by": "contribution",
            "percentile_range": [20.0, 90.0],
            "percentile": 0.0,
            "activation": "sigmoid",
            "levels": 1,
        }
    }

    def __init__(self, config: ScanConfig):
        super().__init__(config)
        (channels,) = config.taps.values()
        widths = config.decoder_widths
        if widths is None or config.image_mean is None:
            raise ValueError(
                "`decoder_widths` and `image_mean` of this ScanConfig are not known yet; from_classifier(classifier) "
                "fills them in."
            )
        outputs = len(config.image_mean) + 1
        self.decoder: CnnDecoder | TransformerDecoder
        if config.decoder_type == "cnn":
            self.decoder = CnnDecoder(channels, widths, outputs, config.num_residual_modules)
        else:
            self.decoder = TransformerDecoder(
                channels,
                widths,
                outputs,
                config.num_residual_modules,
                config.num_attention_blocks,
                config.num_attention_heads,
            )
        self.post_init()

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: Any) -> list[str]:
        if classifier.token_layout is not None:
            blocks = classifier.token_layout.blocks
            if config.mask_by == "contribution":
                return [blocks[0]]  # deeper, positions hold ever less about their own place
            return [blocks[max(0, len(blocks) // 2 - 1)]]
        if config.mask_by == "contribution" and classifier.normed_layers:
            return [classifier.normed_layers[len(classifier.normed_layers) // 2]]
        return [classifier.default_layer]

    @classmethod
    def preset_fields(cls, preset: str, classifier: FrozenClassifier) -> dict[str, Any]:
        fields = super().preset_fields(preset, classifier)
        if classifier.token_layout is not None:  # its first block
            fields |= {"percentile": 50.0, "levels": 0}
        return fields

    @classmethod
    def complete_config(cls, classifier: FrozenClassifier, config: Any) -> None:
        (layer,) = config.taps
        layout = classifier.token_layout
        if layout is not None and layer == layout.blocks[-1] and not layout.patches_read and config.gradient_mask:
            raise ValueError(
                f"`feature_layers` {layer!r} is the last layer of {classifier.model_class}, after "
                "which only the prefix tokens reach the logits, so no patch has a gradient; tap an earlier layer."
            )
        if config.decoder_type is None:
            config.decoder_type = "cnn" if layout is None else "transformer"
        image, grid = _probe(classifier, config)
        ratio = math.sqrt(image[0] * image[1] / (grid[0] * grid[1]))
        if min(grid) < 2 or ratio < 1:
            raise ValueError(
                f"`feature_layers` {layer!r} has a grid of {grid[0]}x{grid[1]} for an image of {image[0]}x{image[1]} "
                "pixels, from which no decoder can reach the image; tap a layer whose grid has at least 2x2 positions "
                "and is no finer than the image."
            )
        levels = round(math.log2(ratio))
        if config.levels is None:
            config.levels = levels
        if not 0 <= config.levels <= levels:
            raise ValueError(
                f"`levels` is {config.levels}, but from the {grid[0]}x{grid[1]} grid of layer {layer!r} to an image "
                f"of {image[0]}x{image[1]} pixels it takes {levels} doublings; give 0 to {levels}, or leave it out."
            )
        if config.decoder_widths is None:
            config.decoder_widths = default_widths(config.decoder_type, config.levels, config.decoder_width)

    # ------------------------------------------------------------------ forward

    def forward_features(self, pixel_values: torch.Tensor) -> ScanFeatures:
        """
        The frozen classifier's pass: without a graph up to the tap, with one from there to the logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            [`ScanFeatures`]; `logits` has no graph.
        """
        try:
            return _split(self.attached, pixel_values, self.config)
        except KeyError as error:
            raise lost_weights(error, self.config.classifiers) from error

    def select_features(self, features: ClassifierFeatures, rows: list[int]) -> ScanFeatures:
        """
        As [`~ExplainerPreTrainedModel.select_features`]; the part of the classifier behind the tap runs again for
        these images, since the graph of a batch cannot be taken apart.
        """
        features = _own(features)
        return _with_graph(self.attached, features.tap.select(rows), features.image_size, self.config)

    def forward_head(
        self,
        features: ClassifierFeatures,
        target: Target = None,
        percentile: float | Sequence[float] | None = None,
    ) -> SaliencyOutput:
        """
        Maps of one class per image from features that were computed once.

        Args:
            features ([`ScanFeatures`]): From [`~ScanForSaliency.forward_features`].
            target (*optional*): As for `forward`.
            percentile (*optional*): As for `forward`.

        Returns:
            [`SaliencyOutput`] with `saliency`, `saliency_logits` (the confidence in [0, 1] before scaling),
            `reconstruction`, `logits` and `target`.
        """
        features = _own(features)
        classes = self.attached.resolve_target(target, len(features.logits), features.logits)
        return _output(*self.decode(features, classes, percentile), features, classes)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        target: Target = None,
        return_loss: bool | None = None,
        percentile: float | Sequence[float] | None = None,
        labels: Target = None,
    ) -> SaliencyOutput:
        """
        Explain a batch of images, or train on it.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            target (`int`, `str`, list of them or `torch.LongTensor` of shape `(batch_size,)`, *optional*): The class
                to explain; the classifier's own top class when not given.
            return_loss (`bool`, *optional*): Also compute `loss`; see [`ExplainerPreTrainedModel.forward`].
            percentile (`float` or one per image, *optional*): P of the gradient mask, in [0, 100]. When not given,
                drawn from the config's `percentile_range` in train mode, and the config's `percentile` in eval mode.
            labels, return_dict (*optional*): See [`ExplainerPreTrainedModel.forward`].

        Returns:
            [`SaliencyOutput`].

        Raises:
            ValueError: If `percentile` is outside [0, 100], `target` names no class, or a gradient is not finite.
            TypeError: If `percentile` is not a number.
        """
        target, return_loss = self.resolve_request(target, return_loss, labels)
        features = self.forward_features(pixel_values)
        classes = self.attached.resolve_target(target, len(features.logits), features.logits)
        if return_loss:
            return self.compute_loss(pixel_values, features, classes, percentile)
        return check_output(_output(*self.decode(features, classes, percentile, keep_graph=False), features, classes))

    def compute_loss(
        self,
        pixel_values: torch.Tensor,
        features: ClassifierFeatures,
        target: torch.Tensor,
        percentile: float | Sequence[float] | None = None,
    ) -> SaliencyOutput:
        config, features = self.config, _own(features)
        confidence, reconstruction = self.decode(features, target, percentile, keep_graph=False)
        with torch.no_grad():
            image = self.blurred_image(pixel_values, features.tap.feature_map.shape[-2:])
        maps, decoded = confidence.float(), reconstruction.float()
        terms = {
            "confidence": confidence_loss(decoded, image, maps, config.alpha, config.lam).mean(),
            "reconstruction": confident_reconstruction_loss(decoded, image, maps, config.alpha).mean(),
        }
        return replace(
            _output(confidence, reconstruction, features, target),
            loss=terms["confidence"] + terms["reconstruction"],
            loss_terms={name: term.detach() for name, term in terms.items()},
        )

    # ------------------------------------------------------------------ the parts

    def decode(
        self,
        features: ScanFeatures,
        target: torch.Tensor,
        percentile: float | Sequence[float] | None = None,
        keep_graph: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Mask the features by their gradients and decode them.

        Args:
            features, target, percentile, keep_graph: As for `masked_features`.

        Returns:
            `tuple`: the confidence, `(batch_size, height, width)` in [0, 1], and the reconstruction,
            `(batch_size, channels, height, width)`, unbounded, both at the image's size.
        """
        tap = self.masked_features(features, target, percentile, keep_graph)
        dtype = self.decoder.output.conv.weight.dtype
        prefix = tap.prefix_tokens
        decoded = self.decoder(tap.feature_map.to(dtype), None if prefix is None else prefix.to(dtype))
        decoded = resize_maps(decoded, features.image_size)
        if self.config.confidence_channel == "first":
            raw, reconstruction = decoded[:, 0], decoded[:, 1:]
        else:
            raw, reconstruction = decoded[:, -1], decoded[:, :-1]
        return confidence_of(raw, self.config.activation), reconstruction

    def masked_features(
        self,
        features: ScanFeatures,
        target: torch.Tensor,
        percentile: float | Sequence[float] | None = None,
        keep_graph: bool = True,
    ) -> LayerFeatures:
        """
        The tapped features with those below the percentile of the image's positive gradients (or positions below that
        of its positive contributions: the config's `mask_by`) set to 0, without a graph.

        Args:
            features ([`ScanFeatures`]): From [`~ScanForSaliency.forward_features`].
            target (`torch.LongTensor` of shape `(batch_size,)`): The class whose score is differentiated.
            percentile (*optional*): As for `forward`.
            keep_graph (`bool`, *optional*, defaults to `True`): Whether another class of the same features will be
                asked for; otherwise the tail's activations are freed before the decoder runs.

        Raises:
            ValueError: If `percentile` is outside [0, 100], a gradient is not finite, or the layer is one whose
                contributions cancel at every position.
        """
        tap = features.tap
        percentiles = self._percentiles(percentile, len(target))
        parts = [part.detach() for part in _tensors(tap)]
        if self.config.gradient_mask:
            leaves = _tensors(features.read)
            with torch.inference_mode(False), torch.enable_grad():
                score = features.scores.gather(1, target[:, None].clone()).sum()
                gradients = torch.autograd.grad(score, leaves, retain_graph=keep_graph, materialize_grads=True)
            check_finite(torch.cat([g.flatten(1) for g in gradients], dim=1), "a gradient that is")
            if self.config.mask_by == "contribution":
                # a prefix token holds what belongs to no place
                parts[:-1] = [torch.zeros_like(part) for part in parts[:-1]]
                sums = position_contributions(leaves[-1].detach(), gradients[-1], tap.layer)
                judged = [sums[:, None]]
            else:
                judged = list(gradients)
            least = float(self.config.percentile_range[0]) if percentiles.device.type != "cpu" else None
            rows = torch.cat([values.flatten(1) for values in judged], dim=1)
            threshold = positive_percentile(rows, percentiles, least)
            for index, values in enumerate(judged, len(parts) - len(judged)):
                parts[index] = parts[index] * (values >= threshold.view(-1, *[1] * (values.ndim - 1)))
        return tap.replace(feature_map=parts[-1], prefix_tokens=None if tap.prefix_tokens is None else parts[0])

    def blurred_image(self, pixel_values: torch.Tensor, grid_size: Sequence[int]) -> torch.Tensor:
        """
        What the decoder is to reconstruct: the image in [-1, 1], blurred as coarsely as the grid sees it.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            grid_size (sequence of two `int`): `(height, width)` of the tapped layer's grid.

        Returns:
            `torch.FloatTensor` of the shape of `pixel_values`, float32.

        Raises:
            ValueError: If the grid has a side of 1, for which the blur is wider than the image.
        """
        config = self.config
        image = pixel_values.float()
        mean, std = (
            torch.tensor(values, dtype=torch.float32).to(image.device, non_blocking=True).view(1, -1, 1, 1)
            for values in (config.image_mean, config.image_std)
        )
        image = (image * std + mean) * 2 - 1
        if config.blur == "none":
            return image
        if min(grid_size) < 2:
            raise ValueError(
                f"`pixel_values` of {tuple(pixel_values.shape[-2:])} pixels give a grid of {tuple(grid_size)} at "
                f"layer {next(iter(config.taps))!r}; SCAN trains on images whose grid has at least 2x2 positions."
            )
        channels = image.shape[1]
        for axis, (side, grid) in enumerate(zip(image.shape[-2:], grid_size)):
            radius = side // grid
            sigma = side / grid if config.blur == "released" else side / (2 * grid)
            offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=image.device)
            kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
            shape = (channels, 1, -1, 1) if axis == 0 else (channels, 1, 1, -1)
            kernel = (kernel / kernel.sum()).expand(channels, -1).reshape(shape)
            padding = (0, 0, radius, radius) if axis == 0 else (radius, radius, 0, 0)
            image = F.conv2d(F.pad(image, padding, mode="reflect"), kernel, groups=channels)
        return image

    def _percentiles(self, percentile: float | Sequence[float] | None, batch_size: int) -> torch.Tensor:
        if percentile is None and self.training:
            low, high = self.config.percentile_range
            # from the CPU's generator on every device: what a seed or a resumed run draws depends on no device
            return low + (high - low) * batch_uniform(batch_size, self.device)
        given = self.config.percentile if percentile is None else percentile
        try:
            values = torch.as_tensor(given, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError) as error:
            raise TypeError(f"`percentile` must be one number or one per image, got {percentile!r}.") from error
        if values.shape not in ((), (batch_size,)):
            raise ValueError(
                f"`percentile` must be one number or one per image ({batch_size}), got shape {tuple(values.shape)}."
            )
        outside = ~((values >= 0) & (values <= 100))
        if outside.any():
            raise ValueError(f"`percentile` must lie in [0, 100], got {values[outside].flatten()[0].item():g}.")
        return values.expand(batch_size)


def positive_percentile(values: torch.Tensor, percentile: torch.Tensor, least: float | None = None) -> torch.Tensor:
    """
    A percentile of the positive entries of each row, interpolated linearly; infinity where a row has none.

    Only the entries above the lowest percentile asked for are sorted.

    Args:
        values (`torch.Tensor` of shape `(batch_size, count)`): Any values; those not above 0 are left out.
        percentile (`torch.DoubleTensor` of shape `(batch_size,)`): In [0, 100], one per row.
        least (`float`, *optional*): What none of them is below, where the device should not be asked for it.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`, float32.
    """
    values = values.float()
    count = values.shape[1]
    # as many as a row with positive entries only would need: an upper bound that asks the device nothing
    least = float(percentile.min()) if least is None else least
    needed = min(count, math.ceil((1 - least / 100) * (count - 1)) + 2)
    descending = values.topk(needed, dim=1).values
    positive = (values > 0).sum(dim=1)
    wide = torch.float64 if values.device.type != "mps" else torch.float32
    position = percentile.to(values.device, wide, non_blocking=True)
    position = position * (positive - 1).clamp(min=0) / 100
    low = position.floor()
    place = (positive - 1).clamp(min=0) - low.long()  # of the lower neighbour, counted from the top
    lower = descending.gather(1, place[:, None])[:, 0]
    upper = descending.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(positive > 0, torch.lerp(lower, upper, (position - low).float()), float("inf"))


def confidence_of(raw: torch.Tensor, activation: str) -> torch.Tensor:
    """
    The decoder's confidence channel in [0, 1].

    Args:
        raw (`torch.Tensor`): z, unbounded.
        activation (`str`): `"sine"`,
            `(sign(z) * sin(2π|z| / (8 + 0.15|z|)) + 1) / 2`, or `"sigmoid"`.

    Returns:
        `torch.Tensor` of the same shape and dtype.
    """
    if activation == "sigmoid":
        return raw.sigmoid()
    # odd in z, so the sign goes into the argument: no step at 0 for the gradient to lose
    return (torch.sin(2 * math.pi * raw / (8 + 0.15 * raw.abs())) + 1) / 2


def _output(
    confidence: torch.Tensor, reconstruction: torch.Tensor, features: ScanFeatures, target: torch.Tensor
) -> SaliencyOutput:
    return SaliencyOutput(
        saliency=min_max(confidence.detach().float()),
        logits=features.logits,
        target=target,
        saliency_logits=confidence,
        reconstruction=reconstruction.detach().float().clamp(-1, 1),
    )


def _own(features: ClassifierFeatures) -> ScanFeatures:
    """`features` if they are those of a SCAN head's `forward_features`, else a TypeError."""
    if not isinstance(features, ScanFeatures):
        raise TypeError(f"`features` must be those of this head's forward_features, got {type(features).__name__}.")
    return features


def _leaves(features: LayerFeatures) -> LayerFeatures:
    """The start of a graph; a copy of tensors that were made in inference mode, which cannot start one."""

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone() if tensor.is_inference() else tensor.detach()
        return tensor.requires_grad_(torch.is_grad_enabled())

    prefix = features.prefix_tokens
    return features.replace(
        feature_map=leaf(features.feature_map), prefix_tokens=None if prefix is None else leaf(prefix)
    )


def _tensors(features: LayerFeatures) -> list[torch.Tensor]:
    return [part for part in (features.prefix_tokens, features.feature_map) if part is not None]


def _split(classifier: FrozenClassifier, pixel_values: torch.Tensor, config: ScanConfig) -> ScanFeatures:
    """See [`~ScanForSaliency.forward_features`]."""
    (layer,) = config.taps
    with torch.no_grad():
        tap = classifier.forward_to_features(pixel_values, layer)
    return _with_graph(classifier, tap, tuple(pixel_values.shape[-2:]), config)


def _with_graph(
    classifier: FrozenClassifier, tap: LayerFeatures, image_size: Sequence[int], config: ScanConfig
) -> ScanFeatures:
    """The tapped layer with the graph from there to the logits."""
    with torch.no_grad():
        normed = classifier.behind_norm(tap) if config.mask_by == "contribution" else None
    with torch.inference_mode(False), torch.set_grad_enabled(config.gradient_mask):
        if normed is None:
            tap = read = _leaves(tap)
            scores = classifier.forward_from_features(tap)
        else:
            read = _leaves(normed)
            scores = classifier.forward_from_features(tap, read)
    return ScanFeatures(scores, tap, read, classifier.layer_names, image_size)


def _probe(classifier: FrozenClassifier, config: ScanConfig) -> tuple[tuple[int, int], torch.Size]:
    """
    The classifier's image size and the layer's grid, both `(height, width)`; an error, rather than a head trained on
    rounding, where contributions cancel.
    """
    size, channels = classifier.image_size, len(classifier.image_mean)
    noise = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(classifier.device, classifier.dtype)
    with torch.no_grad():
        tap = classifier.forward_to_features(noise, next(iter(config.taps)))
    if config.mask_by == "contribution" and config.gradient_mask:
        features = _split(classifier, noise, config)
        leaf = features.read.feature_map
        with torch.inference_mode(False), torch.enable_grad():
            (gradient,) = torch.autograd.grad(features.scores.amax(), leaf, allow_unused=True)
        if gradient is not None:
            position_contributions(leaf.detach(), gradient, tap.layer)
    return size, tap.feature_map.shape[-2:]
