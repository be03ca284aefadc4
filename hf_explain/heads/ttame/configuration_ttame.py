from typing import ClassVar

from hf_explain.heads.modeling_mask_trained import MaskTrainedConfig
from hf_explain.tensors.scalars import check_choice, check_count


class TTameConfig(MaskTrainedConfig):
    """
    Configuration of a T-TAME (or, on a convolutional classifier, TAME) head.

    Source: Ntrougkas, Gkalelis, Mezaris, "TAME: Attention Mechanism Based Feature Fusion for Generating Explanation
    Maps of Convolutional Neural Networks", ISM 2022; "T-TAME: Trainable Attention Mechanism for Explaining
    Convolutional Networks and Vision Transformers", IEEE Access 2024.

    Args:
        feature_layers (`list[str]`, *optional*): Tapped layers, any number; the first one sets the map's size. By
            default the last three stages of ConvNeXt and ResNet, the inputs of the last three blocks of ViT and DeiT,
            and the last spatial layer of any other classifier.
        feature_kind (`str`, *optional*): What a tap of ViT or DeiT reads: `"hidden_state"`, the layer's output, or
            `"pre_norm"`, that output after the LayerNorm the next block applies before its attention, as released.
            `"pre_norm"` for ViT and DeiT when not given, `"hidden_state"` for everything else.
        token_product (`bool`, *optional*, defaults to `False`): Multiply every patch token channel-wise by the CLS
            token (the papers' variant "TTAME").
        context_size (`int`, *optional*, defaults to 1): 1 as published: a branch judges a position by its own features
            alone. Larger (ours), odd: a depthwise convolution of this size before the 1×1 one, so that a position is
            judged beside its neighbours on the tap's grid.
        skip (`bool`, *optional*, defaults to `True`): Add a branch's input to its output; off is an ablation.
        batch_norm (`bool`, *optional*, defaults to `True`): BatchNorm in every branch; off is an ablation. In training
            its statistics are those of the batch of all processes.
        branch_activation (`str`, *optional*, defaults to `"relu"`): `"relu"` or, as an ablation, `"sigmoid"`.
        max_map_size (`int`, *optional*, defaults to 56): Upper bound of the map's height and width.
        mask_space (`str`, *optional*): As in [`MaskTrainedConfig`]; when not given, `"normalized"` for ViT and DeiT
            and `"pixel"` for everything else, as released.
        kwargs: The loss, see [`MaskTrainedConfig`].
    """

    model_type = "ttame"
    additions: ClassVar[dict[str, str]] = {**MaskTrainedConfig.additions, "context_size": "context"}

    feature_kind: str | None = None
    token_product: bool = False
    context_size: int = 1
    skip: bool = True
    batch_norm: bool = True
    branch_activation: str = "relu"
    max_map_size: int = 56
    mask_space: str | None = None

    def validate_explainer(self) -> None:
        super().validate_explainer()
        check_choice(self.feature_kind, "feature_kind", ("hidden_state", "pre_norm"), optional=True)
        check_choice(self.branch_activation, "branch_activation", ("relu", "sigmoid"))
        if self.context_size < 1 or self.context_size % 2 == 0:
            raise ValueError(f"`context_size` must be odd and at least 1, got {self.context_size}.")
        check_count(self.max_map_size, "max_map_size")
        layers = list(self.feature_layers or ())
        repeated = [layer for layer in layers if layers.count(layer) > 1]
        if repeated:
            raise ValueError(f"`feature_layers` names {repeated[0]!r} more than once; name each layer once.")
