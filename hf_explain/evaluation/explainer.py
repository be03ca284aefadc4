"""Whatever explains images, a trained head or a training-free method, behind one call, and its cost in passes."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import Pipeline, pipeline

from hf_explain.classifiers.fingerprint import fingerprint
from hf_explain.classifiers.frozen_classifier import ClassifierFeatures, FrozenClassifier
from hf_explain.classifiers.passes import Stopwatch, watch_passes
from hf_explain.evaluation.forms import Form, resolve_form
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.io.downloads import whole_downloads
from hf_explain.io.paths import public_name
from hf_explain.registry import check_method_options, default_method, method_allows_bfloat16, resolve_method
from hf_explain.tensors.outputs import SaliencyOutput


@dataclass
class Explainer:
    """
    A trained head or a training-free method, with the classifier it explains.

    Args:
        classifier ([`FrozenClassifier`]): What is explained.
        image_processor: Makes `pixel_values` of images.
        identity (`dict`): Names, options and checksums that identify it, as JSON values.
        head ([`ExplainerPreTrainedModel`], *optional*): The head, if it is one.
        method (`Callable`, *optional*): The training-free method, if it is one.
        options (`dict`, *optional*): Options of the method.
        allows_bfloat16 (`bool`, *optional*, defaults to `False`): Whether its passes may run in bfloat16.
        original ([`Explainer`], *optional*): Whose maps these are, in another `form`.
        form (`Callable`, *optional*): See [`~hf_explain.evaluation.forms.resolve_form`].
    """

    classifier: FrozenClassifier
    image_processor: Any
    identity: dict[str, Any]
    head: ExplainerPreTrainedModel | None = None
    method: Callable[..., SaliencyOutput] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    allows_bfloat16: bool = False
    original: Explainer | None = None
    form: Form | None = None

    def explain(
        self, pixel_values: torch.Tensor, target: torch.Tensor | None, image_ids: torch.Tensor
    ) -> SaliencyOutput:
        """
        Maps of one batch.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Images.
            target (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Classes explained; the top-1 where not
                given.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`): Their indices, for methods that draw random
                numbers.

        Returns:
            [`SaliencyOutput`].
        """
        if self.original is not None:
            return self.in_form(self.original.explain(pixel_values, target, image_ids), pixel_values)
        if self.method is not None:
            ids = {"image_ids": image_ids} if "image_ids" in inspect.signature(self.method).parameters else {}
            return self.method(self.classifier, pixel_values, target, **ids, **self.options)
        assert self.head is not None  # it has one of the two
        with evaluating(self.head), torch.no_grad():
            return self.head(pixel_values, target)

    def with_form(self, text: str) -> Explainer:
        """
        An explainer with these maps in another form.

        Args:
            text (`str`): As for [`~hf_explain.evaluation.forms.resolve_form`].

        Raises:
            ValueError: If there is no such form.
        """
        return replace(self, identity={**self.identity, "form": text}, original=self, form=resolve_form(text))

    def in_form(self, output: SaliencyOutput, pixel_values: torch.Tensor) -> SaliencyOutput:
        """What the original explainer found for `pixel_values`, in this one's form, if it has one."""
        if self.form is None:
            return output
        height, width = pixel_values.shape[-2:]
        saliency = self.form(output.saliency.float(), (height, width))
        return SaliencyOutput(saliency=saliency, logits=output.logits, target=output.target)

    def copy(self) -> Explainer:
        """The same explainer on a copy of its classifier, weights and all."""
        if self.original is not None:
            original = self.original.copy()
            return replace(original, identity=self.identity, original=original, form=self.form)
        head, classifier = copy.deepcopy((self.head, self.classifier))  # together: the one is a part of the other
        return replace(self, classifier=classifier, head=head)


def resolve_explainer(
    model_or_pipeline,
    method: str | None = None,
    method_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str | int | torch.device | None = None,
    classifier_fingerprint: str | None = None,
) -> Explainer:
    """
    Make an [`Explainer`] of whatever explains images.

    Args:
        model_or_pipeline (`str`, `os.PathLike`, [`SaliencyPipeline`], [`ExplainerPreTrainedModel`],
            [`FrozenClassifier`] or `torch.nn.Module`): Directory or Hub id of a head or of a classifier, or the object
            itself.
        method (`str`, *optional*): A training-free method, instead of the head or of the default method.
        method_options (`dict`, *optional*): Options of the method.
        seed (`int`, *optional*, defaults to 0): Of a random method whose options have no seed of their own.
        device (*optional*): Device of a model that is given by name.
        classifier_fingerprint (`str`, *optional*): The classifier's, where it is known already.

    Returns:
        [`Explainer`].

    Raises:
        TypeError: If `model_or_pipeline` is something else.
        ValueError: If there is no such method or option, or no image processor.
    """
    head, processor, options = None, None, dict(method_options or {})
    if isinstance(model_or_pipeline, (str, os.PathLike)):
        name = os.fspath(model_or_pipeline)
        with whole_downloads(name) as commit:
            model_or_pipeline = pipeline(  # type: ignore[call-overload]  # for Transformers' own tasks
                "saliency", model=name, revision=commit, device=device, trust_remote_code=False
            )
    if isinstance(model_or_pipeline, Pipeline):
        # told by its attributes: the class is defined in a module above this one
        classifier = getattr(model_or_pipeline, "classifier", None)
        if not isinstance(classifier, FrozenClassifier):
            raise TypeError(
                f"`model_or_pipeline` is a {type(model_or_pipeline).__name__}; give one of pipeline('saliency', ...)."
            )
        head, processor = getattr(model_or_pipeline, "head", None), model_or_pipeline.image_processor
        preset = {
            name: value for name, value in model_or_pipeline._forward_params.items() if name not in ("top_k", "dtype")
        }
        own_method = preset.pop("method", None)
        if method is None or method == own_method:
            method, options = own_method, {**preset, **options}
    elif isinstance(model_or_pipeline, ExplainerPreTrainedModel):
        head, classifier = model_or_pipeline, model_or_pipeline.backbone
        if classifier is None:
            raise ValueError("`model_or_pipeline` has no classifier; load it with from_pretrained or call attach.")
    elif isinstance(model_or_pipeline, FrozenClassifier):
        classifier = model_or_pipeline
    elif isinstance(model_or_pipeline, nn.Module):
        classifier = FrozenClassifier(model_or_pipeline)
    else:
        raise TypeError(
            "`model_or_pipeline` must be a saliency pipeline, a head, a classifier or the name of one, "
            f"got {type(model_or_pipeline).__name__}."
        )
    classifier.check_texts()
    processor = processor or classifier.image_processor
    if processor is None:
        named = classifier.name_or_path or classifier.model_class
        raise ValueError(
            f"`model_or_pipeline` {named!r} has no image processor; "
            "give a FrozenClassifier(model, image_processor=...) or a directory with preprocessor_config.json."
        )
    identity: dict[str, Any] = {
        "classifier": public_name(classifier.name_or_path) or classifier.model_class,
        "classifier_revision": classifier.revision,
        "classifier_fingerprint": classifier_fingerprint or fingerprint(classifier.model),
    }
    if classifier.texts is not None:
        identity["classifier_texts"] = dict(zip(("candidate_labels", "hypothesis_template"), classifier.texts))
    if method is None and head is not None:
        if options:
            raise ValueError(f"`method_options` {sorted(options)} need a `method`; a trained head has none here.")
        identity |= {
            "explainer": head.config.model_type,
            "head": public_name(getattr(head.config, "_name_or_path", "")),
            "head_fingerprint": fingerprint(head),
        }
        return Explainer(classifier, processor, identity, head, allows_bfloat16=head.allows_bfloat16)
    if method is None:
        method, own = default_method(classifier)
        options = {**own, **options}
    function = resolve_method(method)
    check_method_options(method, options)
    if "seed" in inspect.signature(function).parameters:
        options.setdefault("seed", seed)
    identity |= {"explainer": method, "method_options": options}
    allowed = method_allows_bfloat16(method)
    return Explainer(classifier, processor, identity, method=function, options=options, allows_bfloat16=allowed)


@contextlib.contextmanager
def evaluating(head: ExplainerPreTrainedModel) -> Iterator[None]:
    """The head in eval mode, and as it was when the last thread that asked for it is done."""
    with _MODES_LOCK:
        mode = _MODES.setdefault(id(head), _Mode(head.training))
        mode.users += 1
        head.eval()
    try:
        yield
    finally:
        with _MODES_LOCK:
            mode.users -= 1
            if mode.users == 0:
                del _MODES[id(head)]
                head.train(mode.training)


@dataclass
class _Mode:
    training: bool
    users: int = 0


_MODES: dict[int, _Mode] = {}  # of heads in use, by id
_MODES_LOCK = threading.Lock()


class PassCounter:
    """
    Counts the images that the calling thread sends through a classifier while it is open.

    Attributes:
        full (`int`): Images that entered as pixels, however far they went.
        tail (`int`): Images that entered as features of a layer.
        shared (list of [`Stopwatch`]): Of the passes counted that had been run before, for somebody else.
    """

    def __init__(self, classifier: FrozenClassifier):
        self.classifier, self.full, self.tail = classifier, 0, 0
        self.shared: list[Stopwatch] = []
        self._watch = contextlib.ExitStack()

    def __enter__(self) -> PassCounter:
        self._watch.enter_context(watch_passes(self._count))
        return self

    def __exit__(self, *error) -> None:
        self._watch.close()

    def _count(self, classifier: FrozenClassifier, name: str, inputs: Any, known: Stopwatch | None) -> None:
        if classifier is not self.classifier:
            return
        if known is not None:
            self.shared.append(known)
        if name != "forward_from_features":
            self.full += len(inputs)
        else:
            self.tail += len(inputs.logits if isinstance(inputs, ClassifierFeatures) else inputs.feature_map)
