from __future__ import annotations

import os
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from hf_explain.classifiers.features import ClassifierFeatures
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.modeling_branches import BranchedExplainer
from hf_explain.heads.modeling_explainer import lost_weights
from hf_explain.heads.ptame.configuration_ptame import PTameConfig
from hf_explain.heads.taps import pyramid, spread_blocks


_TRANSFORMER = {"ce_weight": 0.131, "area_weight": 0.839, "variation_weight": 0.0, "area_power": 0.5}
# The weights of the loss that the paper found by search, by the explained classifier's `model_type`. Its VGG-16
# (0.073, 0.978, 1e-4) has no type of its own in Transformers.
SEARCHED: dict[str, dict[str, float]] = {
    "resnet": {"ce_weight": 0.161, "area_weight": 0.839, "variation_weight": 0.0},
    "vit": _TRANSFORMER,
    "deit": _TRANSFORMER,
}
_ADVICE = "give the directory, the Hub id or an instance of a small image classifier, such as 'microsoft/resnet-18'"


class PTameForSaliency(BranchedExplainer):
    """
    P-TAME: the branches and the fuser of T-TAME, over the layers of a small *auxiliary* classifier.

    The explained classifier is asked what it makes of the image and of the masked image, in training, and is never
    looked into: whatever has a gradient can be explained, and the map is as fine as the auxiliary classifier's first
    tapped layer, 56×56 for a ResNet-18. Of a trained head it gives the logits, and the class where none is asked for;
    the map is made of the auxiliary classifier's features alone. It therefore stays the same if the explained
    classifier's weights change, which the fingerprint refuses and a sanity check by random weights shows.

    Both classifiers are frozen, and saved by their names and fingerprints unless the head is `self_contained`. The
    auxiliary one gets the same pictures, in its own normalisation and size. The preset `ranking` is T-TAME's.

    Example:

    ```python
    >>> head = PTameForSaliency.from_classifier("google/vit-base-patch16-224", auxiliary="microsoft/resnet-18")
    >>> saliency = head(pixel_values, target="tench").saliency
    >>> head.save_pretrained("ptame-vit")
    >>> head = PTameForSaliency.from_pretrained("ptame-vit")  # `classifier=` and `auxiliary=` for others than named
    ```
    """

    config_class = PTameConfig
    config: PTameConfig
    auxiliary: FrozenClassifier | None
    fuser_bias: ClassVar[bool] = False
    _keys_to_ignore_on_load_unexpected = [r"^(backbone|auxiliary)\."]

    @classmethod
    def take_classifiers(
        cls, classifier: FrozenClassifier, fields: dict[str, Any], loading: dict[str, Any]
    ) -> dict[str, FrozenClassifier]:
        given, revision = fields.pop("auxiliary", None), fields.pop("auxiliary_revision", None)
        auxiliary = _load_auxiliary(given, revision, classifier, loading)
        ours, theirs = classifier.image_mean, auxiliary.image_mean
        if len(ours) != len(theirs):
            raise ValueError(
                f"`auxiliary` {_name(auxiliary)!r} sees pictures of {len(theirs)} channels, the explained classifier "
                f"of {len(ours)}; give one that sees pictures of {len(ours)}."
            )
        fields["auxiliary_mean"], fields["auxiliary_std"] = list(theirs), list(auxiliary.image_std)
        if fields.get("input_scale") is None:
            fields["input_scale"] = _scale(classifier, auxiliary)
        return {"backbone": classifier, "auxiliary": auxiliary}

    @classmethod
    def published_fields(cls, classifier: FrozenClassifier) -> dict[str, Any]:
        return dict(SEARCHED.get(getattr(classifier.config, "model_type", ""), {}))

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: Any) -> list[str]:
        return spread_blocks(classifier) if classifier.is_transformer else pyramid(classifier)

    def attach_auxiliary(self, auxiliary: FrozenClassifier, *, verify_fingerprint: bool = True) -> Self:
        """
        Give the head its auxiliary classifier.

        Args:
            auxiliary ([`FrozenClassifier`]): The classifier.
            verify_fingerprint (`bool`, *optional*, defaults to `True`): Refuse one whose weights are not those the
                head was trained on.

        Returns:
            The head itself.

        Raises:
            ValueError: If it lacks a tapped layer, or its weights differ.
        """
        self.check_classifier("auxiliary", auxiliary, verify_fingerprint)
        self.auxiliary = auxiliary
        return self

    @property
    def tapped(self) -> FrozenClassifier:
        if self.auxiliary is None:
            raise ValueError(
                f"{type(self).__name__} has no auxiliary classifier; build it with from_classifier or "
                "from_pretrained, or call attach_auxiliary(auxiliary)."
            )
        return self.auxiliary

    def forward_features(self, pixel_values: torch.Tensor) -> ClassifierFeatures:
        """
        One pass of each classifier, without a graph: the auxiliary one's tapped features, the explained one's logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels,
                as the explained classifier's image processor makes them.

        Returns:
            [`ClassifierFeatures`].
        """
        try:
            with torch.no_grad():
                logits = self.attached(pixel_values)
                features = self.tapped.features(self.auxiliary_pixels(pixel_values), self.config.feature_layers)
        except KeyError as error:
            raise lost_weights(error, self.config.classifiers) from error
        return ClassifierFeatures(logits, dict(features), self.tapped.layer_names, pixel_values.shape[-2:])

    def auxiliary_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The same pictures as the auxiliary classifier sees them.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels
                of the explained classifier.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_channels, height * input_scale, width * input_scale)`,
            rounded.
        """
        config = self.config
        numbers = (config.image_mean, config.image_std, config.auxiliary_mean, config.auxiliary_std)
        channels = list(zip(*(each or () for each in numbers), strict=True))
        if any(mean != own_mean or std != own_std for mean, std, own_mean, own_std in channels):
            factors = torch.tensor([std / own_std for _, std, _, own_std in channels]).view(1, -1, 1, 1)
            shifts = torch.tensor([(mean - own) / own_std for mean, _, own, own_std in channels]).view(1, -1, 1, 1)
            pixel_values = pixel_values.float()
            factors, shifts = (each.to(pixel_values, non_blocking=True) for each in (factors, shifts))
            pixel_values = pixel_values * factors + shifts
        size = [max(1, round(side * config.input_scale)) for side in pixel_values.shape[-2:]]
        if size == list(pixel_values.shape[-2:]):
            return pixel_values
        return F.interpolate(pixel_values.float(), size=size, mode="bilinear", antialias=True)


def _load_auxiliary(
    auxiliary: Any, revision: str | None, classifier: FrozenClassifier, loading: dict[str, Any]
) -> FrozenClassifier:
    if auxiliary is None or auxiliary == "":
        raise ValueError(f"`auxiliary` is missing, the classifier whose features make the map; {_ADVICE}.")
    if isinstance(auxiliary, (str, os.PathLike)):
        try:
            found = FrozenClassifier.from_pretrained(auxiliary, revision=revision, **loading)
        except (OSError, ValueError) as error:
            if type(error) not in (FileNotFoundError, OSError, ValueError):
                raise
            raise type(error)(f"`auxiliary` {os.fspath(auxiliary)!r} did not load: {error}") from error
        if "device_map" not in loading:
            found.to(classifier.device)
    elif not isinstance(auxiliary, nn.Module):
        raise TypeError(f"`auxiliary` is {auxiliary!r}, which is no classifier; {_ADVICE}.")
    elif revision is not None:
        raise TypeError(
            f"`auxiliary_revision` says how to load a classifier, but `auxiliary` is loaded already (a "
            f"{type(auxiliary).__name__}); leave it out, or give a directory or Hub id."
        )
    else:
        found = auxiliary if isinstance(auxiliary, FrozenClassifier) else FrozenClassifier(auxiliary)
    if found.model is classifier.model:
        raise ValueError(
            "`auxiliary` is the explained classifier itself, whose own layers T-TAME reads; use TTameForSaliency, or "
            "give another classifier."
        )
    if found.takes_texts:
        raise ValueError(
            f"`auxiliary` {_name(found)!r} matches images with texts, with no classes of its own; {_ADVICE}."
        )
    try:
        found.resolve_layer(-1)
    except ValueError as error:
        raise ValueError(f"`auxiliary` {_name(found)!r} has no features to make maps of: {error}") from error
    return found


def _name(classifier: FrozenClassifier) -> str:
    return classifier.name_or_path or classifier.model_class


def _scale(classifier: FrozenClassifier, auxiliary: FrozenClassifier) -> float:
    """Sides of the auxiliary classifier's pictures, divided by those of the explained one's, as far as it is told."""
    if classifier.image_processor is None or auxiliary.image_processor is None:
        return 1.0
    (height, width), (tall, wide) = classifier.picture_size, auxiliary.picture_size
    if tall * width != wide * height:
        raise ValueError(
            f"`auxiliary` {_name(auxiliary)!r} sees pictures of {tall} × {wide} pixels, the explained classifier of "
            f"{height} × {width}, which have another shape; pass input_scale=, by which the explained one's are "
            "enlarged for it, or give another classifier."
        )
    return tall / height
