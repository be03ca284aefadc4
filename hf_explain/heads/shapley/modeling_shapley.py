from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.features import ClassifierFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.heads.class_maps import ClassConv2d, class_maps
from hf_explain.heads.distributed import GlobalBatchNorm2d, batch_uniform
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.heads.shapley.configuration_shapley import ShapleyConfig
from hf_explain.heads.taps import last_stages, spread_blocks
from hf_explain.tensors.grids import cell_means, grid_cells
from hf_explain.tensors.maps import min_max, positive_part
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.perturbation import blend, fill_values
from hf_explain.tensors.randomness import image_keys, random_uniform


class ShapleyForSaliency(ExplainerPreTrainedModel):
    r"""
    Signed values of an image's cells that add up to what the whole image adds to the class's softmax `p`:

        Σ φᵢ = p(image) − p(nothing)

    by construction, for every class, trained or not. (`p(nothing)`, of an image of the classifier's own size whose
    cells are all filled, is measured once and kept with the head.) Training makes them Shapley values: for sets of
    cells S drawn by the Shapley kernel, of size s with probability ∝ 1 / (s (d − s)), each with its complement,

        loss = mean over S of (p(S) − p(nothing) − Σ_{i∈S} φᵢ)²

    whose minimum they are. The classifier is only asked for its answers: no gradient goes through it, in training
    either. `contributions` are the values, `saliency` is made of those above 0.

    Example:

    ```python
    >>> head = ShapleyForSaliency.from_classifier("google/vit-base-patch16-224")
    >>> output = head(pixel_values, target="tench")
    >>> output.contributions.sum((1, 2))  # what the image adds to the class's softmax
    ```
    """

    config_class = ShapleyConfig
    config: ShapleyConfig
    signed: ClassVar[bool] = True
    nothing: torch.Tensor

    def __init__(self, config: ShapleyConfig):
        super().__init__(config)
        assert config.num_labels is not None  # a configuration has two where nothing else is said
        width = config.hidden_size
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for channels in config.taps.values())
        self.norms = nn.ModuleList(GlobalBatchNorm2d(width) for _ in config.taps)
        self.contexts = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in config.taps)
        self.values = ClassConv2d(width * len(config.taps), config.num_labels, kernel_size=1)
        # the classifier's softmax of an image without any cell
        self.register_buffer("nothing", torch.zeros(config.num_labels))
        self.post_init()

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: Any) -> list[str]:
        return spread_blocks(classifier) if classifier.is_transformer else last_stages(classifier)[::-1]

    @classmethod
    def complete_config(cls, classifier: FrozenClassifier, config: Any) -> None:
        cls.check_several_classes(classifier)
        if config.grid is not None:
            grid_cells(config.grid, classifier, classifier.image_size)  # says so where they do not divide it

    def attach(self, classifier: FrozenClassifier, *, verify_fingerprint: bool = True) -> Self:
        super().attach(classifier, verify_fingerprint=verify_fingerprint)
        if not verify_fingerprint:  # a new head, or a classifier that is not the one it was measured of
            size, mean = classifier.image_size, self.config.image_mean or []
            image = torch.zeros(1, len(mean), *size, device=classifier.device, dtype=classifier.dtype)
            empty = self._filled(image).expand_as(image)
            with torch.no_grad():
                self.nothing.copy_(classifier(empty)[0].float().softmax(-1))
        return self

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        """The Shapley values of every cell, `(batch_size, height, width)`, float32."""
        taps = list(self.config.taps)
        size = features[taps[0]].feature_map.shape[-2:]
        branches = (self._branch(index, features[layer].feature_map) for index, layer in enumerate(taps))
        values = class_maps(self.values, branches, target, size, pairwise=False).float()
        if self.config.grid is not None:
            cells = grid_cells(self.config.grid, self.attached, features.image_size)
            assert cells is not None
            values = cell_means(values, cells, features.image_size)
        whole = features.logits.float().softmax(-1).gather(1, target[:, None])[:, 0] - self._nothing(target)
        return values + (whole - values.sum((1, 2)))[:, None, None] / values[0].numel()

    def _branch(self, index: int, feature_map: torch.Tensor) -> torch.Tensor:
        branch = F.gelu(self.norms[index](self.convs[index](feature_map.to(self.values.weight.dtype))))
        return branch + F.gelu(self.contexts[index](branch))

    def _nothing(self, target: torch.Tensor) -> torch.Tensor:
        """`p(nothing)` of each image's class."""
        return self.nothing.float()[target]

    def _filled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return fill_values(pixel_values, self.config.fill, self.config.image_mean, self.config.image_std)

    def scale_maps(self, maps: torch.Tensor) -> torch.Tensor:
        return min_max(positive_part(maps.float()))

    def forward_head(self, features: ClassifierFeatures, target: Target = None) -> SaliencyOutput:
        output = super().forward_head(features, target)
        assert output.saliency_logits is not None
        return replace(output, contributions=output.saliency_logits.detach())

    def compute_loss(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, target: torch.Tensor
    ) -> SaliencyOutput:
        values = self.saliency_logits(features, target)
        size = len(target)
        # training draws; validation asks about the same sets each time
        device = pixel_values.device
        numbers = batch_uniform(size, device) if self.training else torch.arange(size, device=device) / size
        keys = image_keys(pixel_values, (numbers * 2**53).long())
        sets = coalitions(keys, self.config.num_coalitions // 2, values[0].numel())
        filled = self._filled(pixel_values)
        answers = []
        with torch.no_grad():
            # two passes' worth of images at a time, so that memory does not grow with the number of sets
            for index in range(sets.shape[1]):
                kept = torch.cat([sets[:, index], ~sets[:, index]]).view(-1, 1, *values.shape[1:])
                kept = F.interpolate(kept.float(), pixel_values.shape[-2:])[:, 0] > 0.5
                logits = self.attached(blend(pixel_values.repeat(2, 1, 1, 1), kept, filled))
                chosen = logits.float().softmax(-1).gather(1, target.repeat(2)[:, None])
                answers.append((chosen[:, 0] - self._nothing(target).repeat(2)).view(2, size))
        found = torch.stack(answers, dim=-1)  # (2, batch_size, sets)
        members, flat = sets.to(values.dtype), values.flatten(1)[:, :, None]
        inside = torch.bmm(members, flat)[..., 0]
        shares = torch.stack([inside, values.sum((1, 2))[:, None] - inside])
        loss = F.mse_loss(shares, found)
        return SaliencyOutput(
            loss=loss,
            saliency_logits=values,
            contributions=values.detach(),
            loss_terms={"shapley": loss.detach()},
        )


def coalitions(keys: torch.Tensor, count: int, num_cells: int) -> torch.Tensor:
    """
    Sets of cells drawn by the Shapley kernel: a size s with probability ∝ 1 / (s (d − s)), then any set of that size.

    Args:
        keys (`torch.LongTensor` of shape `(batch_size,)`): From [`~hf_explain.tensors.randomness.image_keys`].
        count (`int`): How many per image.
        num_cells (`int`): `d`, at least 2.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, count, num_cells)`: which cells are in; at least one is, and never
        all.
    """
    drawn = random_uniform(keys, count * (num_cells + 1)).view(len(keys), count, num_cells + 1)
    sizes = torch.arange(1, num_cells, dtype=torch.float64, device=keys.device)
    shares = (1 / (sizes * (num_cells - sizes))).cumsum(0)
    size = 1 + torch.searchsorted(shares / shares[-1], drawn[..., 0].double(), right=True).clamp_(max=num_cells - 2)
    places = drawn[..., 1:].argsort(-1).argsort(-1)
    return places < size[..., None]
