"""The base of every trained head: features of a frozen classifier in, maps out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.utils import can_return_tuple

from hf_explain.classifiers.features import ClassifierFeatures
from hf_explain.classifiers.fingerprint import fingerprint
from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.classifiers.targets import Target
from hf_explain.heads.losses import correlation_loss
from hf_explain.heads.modeling_bound import BoundPreTrainedModel
from hf_explain.io.transformers_names import initialization as init
from hf_explain.tensors.checks import checks_together
from hf_explain.tensors.maps import area_means, check_finite, min_max
from hf_explain.tensors.outputs import SaliencyOutput


# The classifier, images and the class of each to a map of each, at any resolution
MapsOf = Callable[[FrozenClassifier, torch.Tensor, torch.Tensor], torch.Tensor]
# Fields of a configuration that say where something is or which version wrote it, and nothing of what a head does;
# the classes of the heads are told by their names
_PLACES = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "auto_map", "custom_pipelines",
           "architectures", "_attn_implementation", "_attn_implementation_internal")  # fmt: skip
# The same of a classifier, whose weights are told by its fingerprint
_CLASSIFIER_PLACES = ("", "_revision", "_fingerprint")


class ExplainerPreTrainedModel(BoundPreTrainedModel):
    """
    A head that explains a frozen classifier.

    Subclasses implement `default_feature_layers`, `saliency_logits` and `compute_loss`. The forward pass lives here;
    attaching, freezing, loading and saving in [`BoundPreTrainedModel`].
    """

    one_graph: ClassVar[bool] = True  # whether exporters can trace the forward pass
    signed: ClassVar[bool] = False  # whether its outputs have `contributions`: what speaks against the class, too
    allows_bfloat16: ClassVar[bool] = False  # whether its maps were measured to be as good from a pass in bfloat16
    # whether training may start from a training-free method's maps: its raw map means no more than their order
    distillable: ClassVar[bool] = False

    # ------------------------------------------------------------------ what a head implements

    @classmethod
    def check_several_classes(cls, classifier: FrozenClassifier) -> None:
        """
        For heads that learn from what masks do to a softmax.

        Raises:
            ValueError: If the classifier has one class.
        """
        if classifier.num_labels < 2:
            raise ValueError(
                f"`classifier` has one class, whose softmax is 1 however much is masked, so {cls.__name__} "
                "could learn nothing: it needs two; use ScanForSaliency, or a training-free method such as gradcam."
            )

    def saliency_logits(self, features: ClassifierFeatures, target: torch.Tensor) -> torch.Tensor:
        """The raw maps of `target` from the tapped features, `(batch_size, height, width)`, unbounded."""
        raise TypeError(f"{type(self).__name__} does not define `saliency_logits`.")

    def training_target(self, logits: torch.Tensor) -> torch.Tensor:
        """The class that each image is explained for in a training pass that names none, `(batch_size,)`."""
        return logits.argmax(-1)

    def scale_maps(self, maps: torch.Tensor) -> torch.Tensor:
        """Raw maps, `(batch_size, height, width)`, as they are given out: float32, from 0 to 1 each."""
        return min_max(maps.float())

    def compute_loss(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, target: torch.Tensor
    ) -> SaliencyOutput:
        """The training pass: an output with `loss`, `saliency_logits` and `loss_terms` (weighted, detached)."""
        raise TypeError(f"{type(self).__name__} does not define `compute_loss`.")

    def compute_distillation(
        self, pixel_values: torch.Tensor, features: ClassifierFeatures, target: torch.Tensor, maps_of: MapsOf
    ) -> SaliencyOutput:
        """
        The training pass that brings the raw maps near those of something else; the classifier is asked about no
        masked image.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.
            features ([`ClassifierFeatures`]): From [`~ExplainerPreTrainedModel.forward_features`].
            target (`torch.LongTensor` of shape `(batch_size,)`): The class each map explains.
            maps_of (`Callable`): The classifier, `pixel_values` and `target` to maps `(batch_size, height, width)`,
                at any resolution; they are averaged over the area of each position of the head's map.

        Returns:
            [`SaliencyOutput`] with `loss`, `saliency_logits` and `loss_terms`.
        """
        maps = self.saliency_logits(features, target)
        reference = area_means(maps_of(self.attached, pixel_values, target), maps.shape[-2:], features.image_size)
        loss = correlation_loss(maps.float(), reference.float())
        return SaliencyOutput(loss=loss, saliency_logits=maps, loss_terms={"distillation": loss.detach()})

    # ------------------------------------------------------------------ forward

    def forward_features(self, pixel_values: torch.Tensor) -> ClassifierFeatures:
        """
        The frozen classifier's pass: the tapped features and the logits, without a graph.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            [`ClassifierFeatures`].
        """
        try:
            with torch.no_grad():
                return self.attached.features(pixel_values, self.config.feature_layers)
        except KeyError as error:
            raise lost_weights(error, self.config.classifiers) from error

    def select_features(self, features: ClassifierFeatures, rows: list[int]) -> ClassifierFeatures:
        """
        The features of some images of the batch, for a class that not all of them are explained for.

        Args:
            features ([`ClassifierFeatures`]): From [`~ExplainerPreTrainedModel.forward_features`].
            rows (`list[int]`): Places of the images in the batch.

        Returns:
            [`ClassifierFeatures`] of `len(rows)` images, in their order.
        """
        return features.select(rows)

    def forward_head(self, features: ClassifierFeatures, target: Target = None) -> SaliencyOutput:
        """
        Maps of one class per image from features that were computed once, so that several classes cost one pass.

        Args:
            features ([`ClassifierFeatures`]): From [`~ExplainerPreTrainedModel.forward_features`].
            target (*optional*): As for `forward`.

        Returns:
            [`SaliencyOutput`] with `saliency`, `saliency_logits`, `logits` and `target`.
        """
        classes = self.attached.resolve_target(target, features.logits.shape[0], features.logits)
        maps = self.saliency_logits(features, classes)
        return SaliencyOutput(
            saliency=self.scale_maps(maps.detach()), logits=features.logits, target=classes, saliency_logits=maps
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        target: Target = None,
        return_loss: bool | None = None,
        labels: Target = None,
        distill_from: MapsOf | None = None,
    ) -> SaliencyOutput:
        """
        Explain a batch of images, or train on it.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels,
                as the classifier's image processor makes them.
            target (`int`, `str`, list of them or `torch.LongTensor` of shape `(batch_size,)`, *optional*): The class
                to explain, by index or label name, for the batch or per image. The classifier's own top class when
                not given.
            return_loss (`bool`, *optional*): Also run the training pass and return `loss`. When not given: where
                `labels` are, and for a `target` in train mode, so that `Trainer` trains on either.
            labels (*optional*): The same as `target`, by the name that `Trainer` and data sets use.
            distill_from (`Callable`, *optional*): In a training pass, `loss` is the distance from the maps that this
                gives instead of the head's own, see [`~ExplainerPreTrainedModel.compute_distillation`].
            return_dict (`bool`, *optional*): `False` for a tuple of what there is, the loss first.

        Returns:
            [`SaliencyOutput`].

        Raises:
            ValueError: If the head has no classifier, `target` names no class of it, both `target` and `labels` are
                given, or an image's logits or map are not finite (the loss of a training pass is its caller's to
                check).
        """
        target, return_loss = self.resolve_request(target, return_loss, labels)
        features = self.forward_features(pixel_values)
        if not return_loss:
            return check_output(self.forward_head(features, target))
        if target is None:
            target = self.training_target(features.logits)
        classes = self.attached.resolve_target(target, features.logits.shape[0], features.logits)
        if distill_from is None:
            output = self.compute_loss(pixel_values, features, classes)
        else:
            output = self.compute_distillation(pixel_values, features, classes, distill_from)
        maps = output.saliency
        if maps is None and output.saliency_logits is not None:
            maps = self.scale_maps(output.saliency_logits.detach())
        # a new one: fields that are set later come last in a tuple
        return replace(output, saliency=maps, logits=features.logits, target=classes)

    def resolve_request(self, target: Target, return_loss: bool | None, labels: Target = None) -> tuple[Target, bool]:
        """What a call asks for: the target, and whether to train on it; see `forward`."""
        if labels is not None:
            if target is not None:
                raise ValueError("`labels` is another name of `target`, the class to explain; give one of them.")
            target = labels
        if return_loss is None:
            return_loss = labels is not None or (self.training and target is not None)
        if return_loss:
            # a container's requires_grad_ goes straight to the parameters and so past the classifiers' own
            self.freeze()
        return target, return_loss

    def training_identity(self) -> dict[str, dict[str, Any]]:
        """
        What training this head depends on, for its checkpoints: the classifiers' weights and every field of the
        configuration but names of places and versions, which may change.

        Returns:
            `dict[str, dict]`: JSON values, the groups `classifier` and `head`, and one of each other classifier.
        """
        config = {name: value for name, value in self.config.to_dict().items() if name not in _PLACES}
        for name in self.config.classifiers:
            for place in _CLASSIFIER_PLACES:
                del config[f"{name}{place}"]
            nested = config[f"{name}_config"]
            if isinstance(nested, dict):
                config[f"{name}_config"] = {key: value for key, value in nested.items() if key not in _PLACES}
        weights = {name: {"fingerprint": fingerprint(one.model)} for name, one in self.frozen.items()}
        explained = weights.pop("backbone")
        return {"classifier": explained, "head": {"class": type(self).__name__, **config}, **weights}

    def training_defaults(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint of a version that did not have some field yet was trained with, by group, likewise."""
        own = fields(self.config_class)
        return {"head": {one.name: one.default for one in own if isinstance(one.default, bool | int | float | str)}}

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own defaults, which the released implementations were trained from."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = nn.init._calculate_fan_in_and_fan_out(module.weight)[0] ** -0.5
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


def check_output(output: SaliencyOutput) -> SaliencyOutput:
    """
    `output` if its logits and maps are finite: a map that is not would be scaled to zeros and look like an answer.

    Args:
        output ([`SaliencyOutput`]): From a head's `forward_head`; calling the head itself checks already.

    Raises:
        ValueError: Names the first image whose logits or map hold NaN or infinity.
    """
    # not where a compiler would have to break the graph for it
    if not torch.compiler.is_compiling():
        maps = output.saliency_logits
        assert maps is not None  # every head gives them
        with checks_together():
            check_finite(output.logits, "logits that are")
            check_finite(maps, "a map that is")
    return output


def lost_weights(error: KeyError, classifiers: Sequence[str]) -> Exception:
    """What a classifier's missing weights mean, which Accelerate looks up in the head's state; else `error` itself."""
    if not any(f"{name}." in str(error) for name in classifiers):
        return error
    return ValueError(
        "The classifier's weights were lost when the head was offloaded, because a head's state_dict() holds its own "
        "alone. Load it again, with device_map= and offload_folder=, or set config.self_contained to true before you "
        "offload it."
    )
