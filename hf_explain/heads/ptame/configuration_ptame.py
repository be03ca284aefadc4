from typing import ClassVar

from transformers import AutoConfig, PreTrainedConfig

from hf_explain.heads.modeling_branches import BranchedConfig
from hf_explain.tensors.scalars import check_number


class PTameConfig(BranchedConfig):
    """
    Configuration of a P-TAME head: T-TAME's branches and fuser over the layers of a second, *auxiliary* classifier.

    Source: Ntrougkas, Mezaris, Patras, "P-TAME: Explain Any Image Classifier With Trained Perturbations", IEEE Open
    Journal of Signal Processing 2025.

    Args:
        auxiliary (`str`): Directory or Hub id of the auxiliary classifier; `from_classifier` also takes an instance.
            In a file a directory is written as `backbone` is.
        auxiliary_revision (`str`, *optional*): Its commit on the Hub, or a branch or tag.
        auxiliary_config (`dict` or `PreTrainedConfig`, *optional*): Its own configuration; filled in.
        auxiliary_fingerprint (`dict`, *optional*): Checksums of its weights, by dtype; filled in.
        auxiliary_mean (`list[float]`, *optional*): Mean its pixels are normalised with, one per channel; filled in.
        auxiliary_std (`list[float]`, *optional*): Standard deviation, likewise.
        input_scale (`float`, *optional*): Sides of the pictures that the auxiliary classifier sees, divided by those
            of the explained one's. When not given, by what the two image processors make: 224 / 384 for a ResNet-18
            that explains a ViT of 384 pixels, 1 where one of the classifiers has none.
        feature_layers (`list[str]`, *optional*): Tapped layers of the auxiliary classifier; the first one sets the
            map's size. By default the last layer of each resolution, from a quarter of the picture's sides on (the
            four stages of a ResNet, as published), and four blocks spread over the depth of ViT and DeiT.
        feature_kind, token_product, context_size, tap_products (*optional*): As in [`BranchedConfig`], of the
            auxiliary classifier.
        mask_space (`str`, *optional*): As in [`BranchedConfig`], by the explained classifier.
        kwargs: As for [`BranchedConfig`]. The weights of the loss, where neither they nor a preset is given, are those
            the paper found by search: `ce_weight=0.161, area_weight=0.839, variation_weight=0` for ResNet and
            `ce_weight=0.131, area_weight=0.839, variation_weight=0, area_power=0.5` for ViT and DeiT; for every other
            explained classifier they are TAME's.
    """

    model_type = "ptame"
    sub_configs = {"backbone_config": AutoConfig, "auxiliary_config": AutoConfig}
    classifiers: ClassVar[tuple[str, ...]] = ("backbone", "auxiliary")
    tapped: ClassVar[str] = "auxiliary"

    auxiliary: str | None = None
    auxiliary_revision: str | None = None
    auxiliary_config: dict | PreTrainedConfig | None = None
    auxiliary_fingerprint: dict | None = None
    auxiliary_mean: list[float] | tuple[float, ...] | None = None
    auxiliary_std: list[float] | tuple[float, ...] | None = None
    input_scale: float = 1.0

    def validate_explainer(self) -> None:
        super().validate_explainer()
        check_number(self.input_scale, "input_scale", "(0, inf)")
