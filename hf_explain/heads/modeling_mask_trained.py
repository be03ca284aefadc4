"""Training by masking, shared by L-CAM, T-TAME and P-TAME: a good map is a small one that keeps the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from hf_explain.classifiers.features import ClassifierFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.heads.distributed import batch_uniform, gather_targets
from hf_explain.heads.losses import area_loss, cross_entropy, ranked_masks, removal_loss, variation_loss
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.tensors.grids import cell_means, check_grid, grid_cells, spread_cells
from hf_explain.tensors.maps import resize_maps, standardize
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.perturbation import (
    MASK_SPACES,
    RANDOM_FILLS,
    TRAINING_FILLS,
    blend,
    fill_values,
    mask_space_fill,
    random_fill_values,
    strong_blur,
)
from hf_explain.tensors.randomness import image_keys, random_uniform
from hf_explain.tensors.scalars import check_choice, check_count, check_number


class MaskTrainedConfig(ExplainerConfig):
    """
    Fields of the loss: `ce_weight * CE + area_weight * area + variation_weight * variation`, and, where asked for,
    `+ removal_weight * removal + ranking_weight * ranking`.

    Args:
        ce_weight (`float`, *optional*, defaults to 1.5): Weight of the cross-entropy on the kept image; at 0 that
            image is not asked for.
        area_weight (`float`, *optional*, defaults to 2.0): Weight of the area; 0 with `variation_weight=0` is the
            papers' ablation "*".
        area_power (`float`, *optional*, defaults to 0.3): Exponent of the area.
        area_epsilon (`float`, *optional*, defaults to 5e-4): Added to the map before the power.
        variation_weight (`float`, *optional*, defaults to 0.01): Weight of the variation.
        border_weight (`float`, *optional*, defaults to 0.3): Weight of the border inside the variation.
        regularize (`str`, *optional*, defaults to `"batch"`): The maps that area and variation see: `"own"`, every
            image's map of its own target, or `"batch"`, every image's map of every target in the batch, as released.
        removal_weight (`float`, *optional*, defaults to 0.0): Weight of the removal term (ours): the image with the
            map's evidence removed must lose the class. 0 is the loss as published.
        ranking_weight (`float`, *optional*, defaults to 0.0): Weight of the ranking term (ours): of a random part of
            the pixels, drawn per image and step, the most salient must keep the class, and removing them must lose it;
            what perturbation curves ask of a map. The drawn area is the prior, so it goes with `area_weight=0`,
            `regularize="own"`, and either `contrast` or `ce_weight=0`. 0 is the loss as published.
        ranking_parts (`int`, *optional*, defaults to 1): Parts per image and step, evenly apart from the one drawn;
            each costs two masked images.
        ranking_area_power (`float`, *optional*, defaults to 1.0): Power that the size of a part is raised to, which is
            uniform in [0, 1] before: above 1 small parts come more often; at 2 half of them are below a quarter.
        ranking_temperature (`float`, *optional*, defaults to 0.3): Softness of the threshold at the drawn area, in
            standard deviations of the map.
        contrast (`float`, *optional*): Give every map the same contrast (ours): in the loss and as it is given out, a
            map is `sigmoid(contrast * z)`, z the raw map brought to mean 0 and standard deviation 1. It goes with the
            ranking term, which leaves the contrast open, and it changes no ranking. By default the sigmoid of the raw
            map in the loss and the raw map given out, as published.
        mask_space (`str`, *optional*): `"pixel"` multiplies the [0, 1] image (masked pixels go black),
            `"normalized"` multiplies `pixel_values` (masked pixels go to the mean colour). `"pixel"` when not given.
        mask_fills (`list[str]`, *optional*): What masked pixels become instead (ours): every image of every step draws
            one of these, so that a map has to hold whatever its pixels are replaced by. With one fill the head learns
            what that fill does to the classifier, too. `"black"`, `"white"`, `"mean"` and `"blur"` are those of
            [`~hf_explain.tensors.perturbation.fill_values`]; `"strong_blur"` leaves 4 × 4 mean colours; `"noise"` and
            `"color"` are drawn anew ([`~hf_explain.tensors.perturbation.random_fill_values`]); `"photo"` is the image
            before this one in the batch of its process. By default the one fill of `mask_space`, as published.
        mix_fills (`bool`, *optional*, defaults to `False`): Draw a fill for every position of the map, or cell of
            `mask_grid`, instead of one for the whole image.
        mask_grid (`str` or `tuple[int, int]`, *optional*, defaults to `"pixel"`): What is kept or removed together.
            `"pixel"`, as published: every pixel by itself, by the map enlarged bilinearly. `"patch"` (ours): each
            patch that a vision transformer reads, whole, by the one value that the map has there; what is half removed
            still tells such a classifier what it was. `(height, width)` (ours): each cell of a grid of so many. Maps
            are given out on that grid.
        target_top_k (`int`, *optional*, defaults to 1): Where training is given no target (the command's
            `target="prediction"`), every image of every step is explained for one of so many of the classifier's first
            classes, each as likely (ours), so that the map of a second class is trained, too. 1 is the first class, as
            published; validation is always of that.
    """

    additions: ClassVar[dict[str, str]] = {
        "removal_weight": "removal term",
        "ranking_weight": "ranking term",
        "mask_fills": "drawn fills",
        "contrast": "contrast of its own",
        "mask_grid": "masks of whole cells",
        "target_top_k": "drawn targets",
    }

    ce_weight: float = 1.5
    area_weight: float = 2.0
    area_power: float = 0.3
    area_epsilon: float = 5e-4
    variation_weight: float = 0.01
    border_weight: float = 0.3
    regularize: str = "batch"
    removal_weight: float = 0.0
    ranking_weight: float = 0.0
    ranking_parts: int = 1
    ranking_area_power: float = 1.0
    ranking_temperature: float = 0.3
    contrast: float | None = None
    mask_space: str | None = "pixel"
    mask_fills: list[str] | tuple[str, ...] | None = None
    mix_fills: bool = False
    mask_grid: tuple[int, int] | list[int] | str = "pixel"
    target_top_k: int = 1

    @property
    def seen_fills(self) -> list[str]:
        """What masked pixels become in training; a measurement with these fills is one of what was learnt."""
        return list(self.mask_fills or [mask_space_fill(self.mask_space or "pixel")])

    def validate_explainer(self) -> None:
        super().validate_explainer()
        weights = ("ce_weight", "area_weight", "variation_weight", "border_weight", "removal_weight", "ranking_weight")
        for name in weights:
            check_number(getattr(self, name), name, "[0, inf)")
        check_number(self.area_power, "area_power", "(0, 1]")
        check_number(self.area_epsilon, "area_epsilon", "(0, inf]")
        check_number(self.ranking_temperature, "ranking_temperature", "(0, inf)")
        check_number(self.ranking_area_power, "ranking_area_power", "(0, inf)")
        check_count(self.ranking_parts, "ranking_parts")
        check_count(self.target_top_k, "target_top_k")
        check_number(self.contrast, "contrast", "(0, inf)", optional=True)
        if not (self.ce_weight or self.removal_weight or self.ranking_weight):
            raise ValueError(
                "`ce_weight`, `removal_weight` and `ranking_weight` are all 0, so nothing would ask the classifier; "
                "give at least one of them a weight."
            )
        check_choice(self.regularize, "regularize", ("own", "batch"))
        # `None` until a head whose default depends on the classifier has one
        check_choice(self.mask_space, "mask_space", MASK_SPACES, optional=True)
        check_grid(self.mask_grid, "mask_grid")
        fills = self.mask_fills
        known = TRAINING_FILLS
        if fills is not None and (not fills or any(fill not in known or fills.count(fill) > 1 for fill in fills)):
            raise ValueError(f"`mask_fills` must be one or several of {', '.join(known)}, each once, got {fills!r}.")
        if self.mix_fills and len(self.mask_fills or ()) < 2:
            raise ValueError(f"`mix_fills` needs several `mask_fills` to draw from, got mask_fills={fills!r}.")


class MaskTrainedExplainer(ExplainerPreTrainedModel):
    """A head whose map is trained by masking what the classifier sees and asking it again."""

    config_class = MaskTrainedConfig
    config: MaskTrainedConfig
    distillable: ClassVar[bool] = True

    @classmethod
    def complete_config(cls, classifier: FrozenClassifier, config: Any) -> None:
        cls.check_several_classes(classifier)
        if config.mask_grid == "patch":
            grid_cells("patch", classifier, classifier.image_size, "mask_grid")  # says so where it has no patches

    def training_target(self, logits: torch.Tensor) -> torch.Tensor:
        count = min(self.config.target_top_k, logits.shape[1])
        if count == 1 or not self.training:
            return super().training_target(logits)
        drawn = (batch_uniform(len(logits), logits.device) * count).long()
        return logits.topk(count).indices.gather(1, drawn[:, None])[:, 0]

    def pairwise_saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        """
        Every image's map of every target given, `(batch_size, num_targets, height, width)`: entry `[i, j]` is image
        i's map of target j. Training gives the targets of the batch (of all processes), never other classes.
        """
        raise TypeError(f"{type(self).__name__} does not define `pairwise_saliency_logits`.")

    def on_grid(self, maps: torch.Tensor, features: ClassifierFeatures) -> torch.Tensor:
        """
        What `saliency_logits` and `pairwise_saliency_logits` end with.

        Args:
            maps (`torch.FloatTensor` of shape `(batch_size, height, width)` or pairwise with `num_targets` before the
                height): Raw maps, at any resolution.
            features ([`ClassifierFeatures`]): What they were made of.

        Returns:
            `torch.FloatTensor`: One value per cell of `mask_grid`; `maps` as they are where that is `"pixel"`.

        Raises:
            ValueError: If the images cannot be cut into such cells.
        """
        if self.config.mask_grid == "pixel":
            return maps
        cells = grid_cells(self.config.mask_grid, self.attached, features.image_size, "mask_grid")
        assert cells is not None
        return cell_means(maps, cells, features.image_size)

    def masked_logits(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, attention: torch.Tensor
    ) -> torch.Tensor:
        """
        The classifier's logits where only what `attention` keeps is left.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): The images.
            features ([`ClassifierFeatures`]): Of the same images.
            attention (`torch.FloatTensor` of shape `(copies * batch_size, height, width)`): In [0, 1]; several copies
                of the batch, one behind the other, go through the classifier in one pass.

        Returns:
            `torch.FloatTensor` of shape `(copies * batch_size, num_labels)`.
        """
        enlarge = resize_maps if self.config.mask_grid == "pixel" else spread_cells
        kept = enlarge(attention, pixel_values.shape[-2:])
        copies = len(kept) // len(pixel_values)
        filled = self._filled(pixel_values, attention.shape[-2:])
        if len(filled) > 1:
            filled = filled.repeat(copies, 1, 1, 1)
        return self.attached(blend(pixel_values.repeat(copies, 1, 1, 1), kept, filled))

    def _filled(self, pixel_values: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """What masked pixels become: one colour for all images, or every image's own drawn fill, or fills by cell."""
        config, names = self.config, self.config.seen_fills
        size, device = len(pixel_values), pixel_values.device
        if "photo" in names and size == 1:
            if self.training or len(names) == 1:
                raise ValueError(
                    "`mask_fills` with 'photo' fills an image with another one of its batch, which is a single image; "
                    "train with larger batches or leave 'photo' out."
                )
            names.remove("photo")  # the last batch of a validation
        # as for the ranking term: training draws; validation takes the fills in turn, so that it is always the same
        keys = torch.arange(size, device=device)
        if config.mix_fills or any(name in RANDOM_FILLS for name in names):
            numbers = (batch_uniform(size, device) * 2**53).long() if self.training else keys
            keys = image_keys(pixel_values, numbers)
        values = [self._fill(name, pixel_values, keys) for name in names]
        if len(values) == 1:
            return values[0]
        if config.mix_fills:
            drawn = random_uniform(image_keys(pixel_values, keys, seed=1), math.prod(grid)).view(size, 1, *grid)
            drawn = F.interpolate(drawn, pixel_values.shape[-2:], mode="nearest") * len(values)
        else:
            drawn = batch_uniform(size, device) * len(values) if self.training else torch.arange(size, device=device)
            drawn = drawn[:, None, None, None]
        choice = drawn.long() % len(values)
        # all fills of every image, then a choice: a blur costs next to nothing, and indexing would wait for the GPU
        filled = values[0].expand_as(pixel_values)
        for place, value in enumerate(values[1:], 1):
            filled = torch.where(choice == place, value, filled)
        return filled

    def _fill(self, name: str, pixel_values: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        mean, std = self.config.image_mean, self.config.image_std
        if name == "photo":
            return pixel_values.roll(1, 0)
        if name == "strong_blur":
            return strong_blur(pixel_values)
        if name in RANDOM_FILLS:
            return random_fill_values(pixel_values, name, keys, mean, std)
        return fill_values(pixel_values, name, mean, std)

    def masks(self, maps: torch.Tensor) -> torch.Tensor:
        """What of each pixel raw maps, `(..., height, width)`, keep: as many masks, in [0, 1]."""
        contrast = self.config.contrast
        return maps.sigmoid() if contrast is None else (contrast * standardize(maps.float())).sigmoid()

    def scale_maps(self, maps: torch.Tensor) -> torch.Tensor:
        return super().scale_maps(maps if self.config.contrast is None else self.masks(maps))

    def compute_loss(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, target: torch.Tensor
    ) -> SaliencyOutput:
        config = self.config
        if config.regularize == "batch" and (config.area_weight or config.variation_weight):
            # of the batch of all processes while training; validation batches may differ in length between processes
            targets, first = gather_targets(target) if self.training else (target, 0)
            pairs = self.pairwise_saliency_logits(features, targets)
            maps = pairs[:, first : first + len(target)].diagonal(dim1=0, dim2=1).permute(2, 0, 1)
            attention, regularized = self.masks(maps), self.masks(pairs)
        else:
            maps = self.saliency_logits(features, target)
            attention = regularized = self.masks(maps)

        asked = {}  # what the classifier is asked about, all in one pass
        if config.ce_weight:
            asked["cross_entropy"] = attention
        if config.removal_weight:
            asked["removal"] = 1 - attention
        if config.ranking_weight:
            # each image has its own part: training draws it, validation covers the range evenly, always the same way
            size, device = len(target), maps.device
            drawn = batch_uniform(size, device) if self.training else (torch.arange(size, device=device) + 0.5) / size
            parts = config.ranking_parts
            areas = ((drawn + torch.arange(parts, device=device)[:, None] / parts) % 1) ** config.ranking_area_power
            kept = [ranked_masks(maps.float(), area, config.ranking_temperature) for area in areas]
            asked["ranking_kept"] = torch.cat(kept)
            asked["ranking_removed"] = 1 - asked["ranking_kept"]
        answers = self.masked_logits(pixel_values, features, torch.cat(list(asked.values())))
        logits = dict(zip(asked, answers.float().split([len(masks) for masks in asked.values()]), strict=True))

        terms = {}
        if config.ce_weight:
            terms["cross_entropy"] = config.ce_weight * cross_entropy(logits["cross_entropy"], target)
        if config.area_weight:
            area = area_loss(regularized.float(), config.area_power, config.area_epsilon)
            terms["area"] = config.area_weight * area
        if config.variation_weight:
            variation = variation_loss(regularized.float(), len(target), config.border_weight)
            terms["variation"] = config.variation_weight * variation
        if config.removal_weight:
            terms["removal"] = config.removal_weight * removal_loss(logits["removal"], target)
        if config.ranking_weight:
            targets = target.repeat(config.ranking_parts)
            loss = cross_entropy(logits["ranking_kept"], targets) + removal_loss(logits["ranking_removed"], targets)
            terms["ranking"] = config.ranking_weight * loss
        return SaliencyOutput(
            loss=sum(terms.values(), start=torch.zeros((), device=maps.device)),
            saliency_logits=maps,
            loss_terms={name: term.detach() for name, term in terms.items()},
        )
