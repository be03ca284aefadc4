"""Texts as classes: a model that matches images with texts, as a classifier whose rows are the texts' embeddings."""

from __future__ import annotations

import copy
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer

from hf_explain.classifiers.hooked_layers import pair
from hf_explain.io.downloads import UntrustedCodeError, hub_errors, no_code_of_its_own
from hf_explain.io.transformers_names import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, cached_file


# Of Transformers' `pipeline("zero-shot-image-classification")`
DEFAULT_TEMPLATE = "This is a photo of {}."
_MODELS = frozenset(MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values())
_REFUSED = {
    "blip-2": "it compares a text with the best of its query tokens, which no linear classifier of an image does; "
    "use CLIP or SigLIP",
    "siglip2": "it takes images as lists of patches, in a grid of each image's own shape; use a SigLIP 2 of a fixed "
    "size, such as 'google/siglip2-base-patch16-224'",
    "videoprism": "it is a model of videos, and only image classifiers can be explained",
}
_TEXT_BATCH = 64  # texts per pass of the text tower
_KEPT = 32  # sets of texts whose embeddings are kept


def is_zero_shot(architecture: str | None) -> bool:
    """Whether a model of this class matches images with texts, and has no classes of its own."""
    return architecture in _MODELS


def check_zero_shot(model_type: str, name: str) -> None:
    """
    Refuse a model of images and texts whose logits are not those of a linear classifier over its image tower.

    Args:
        model_type (`str`): Of its configuration.
        name (`str`): What the message calls it.

    Raises:
        ValueError: If it is one.
    """
    if model_type in _REFUSED:
        raise ValueError(f"{name!r} ({model_type}) cannot be explained by texts: {_REFUSED[model_type]}.")


def check_labels(candidate_labels: Any) -> tuple[str, ...]:
    """
    Candidate labels that can be classes.

    Args:
        candidate_labels (sequence of `str`): One text per class.

    Returns:
        `tuple[str, ...]`.

    Raises:
        TypeError: If it is no sequence of texts.
        ValueError: If there is none, one is empty, or one comes twice, which would halve its probability.
    """
    if isinstance(candidate_labels, (str, bytes)) or not isinstance(candidate_labels, Sequence):
        raise TypeError(f"`candidate_labels` must be a list of texts, got {candidate_labels!r}.")
    labels = tuple(candidate_labels)
    if not labels:
        raise ValueError("`candidate_labels` is an empty list; give the text of every class.")
    for place, label in enumerate(labels):
        if not isinstance(label, str):
            raise TypeError(f"`candidate_labels` must be texts, got {label!r} in place {place}.")
        if not label.strip():
            raise ValueError(f"`candidate_labels` has an empty text, {label!r} in place {place}.")
        if label in labels[:place]:
            raise ValueError(f"`candidate_labels` has {label!r} twice; every class needs a text of its own.")
    return labels


def check_template(hypothesis_template: Any) -> str:
    """
    A template with one place for the label, written `{}`.

    Args:
        hypothesis_template (`str`): For example `"a photo of a {}."`.

    Raises:
        ValueError: If it has no such place, or other braces.
    """
    rest = hypothesis_template.replace("{}", "", 1) if isinstance(hypothesis_template, str) else "{"
    if not isinstance(hypothesis_template, str) or rest == hypothesis_template or "{" in rest or "}" in rest:
        raise ValueError(
            f"`hypothesis_template` must be a text with one {{}} where the label goes and no other braces, got "
            f"{hypothesis_template!r}."
        )
    return hypothesis_template


def texts_of(config: Any) -> tuple[tuple[str, ...], str] | None:
    """`candidate_labels` and `hypothesis_template` of a classifier's configuration, if its classes are texts."""
    if not is_zero_shot(next(iter(getattr(config, "architectures", None) or ()), None)):
        return None
    template = getattr(config, "hypothesis_template", DEFAULT_TEMPLATE)
    return tuple(config.id2label[index] for index in range(len(config.id2label))), template


