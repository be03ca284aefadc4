"""Every head and every training-free method, by name, with what is known of each: the only lists of them."""

from __future__ import annotations

import inspect
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads import lcam, ptame, scan, shapley, ttame
from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.heads.entry import Head
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.io.downloads import HUB_OPTIONS, read_config, whole_downloads
from hf_explain.io.transformers_names import CONFIG_MAPPING_NAMES, _BaseAutoModelClass, _LazyAutoMapping
from hf_explain.methods.attention import (
    attention_guided_cam,
    legrad,
    partial_lrp,
    raw_attention,
    rollout,
    transformer_attribution,
)
from hf_explain.methods.cam import ablationcam, eigencam, gradcam, gradcam_plus_plus, hirescam, layercam, xgradcam
from hf_explain.methods.controls import centre, oracle, random
from hf_explain.methods.fgvis import fgvis
from hf_explain.methods.gradients import input_x_gradient, integrated_gradients, smoothgrad
from hf_explain.methods.sampling import kernel_shap, lime, occlusion, rise, scorecam
from hf_explain.tensors.outputs import SaliencyOutput
from hf_explain.tensors.scalars import did_you_mean


# What an explainer is given by who calls it; its other parameters are options
_GIVEN = ("classifier", "pixel_values", "features", "target", "image_ids")

# model_type -> Head; `register_head` adds to it
HEADS: dict[str, Head] = {}


@dataclass(frozen=True)
class Method:
    """
    A training-free method, and what is known of it before it is called.

    Args:
        function (`Callable`): `(classifier, pixel_values, target=None, **options)` to [`SaliencyOutput`]. The first
            sentence of its docstring, its name in front, and the docstring's source are what lists say of it.
        passes (`str`, *optional*, defaults to `"1"`): Images through the classifier for one explanation by the
            method's own settings; `tail` is the part of the classifier behind the explained layer once more. Backward
            passes are not counted.
        slow (`bool`, *optional*, defaults to `False`): Whether it takes many passes per image.
        control (`bool`, *optional*, defaults to `False`): Whether it explains nothing and is there for comparison: one
            that is not slow is in every comparison.
        attention (`bool`, *optional*, defaults to `False`): Whether it reads a transformer's attention.
        propagation (`bool`, *optional*, defaults to `False`): Whether it knows the modules of ViT and DeiT alone.
        min_labels (`int`, *optional*, defaults to 1): Classes the classifier must have.
        signed (`bool`, *optional*, defaults to `False`): Whether its maps say what speaks against the class, too.
        linear (`bool`, *optional*, defaults to `False`): Whether the map of a difference of two classes' scores is the
            difference of their maps, before the ReLU.
        allows_bfloat16 (`bool`, *optional*, defaults to `False`): Whether it may run in bfloat16: it takes no
            gradients, and its maps were measured to be as good as those of float32.
    """

    function: Callable[..., SaliencyOutput]
    passes: str = "1"
    slow: bool = False
    control: bool = False
    attention: bool = False
    propagation: bool = False
    min_labels: int = 1
    signed: bool = False
    linear: bool = False
    allows_bfloat16: bool = False

    @property
    def title(self) -> str:
        """What its paper calls it."""
        return self._described[0]

    @property
    def summary(self) -> str:
        """How it works, in a sentence."""
        return self._described[1]

    @property
    def _described(self) -> tuple[str, str]:
        first = " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())
        title, _, summary = re.split(r"[;,] then ReLU|\.(?: |$)", first)[0].partition(": ")
        return title, summary

    @property
    def paper(self) -> str | None:
        """Who published it, where, and its address; `None` for a method of no paper."""
        source = re.search(r"^Source: (.+?\))", inspect.getdoc(self.function) or "", re.DOTALL | re.MULTILINE)
        return " ".join(source[1].split()) if source else None

    @property
    def architectures(self) -> str:
        """The classifiers it is defined for, as [`methods_for`] goes by."""
        if self.attention:
            return "plain vision transformers" + " like ViT and DeiT" * self.propagation
        return "every classifier" + f" of {self.min_labels} classes or more" * (self.min_labels > 1)


