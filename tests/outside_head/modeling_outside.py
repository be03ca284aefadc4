from torch import nn

from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.heads.losses import cross_entropy
from hf_explain.heads.modeling_explainer import ExplainerPreTrainedModel
from hf_explain.tensors.outputs import SaliencyOutput

from .masking import masked


class OutsideConfig(ExplainerConfig):
    model_type = "outside"
    additions = {"scale": "scale"}

    scale: float = 1.0


class OutsideForSaliency(ExplainerPreTrainedModel):
    config_class = OutsideConfig
    presets = {"double": {"scale": 2.0}}

    def __init__(self, config):
        super().__init__(config)
        self.mix = nn.Linear(config.feature_channels[0], 1)
        self.post_init()

    def saliency_logits(self, features, target):
        feature_map = features[self.config.feature_layers[0]].feature_map
        return self.config.scale * self.mix(feature_map.movedim(1, -1))[..., 0]

    def compute_loss(self, pixel_values, features, target):
        maps = self.saliency_logits(features, target)
        loss = cross_entropy(self.backbone(masked(pixel_values, maps.sigmoid())), target)
        return SaliencyOutput(loss=loss, saliency_logits=maps, loss_terms={"kept": loss.detach()})