def load_tokenizer(name: str, revision: str | None = None, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """
    The tokenizer saved beside a model of images and texts.

    Args:
        name (`str`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code of the repository may run.
        kwargs: cache_dir, token, local_files_only, subfolder.

    Returns:
        The Transformers tokenizer.

    Raises:
        UntrustedCodeError: If it is code of the repository, which may not run.
        ValueError: If there is none that can be used.
    """
    revision = revision or "main"
    try:
        with hub_errors(name, f"loading the tokenizer of {name!r}"), no_code_of_its_own(name):
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=revision, trust_remote_code=trust_remote_code, **kwargs
            )
            files = ["tokenizer.json", *tokenizer.vocab_files_names.values()]
            options = {"revision": revision, "_raise_exceptions_for_missing_entries": False, **kwargs}
            if not any(cached_file(name, file, **options) for file in files):
                # Transformers makes one without a vocabulary, to which every text is the same
                raise FileNotFoundError(f"there is no {' or '.join(dict.fromkeys(files))}")
            return tokenizer
    except (UntrustedCodeError, ConnectionError, PermissionError):
        raise
    except Exception as error:  # Transformers raises whatever the missing file leads to
        reason = " ".join(str(error).split()).partition(". ")[0][:200].rstrip(".")
        raise ValueError(
            f"{name!r} has no tokenizer beside it that can be used ({type(error).__name__}: {reason}), so it reads no "
            "texts; save the model's tokenizer there, or pass tokenizer=."
        ) from error