METHOD_ENTRIES = {
    "gradcam": Method(gradcam, "1 + tail", signed=True, linear=True),
    "gradcam++": Method(gradcam_plus_plus, "1 + tail"),
    "xgradcam": Method(xgradcam, "1 + tail", signed=True, linear=True),
    "layercam": Method(layercam, "1 + tail"),
    "hirescam": Method(hirescam, "1 + tail", signed=True, linear=True),
    "eigencam": Method(eigencam),
    "ablationcam": Method(ablationcam, "1 + a tail per channel", slow=True, signed=True),
    "scorecam": Method(scorecam, "1 + 1 per channel", slow=True),
    "rise": Method(rise, "1001", slow=True),
    "occlusion": Method(occlusion, "1 + 1 per window", slow=True, signed=True, linear=True),
    "raw_attention": Method(raw_attention, attention=True),
    "rollout": Method(rollout, attention=True),
    "transformer_attribution": Method(transformer_attribution, attention=True),
    "partial_lrp": Method(partial_lrp, attention=True, propagation=True),
    "attention_guided_cam": Method(attention_guided_cam, attention=True),
    "legrad": Method(legrad, "1 + a tail per block", attention=True),
    "input_x_gradient": Method(input_x_gradient, "2", signed=True, linear=True),
    "integrated_gradients": Method(integrated_gradients, "51", signed=True, linear=True),
    "smoothgrad": Method(smoothgrad, "51"),
    "fgvis": Method(fgvis, "up to 202", slow=True, min_labels=2),
    "lime": Method(lime, "1001", slow=True, signed=True),
    "kernel_shap": Method(kernel_shap, "1001", slow=True, signed=True),
    "random": Method(random, control=True),
    "centre": Method(centre, control=True),
    "oracle": Method(oracle, "4159", slow=True, control=True, min_labels=2),
}
METHODS = {name: method.function for name, method in METHOD_ENTRIES.items()}
# What explains a classifier where nobody names a method, with options that differ from the method's own: by the
# `model_type`; of a plain vision transformer; of any other. Chosen by AUC-D ("Without training" in
# model_cards/findings.md).
DEFAULT_METHODS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "convnext": ("hirescam", {"layer": "stage2"}),
}
DEFAULT_ATTENTION_METHOD = "transformer_attribution"
DEFAULT_METHOD = "gradcam"
# What every comparison shows beside the others
CONTROLS = tuple(name for name, method in METHOD_ENTRIES.items() if method.control and not method.slow)
# What needs many passes per image, unless the caller says otherwise
SLOW_METHODS = tuple(name for name, method in METHOD_ENTRIES.items() if method.slow)


