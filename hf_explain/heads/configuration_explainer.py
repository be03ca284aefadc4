"""The base of every head's configuration, checked as a whole wherever it comes from."""

from __future__ import annotations

import copy
import inspect
import os
import re
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from hf_explain.io.downloads import check_sizes
from hf_explain.io.files import final_place
from hf_explain.io.paths import relative_name


# Annotations of fields whose values a command line or a config.json can get wrong, and what they take
_KINDS = {"float": (Real, "a number"), "int": (Integral, "a whole number"), "bool": (bool, "true or false"),
          "str": (str, "a string")}  # fmt: skip
# A commit, a branch or a tag; no part of it starts with a dot, so it leads out of no cache
_REVISION = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")


class ExplainerConfig(PreTrainedConfig):
    """
    What every head's configuration holds: which classifier it explains, and where it taps it.

    Args:
        backbone (`str`, *optional*): Directory or Hub id of the classifier. In a file a directory is written by its
            way from the file's own folder, so that the two can move together.
        backbone_revision (`str`, *optional*): Commit of the classifier on the Hub, or a branch or tag.
        backbone_config (`dict` or `PreTrainedConfig`, *optional*): The classifier's own configuration.
        backbone_fingerprint (`dict`, *optional*): Checksums of the classifier's weights, by dtype.
        self_contained (`bool`, *optional*, defaults to `False`): Whether the classifier's weights are saved inside.
        feature_layers (`list[str]`, *optional*): Names of the tapped layers; the head's own choice when not given.
        feature_channels (`list[int]`, *optional*): Channels of each tapped layer; filled in from the classifier.
        image_mean (`list[float]`, *optional*): Mean the classifier's pixels are normalised with, one per channel.
        image_std (`list[float]`, *optional*): Standard deviation, likewise.
    """

    model_type = "saliency_explainer"
    sub_configs = {"backbone_config": AutoConfig}
    # The frozen classifiers that a head is made around. Each is an attribute of the head; which one it is, say the
    # fields NAME, NAME_revision, NAME_config and NAME_fingerprint.
    classifiers: ClassVar[tuple[str, ...]] = ("backbone",)
    # The one of them that `feature_layers` are layers of
    tapped: ClassVar[str] = "backbone"
    # What goes beyond the head's paper, in words, by the field that asks for it with another value than its default
    additions: ClassVar[dict[str, str]] = {}
    # Fields under the names they had before, which files and callers may still use
    renamed: ClassVar[dict[str, str]] = {}
    # What `Trainer` does not keep of every prediction; it keeps maps, logits and targets
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "saliency_logits",
        "contributions",
        "reconstruction",
        "loss_terms",
    ]

    backbone: str | None = None
    backbone_revision: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    backbone_fingerprint: dict | None = None
    self_contained: bool = False
    feature_layers: list[str] | tuple[str, ...] | None = None
    feature_channels: list[int] | tuple[int, ...] | None = None
    image_mean: list[float] | tuple[float, ...] | None = None
    image_std: list[float] | tuple[float, ...] | None = None

    def __post_init__(self, **kwargs):
        # A pipeline entry would make loading ask for trust_remote_code even where the package is installed.
        kwargs.pop("custom_pipelines", None)
        for before, name in self.renamed.items():
            if before in kwargs:
                setattr(self, name, kwargs.pop(before))
        check_sizes({**kwargs, "feature_channels": self.feature_channels})
        for field in (f"{name}_config" for name in self.classifiers):
            nested = getattr(self, field)
            if isinstance(nested, dict):
                values = dict(nested)
                check_sizes(values, field)
                model_type = values.pop("model_type", None)
                if model_type not in CONFIG_MAPPING:
                    raise ValueError(f"`{field}` has model_type {model_type!r}, which transformers does not know.")
                setattr(self, field, CONFIG_MAPPING[model_type](**values))
        explained: Any = self.backbone_config
        if explained is not None and "id2label" not in kwargs and self.id2label is None:
            self.id2label = copy.copy(explained.id2label)
            self.label2id = copy.copy(explained.label2id)
        super().__post_init__(**kwargs)
        self.validate_explainer()

    @property
    def taps(self) -> dict[str, int]:
        """
        Names of the tapped layers and their channels.

        Raises:
            ValueError: If they are not known: the configuration was not made for a classifier.
        """
        if self.feature_layers is None or self.feature_channels is None:
            raise ValueError(
                f"`feature_layers` and `feature_channels` of this {type(self).__name__} are not known yet; a head's "
                "from_classifier(classifier) fills them in."
            )
        return dict(zip(self.feature_layers, self.feature_channels, strict=True))

    def validate_explainer(self) -> None:
        """
        Check the fields together; subclasses add their own and call this one.

        Raises:
            ValueError: If a field has a value that no head can work with; the message names both.
            TypeError: If a field has a value of another type than its own; likewise.
        """
        own = [cls for cls in reversed(type(self).__mro__) if issubclass(cls, ExplainerConfig)]
        kinds = {name: kind for cls in own for name, kind in inspect.get_annotations(cls).items()}
        for name, kind in kinds.items():
            _check_kind(name, getattr(self, name), kind.__name__ if isinstance(kind, type) else str(kind))
        for field in (f"{name}_revision" for name in self.classifiers):
            revision = getattr(self, field)
            if revision and not _REVISION.fullmatch(revision):
                raise ValueError(
                    f"`{field}` must be a commit of 40 digits or the name of a branch or tag, got {revision!r}."
                )
        if self.feature_layers is not None and len(self.feature_layers) == 0:
            raise ValueError("`feature_layers` is empty; name at least one layer, or leave it out for the default.")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As Transformers does; a classifier's directory is written by its way from `save_directory`."""
        sources = {name: getattr(self, name) for name in self.classifiers}
        try:
            for name, source in sources.items():
                setattr(self, name, relative_name(source, final_place(Path(save_directory))))
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            for name, source in sources.items():
                setattr(self, name, source)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        for name in self.classifiers:
            nested = output.get(f"{name}_config")
            if isinstance(nested, dict):
                nested.pop("_name_or_path", None)  # would publish a path of the machine it was trained on
        return output


def _check_kind(name: str, value: Any, annotation: str) -> None:
    """A TypeError that says what a configuration's field takes, rather than what Python cannot compare."""
    kinds = annotation.split(" | ")
    if value is None and "None" in kinds:
        return
    wanted: type | tuple[type, ...] = (tuple, list)
    words = "a list"
    if kinds[0] in _KINDS:
        wanted, words = _KINDS[kinds[0]]
    elif not kinds[0].startswith("list["):
        return
    if not isinstance(value, wanted) or isinstance(value, bool) and kinds[0] != "bool":
        raise TypeError(f"`{name}` must be {words}{' or None' if 'None' in kinds else ''}, got {value!r}.")
