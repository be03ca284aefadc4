"""Every head and every training-free method, by name: the only lists of them."""

from __future__ import annotations

import os
from collections import OrderedDict

from transformers import AutoConfig, AutoModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from hf_explain.heads.lcam import LCamConfig, LCamForSaliency
from hf_explain.heads.scan import ScanConfig, ScanForSaliency
from hf_explain.heads.ttame import TTameConfig, TTameForSaliency
from hf_explain.io.downloads import HUB_OPTIONS, hub_errors, pin_revision, whole_downloads
from hf_explain.methods.attention import (
    attention_guided_cam,
    partial_lrp,
    raw_attention,
    rollout,
    transformer_attribution,
)
from hf_explain.methods.cam import ablationcam, eigencam, gradcam, gradcam_plus_plus, hirescam, layercam, xgradcam
from hf_explain.methods.controls import centre, random
from hf_explain.methods.fgvis import fgvis
from hf_explain.methods.gradients import input_x_gradient, integrated_gradients, smoothgrad
from hf_explain.methods.sampling import kernel_shap, lime, occlusion, rise, scorecam


# model_type -> (configuration, model)
EXPLAINERS = {
    "lcam": (LCamConfig, LCamForSaliency),
    "ttame": (TTameConfig, TTameForSaliency),
    "scan": (ScanConfig, ScanForSaliency),
}

# name -> function(classifier, pixel_values, target=None, **options) -> SaliencyOutput
METHODS = {
    "gradcam": gradcam,
    "gradcam++": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "layercam": layercam,
    "hirescam": hirescam,
    "eigencam": eigencam,
    "ablationcam": ablationcam,
    "scorecam": scorecam,
    "rise": rise,
    "occlusion": occlusion,
    "raw_attention": raw_attention,
    "rollout": rollout,
    "transformer_attribution": transformer_attribution,
    "partial_lrp": partial_lrp,
    "attention_guided_cam": attention_guided_cam,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "fgvis": fgvis,
    "lime": lime,
    "kernel_shap": kernel_shap,
    "random": random,
    "centre": centre,
}

DEFAULT_METHOD = "gradcam"
CONTROLS = ("random", "centre")
# What needs many passes per image, unless the caller says otherwise
SLOW_METHODS = ("ablationcam", "scorecam", "rise", "occlusion", "lime", "kernel_shap", "fgvis")


class AutoModelForSaliency(_BaseAutoModelClass):
    """
    Loads any saved head as the class it was saved from.

    Example:

    ```python
    >>> head = AutoModelForSaliency.from_pretrained("me/lcam-resnet-50")
    ```
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

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
            ValueError: If the files are no head's, or the weights are there as a pickle only.
        """
        name = os.fspath(pretrained_model_name_or_path)
        kwargs.setdefault("trust_remote_code", False)  # unset, Transformers stops and asks on the terminal
        options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        with hub_errors(name, f"loading the head {name!r}"):
            revision = pin_revision(name, kwargs.get("revision"), **options)
        if revision is not None:
            kwargs["revision"] = revision
        with whole_downloads(name, revision, **options):
            return super().from_pretrained(name, *model_args, **kwargs)


for _model_type, (_config_class, _model_class) in EXPLAINERS.items():
    AutoConfig.register(_model_type, _config_class, exist_ok=True)
    AutoModel.register(_config_class, _model_class, exist_ok=True)
    AutoModelForSaliency.register(_config_class, _model_class, exist_ok=True)


def resolve_method(name: str):
    """
    The training-free method of a name.

    Args:
        name (`str`): A key of `METHODS`.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in METHODS:
        raise ValueError(f"`method` {name!r} does not exist; the methods are {', '.join(METHODS)}.")
    return METHODS[name]


def resolve_head(name: str):
    """
    The model class of a head's name.

    Args:
        name (`str`): A key of `EXPLAINERS`.

    Raises:
        ValueError: If there is none; the message lists the names.
    """
    if name not in EXPLAINERS:
        raise ValueError(f"`head` {name!r} does not exist; the heads are {', '.join(EXPLAINERS)}.")
    return EXPLAINERS[name][1]