class ZeroShotClassifier(nn.Module):
    """
    A model of images and texts as an image classifier: the image tower, and behind it a linear classifier that never
    changes, whose rows are the normalised embeddings of the classes' texts.

    Args:
        model (`PreTrainedModel`): One of `AutoModelForZeroShotImageClassification`, such as CLIP or SigLIP.
        tokenizer (*optional*): Its Transformers tokenizer; looked up beside the weights when not given.

    Attributes:
        tokenizer_source (`dict`): What [`load_tokenizer`] is called with, if it has to be.
        candidate_labels (`tuple[str, ...]`): The classes; empty as long as there are no texts.
        hypothesis_template (`str`): What makes a text of a label, in the place of its `{}`.
        config (`PreTrainedConfig`): A copy of the model's, with these classes.
    """

    text_embeds: torch.Tensor | None

    def __init__(self, model: Any, tokenizer: Any = None):
        super().__init__()
        check_zero_shot(model.config.model_type, model.config._name_or_path or type(model).__name__)
        self.model, self._tokenizer = model, tokenizer
        commit = getattr(model.config, "_commit_hash", None)
        self.tokenizer_source: dict[str, Any] = {"name": model.config._name_or_path, "revision": commit}
        self.made = Kept()
        self._name_classes((), DEFAULT_TEMPLATE)
        # not saved: the labels and the text tower make them again, and no two machines to the last bit
        self.register_buffer("text_embeds", None, persistent=False)
        self._sizes = inspect.signature(model.get_image_features).parameters.get("interpolate_pos_encoding")

    def with_texts(self, candidate_labels: Sequence[str], hypothesis_template: str) -> ZeroShotClassifier:
        """
        The same model with other classes.

        Args:
            candidate_labels (sequence of `str`): One per class.
            hypothesis_template (`str`): What makes a text of each.

        Raises:
            ValueError: If there is no tokenizer, or a text is longer than the model reads.
        """
        twin = ZeroShotClassifier(self.model, self.tokenizer)
        twin.made = self.made
        twin._name_classes(tuple(candidate_labels), hypothesis_template)
        twin.text_embeds = self.embed([hypothesis_template.replace("{}", label) for label in candidate_labels])
        return twin

    def _name_classes(self, candidate_labels: tuple[str, ...], hypothesis_template: str) -> None:
        self.candidate_labels, self.hypothesis_template = candidate_labels, hypothesis_template
        config = self.config = copy.deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        config.id2label = dict(enumerate(candidate_labels))
        config.label2id = {label: index for index, label in enumerate(candidate_labels)}
        config.hypothesis_template = hypothesis_template
        # as Transformers' pipeline has it: SigLIP says of each text by itself whether it fits
        config.problem_type = "multi_label_classification" if self.is_sigmoid else "single_label_classification"

    @property
    def tokenizer(self) -> Any:
        """
        The Transformers tokenizer.

        Raises:
            ValueError: If there is none.
        """
        if self._tokenizer is None:
            if not self.tokenizer_source["name"]:
                raise ValueError(f"The {type(self.model).__name__} came without its tokenizer; pass tokenizer=.")
            self._tokenizer = load_tokenizer(**self.tokenizer_source)
        return self._tokenizer

    @property
    def is_sigmoid(self) -> bool:
        """Whether a probability is the sigmoid of a logit, rather than the softmax over all of them."""
        return "siglip" in self.model.config.model_type

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """
        Normalised embeddings of texts.

        Args:
            texts (sequence of `str`): As the text tower reads them.

        Returns:
            `torch.FloatTensor` of shape `(num_texts, embedding_size)`.

        Raises:
            ValueError: As of [`~ZeroShotClassifier.with_texts`].
        """
        tokenizer = self.tokenizer
        options: dict[str, Any] = {"padding": True}
        positions = self._positions
        if self.is_sigmoid:  # as Transformers' pipeline does, and as these models are trained
            positions = min(64, positions)
            options = {"padding": "max_length", "max_length": positions}
        longest = min(positions, tokenizer.model_max_length)
        for text, ids in zip(texts, tokenizer(list(texts), verbose=False)["input_ids"], strict=True):
            if len(ids) > longest:
                raise ValueError(
                    f"The text {text[:60]!r}... has {len(ids)} tokens and the model reads {longest}; shorten it."
                )
        known = inspect.signature(self.model.get_text_features).parameters
        device = next(self.model.parameters()).device
        found = []
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(texts), _TEXT_BATCH):
                tokens = tokenizer(list(texts[start : start + _TEXT_BATCH]), return_tensors="pt", **options)
                read = {name: value.to(device) for name, value in tokens.items() if name in known}
                found.append(_normalised(self.model.get_text_features(**read)))
        return torch.cat(found)

    @property
    def _positions(self) -> int:
        """Tokens that the text tower has positions for."""
        text = self.model.config.text_config
        positions = getattr(text, "max_position_embeddings", None) or 2**20
        if hasattr(self.model.text_model, "roberta") and text.pad_token_id is not None:
            positions -= text.pad_token_id + 1  # its first position is the one behind the padding's
        return positions

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The logits of the texts, as Transformers' model gives them; without any text, the image's own embedding.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised pixels.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_texts)`.
        """
        options = {}
        native = getattr(self.model.config.vision_config, "image_size", None)
        if self._sizes is not None and native is not None and tuple(pixel_values.shape[-2:]) != pair(native):
            options["interpolate_pos_encoding"] = True
        embeds = _normalised(self.model.get_image_features(pixel_values, **options))
        if self.text_embeds is None:
            return embeds
        logits = F.linear(embeds, self.text_embeds.to(embeds))
        if hasattr(self.model, "logit_scale"):
            logits = logits * self.model.logit_scale.exp()
        else:
            logits = logits / self.model.temperature
        return logits + self.model.logit_bias if hasattr(self.model, "logit_bias") else logits


def _normalised(output: Any) -> torch.Tensor:
    embeds = output if isinstance(output, torch.Tensor) else output.pooler_output
    return embeds / embeds.norm(p=2, dim=-1, keepdim=True)


class Kept:
    """What was made last, each thing once, whatever the number of threads that ask; a copy starts empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` made for `key`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            else:
                self._kept[key] = make()
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[key]

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()