class AutoModelForSaliency(_BaseAutoModelClass):
    """
    Loads any saved head as the class it was saved from.

    Example:

    ```python
    >>> head = AutoModelForSaliency.from_pretrained("me/lcam-resnet-50")
    ```
    """

    _model_mapping: Any = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        Load a head and its classifier.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id of a saved head.
            model_args, kwargs: As for [`ExplainerPreTrainedModel.from_pretrained`].

        Returns:
            The head in eval mode, with its classifier attached.

        Raises:
            OSError: If the Hub has no such head, it cannot be reached, or a download was damaged.
            ValueError: If the files are not those of a head, or the weights exist only as a pickle.
        """
        name = os.fspath(pretrained_model_name_or_path)
        # for None, Transformers stops and asks on the terminal
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        with whole_downloads(name, kwargs.get("revision"), "the head ", **options) as revision:
            if revision is not None:
                kwargs["revision"] = revision
            head = _registered_head(read_config(name, revision, **options))
            if head is None or "config" in kwargs:
                return super().from_pretrained(name, *model_args, **kwargs)
        # without the code beside it, which is there for those who have not this package
        kwargs.pop("code_revision", None)
        return head.model.from_pretrained(name, *model_args, **kwargs)


def _registered_head(values: Mapping[str, Any]) -> Head | None:
    """The entry of the head that a config.json describes."""
    name = values.get("model_type")
    return HEADS.get(name) if isinstance(name, str) else None


def load_model(
    name: str | os.PathLike[str], *, revision: str | None = None, **kwargs: Any
) -> ExplainerPreTrainedModel | FrozenClassifier:
    """
    A trained head with its classifier, or a plain classifier, whichever there is.

    Args:
        name (`str` or `os.PathLike`): Directory or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        kwargs: As for [`AutoModelForSaliency.from_pretrained`] and [`FrozenClassifier.from_pretrained`].

    Raises:
        OSError: If there is no such model, it cannot be downloaded, or a download was damaged.
        ValueError: If its files cannot be used, lack weights, or its own code would have to run.
    """
    name = os.fspath(name)
    options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
    with whole_downloads(name, revision, **options) as commit:
        values = read_config(name, commit, **options)
    code = values.get("auto_map")
    if _registered_head(values) or isinstance(code, dict) and AutoModelForSaliency.__name__ in code:
        return AutoModelForSaliency.from_pretrained(name, revision=commit, **kwargs)
    return FrozenClassifier.from_pretrained(name, revision=commit, **kwargs)


def register_head(head: Head) -> None:
    """
    Make a head known: to `AutoConfig`, `AutoModel` and `AutoModelForSaliency`, and so to pipelines and comparisons; to
    the commands; and to cards and pushing.

    A head of another package is registered by that package's `__init__`, not by the modules of its classes: those are
    what self-contained remote code copies.

    Args:
        head ([`Head`]): The head's entry.

    Raises:
        TypeError: If its model is not a head.
        ValueError: If its `model_type` is taken by another head or by Transformers.

    Example:

    ```python
    >>> register_head(Head(MyHeadForSaliency, name="My head", summary="...", paper="...", url="...", citation="..."))
    ```
    """
    if not (isinstance(head.model, type) and issubclass(head.model, ExplainerPreTrainedModel)):
        raise TypeError(f"`head.model` must be a subclass of ExplainerPreTrainedModel, got {head.model!r}.")
    name = head.model_type
    owners = {**CONFIG_MAPPING_NAMES, ExplainerConfig.model_type: ExplainerConfig.__name__}
    owner = owners.get(name)
    if name in HEADS and HEADS[name].model is not head.model:
        owner = HEADS[name].model.__name__
    if owner is not None:
        raise ValueError(f"`head` has model_type {name!r}, which is {owner}'s; give its configuration another one.")
    AutoConfig.register(name, head.config, exist_ok=True)
    AutoModel.register(head.config, head.model, exist_ok=True)
    AutoModelForSaliency.register(head.config, head.model, exist_ok=True)
    HEADS[name] = head


for _head in (lcam.HEAD, ttame.HEAD, ptame.HEAD, scan.HEAD, shapley.HEAD):
    register_head(_head)


def methods_for(classifier: FrozenClassifier) -> list[str]:
    """
    The training-free methods that are defined for a classifier.

    Args:
        classifier ([`FrozenClassifier`]): Attention methods need one with attention, FGVis two classes.

    Returns:
        `list[str]`: Keys of `METHODS`, in its order.
    """
    return [
        name
        for name, method in METHOD_ENTRIES.items()
        if (classifier.token_layout is not None or not method.attention)
        and (classifier.is_transformer or not method.propagation)
        and classifier.num_labels >= method.min_labels
    ]


def default_method(classifier: FrozenClassifier) -> tuple[str, dict[str, Any]]:
    """
    The training-free method for a classifier where nobody names one: what ranked pixels best on classifiers of its
    architecture.

    Args:
        classifier ([`FrozenClassifier`]): Outside the table of architectures it is run once to find out.

    Returns:
        `tuple[str, dict[str, Any]]`: A key of `METHODS`, and options that differ from the method's own.
    """
    known = DEFAULT_METHODS.get(getattr(classifier.config, "model_type", ""))
    if known is not None and known[1].get("layer") in (None, *classifier.layer_names):
        return known[0], dict(known[1])
    # kernels of their own do not show the attention
    shown = getattr(classifier.config, "_attn_implementation", None) in (None, "eager", "sdpa")
    return (DEFAULT_ATTENTION_METHOD if shown and classifier.token_layout is not None else DEFAULT_METHOD), {}


def resolve_method(name: str, argument: str = "method"):
    """
    The training-free method of a name.

    Args:
        name (`str`): A key of `METHODS`.
        argument (`str`, *optional*, defaults to `"method"`): What it was given as, for the error.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in METHODS:
        known = f"the methods are {', '.join(METHODS)}.{did_you_mean(name, METHODS)}"
        raise ValueError(f"`{argument}` {name!r} does not exist; {known}")
    return METHODS[name]


def check_method_options(name: str, options: Iterable[str], function: Callable[..., Any] | None = None) -> None:
    """
    Refuse what is no option of a method.

    Args:
        name (`str`): A key of `METHODS`, or with `function` what the message calls that.
        options (`Iterable[str]`): Names of options.
        function (`Callable`, *optional*): What has the options instead, such as a head's `forward_head`.

    Raises:
        ValueError: If the method has no such option; the message lists those that it has.
    """
    known = [one for one in inspect.signature(function or METHODS[name]).parameters if one not in _GIVEN]
    for option in options:
        if option not in known:
            raise ValueError(f"{name!r} has no option {option!r}; its options are {', '.join(known) or 'none'}.")


def method_allows_bfloat16(name: str) -> bool:
    """Whether a method of `METHODS` may run in bfloat16; one that nobody has measured may not."""
    return name in METHOD_ENTRIES and METHOD_ENTRIES[name].allows_bfloat16


def resolve_head(name: str) -> type[ExplainerPreTrainedModel]:
    """
    The model class of a head's name.

    Args:
        name (`str`): A key of `HEADS`.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in HEADS:
        known = f"the heads are {', '.join(HEADS)}.{did_you_mean(name, HEADS)}"
        raise ValueError(f"`head` {name!r} does not exist; {known}")
    return HEADS[name].model
