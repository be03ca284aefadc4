from hf_explain.heads.modeling_mask_trained import MaskTrainedConfig


class LCamConfig(MaskTrainedConfig):
    """
    Configuration of an L-CAM head.

    Source: Gkartzonika, Gkalelis, Mezaris, "Learning Visual Explanations for DCNN-Based Image Classifiers Using an
    Attention Mechanism", ECCV Workshops 2022.

    Args:
        variant (`str`, *optional*, defaults to `"img"`): What the map masks in training: `"img"` the image (L-CAM-Img)
            or `"fm"` the tapped features (L-CAM-Fm). The head itself is the same.
        feature_layers (`list[str]`, *optional*): The one tapped layer. By default the last one whose positions still
            reach the logits: the last stage of ConvNeXt and ResNet, the layer before the last block of ViT and DeiT.
        kwargs: The loss, see [`MaskTrainedConfig`].
    """

    model_type = "lcam"

    variant: str = "img"

    @property
    def seen_fills(self) -> list[str]:
        """As for every head; `"fm"` masks no pixels."""
        return super().seen_fills if self.variant == "img" else []

    def validate_explainer(self) -> None:
        super().validate_explainer()
        if self.variant not in ("img", "fm"):
            raise ValueError(f"`variant` must be 'img' (L-CAM-Img) or 'fm' (L-CAM-Fm), got {self.variant!r}.")
        if self.feature_layers is not None and len(self.feature_layers) != 1:
            raise ValueError(f"L-CAM taps one layer; `feature_layers` has {len(self.feature_layers)}.")
        if self.variant == "fm" and self.mask_fills is not None:
            raise ValueError("`mask_fills` fills pixels, but variant='fm' masks features; use variant='img'.")
        if self.variant == "fm" and self.mask_grid != "pixel":
            raise ValueError(
                f"`mask_grid` {self.mask_grid!r} is a grid of pixels, but variant='fm' masks features; use "
                "variant='img'."
            )
