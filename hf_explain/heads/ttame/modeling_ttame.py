from __future__ import annotations

from typing import Any

from hf_explain.classifiers.frozen_classifier import FrozenClassifier
from hf_explain.heads.modeling_branches import BranchedExplainer
from hf_explain.heads.taps import last_stages
from hf_explain.heads.ttame.configuration_ttame import TTameConfig


class TTameForSaliency(BranchedExplainer):
    """
    T-TAME: several layers of the classifier, each refined by a residual 1×1 convolution, fused into one map per class.

    `from_classifier(..., preset="ranking")` is what ranked pixels best in this package's own measurements: the
    ranking term, a contrast of its own and six drawn fills (see [`MaskTrainedConfig`]) instead of the published area
    prior; on ViT and DeiT four taps spread over the depth instead of the inputs of the last three blocks; on ConvNeXt
    all stages and `context_size=3`; on these three products of the first tap with every other one (`tap_products`);
    and on every vision transformer whose attention keeps to one grid of patches `mask_grid="patch"`.

    Example:

    ```python
    >>> head = TTameForSaliency.from_classifier("microsoft/resnet-50", preset="ranking")
    >>> saliency = head(pixel_values, target="tench").saliency
    ```
    """

    config_class = TTameConfig
    config: TTameConfig

    @classmethod
    def default_feature_layers(cls, classifier: FrozenClassifier, config: Any) -> list[str]:
        return list(classifier.layer_names[-4:-1]) if classifier.is_transformer else last_stages(classifier)
