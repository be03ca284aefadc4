from typing import ClassVar

from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.tensors.scalars import check_choice, check_count, check_number


class ScanConfig(ExplainerConfig):
    """
    Configuration of a SCAN head: a decoder that reconstructs the image from the features the class depends on, and
    says where it is confident.

    Source: SCAN (2026). Where the paper and its released code differ, a field chooses.

    Args:
        feature_layers (`list[str]`, *optional*): The one tapped layer. By default the last stage of ConvNeXt and
            ResNet, and the block in the middle of a plain vision transformer such as ViT, DeiT, DINOv2 or CLIP (the
            6th of 12); with `mask_by="contribution"` the second stage of ConvNeXt and a transformer's first block.
        alpha (`float`, *optional*, defaults to 4.0): How much more an error costs where the decoder is confident; the
            mean confidence wanted is `1 / (1 + alpha)`.
        lam (`float`, *optional*, defaults to 0.1): λ of the confidence loss.
        gradient_mask (`bool`, *optional*, defaults to `True`): Keep only the features whose gradient of the class
            score is in the top percentiles; off is an ablation, whose map is of no class in particular.
        mask_by (`str`, *optional*, defaults to `"gradient"`): What the percentile is taken of: `"gradient"`, of every
            single feature's gradient, as published; or `"contribution"` (ours), of every position's gradient times
            feature, summed over the channels, so that whole positions are kept. Single gradients hardly say where the
            evidence is, their sums do. It wants many kept, `percentile=0` to 50 and a `percentile_range` about them.
            Before a normalisation these sums cancel: they are taken behind it where it is known (ViT, DeiT, ConvNeXt),
            and a head of another classifier's layer where they cancel is refused.
        percentile (`float`, *optional*, defaults to 95.0): P at inference, in [0, 100]: features below this percentile
            of the image's positive gradients are set to 0.
        percentile_range (`list[float]`, *optional*, defaults to `(70.0, 100.0)`): P is drawn uniformly from it for
            every image in training, from PyTorch's global CPU generator.
        blur (`str`, *optional*, defaults to `"paper"`): The Gaussian blur of the image to reconstruct, for an image
            `r` times the grid's size: `"paper"` σ = r / 2, `"released"` σ = r, or `"none"`, an ablation.
        activation (`str`, *optional*, defaults to `"sine"`): What makes the confidence of the decoder's channel:
            `"sine"` or, as an ablation, `"sigmoid"`.
        confidence_channel (`str`, *optional*, defaults to `"last"`): Which of the decoder's channels it is: `"last"`
            (paper) or `"first"` (released code).
        decoder_type (`str`, *optional*): `"cnn"` or `"transformer"`; by default what the classifier is, and `"cnn"`
            for windows of attention as in Swin.
        decoder_width (`int`, *optional*): Channels at full resolution, which the widths of all levels follow: 64 for
            `"cnn"` (64, 128, 192, 256, 384, 512, ... towards the grid) and 32 for `"transformer"` (doubled per level).
        decoder_widths (`list[int]`, *optional*): Channels of every level, from the grid to full resolution: `levels`
            numbers for `"transformer"`, where each level starts with an upsampling, and `levels + 1` for `"cnn"`.
        levels (`int`, *optional*): Doublings by the decoder; by default all between the grid and the image, as in the
            paper. Where they do not land on the image's size, because its ratio to the grid is not a power of two or
            because `levels` asks for fewer, a last bilinear resize does. Fewer cost far less (each level quadruples
            the positions) and lose little: the blurred image they reconstruct has no detail finer than half a cell of
            the grid.
        num_residual_modules (`int`, *optional*, defaults to 2): Residual modules per level.
        num_attention_blocks (`int`, *optional*, defaults to 4): Blocks of the transformer decoder.
        num_attention_heads (`int`, *optional*, defaults to 12): Heads of each block; the largest number up to this
            that divides the classifier's hidden size is used.
    """

    model_type = "scan"
    additions: ClassVar[dict[str, str]] = {"mask_by": "mask by contribution"}
    renamed: ClassVar[dict[str, str]] = {"decoder": "decoder_type"}  # what Transformers calls a configuration inside

    alpha: float = 4.0
    lam: float = 0.1
    gradient_mask: bool = True
    mask_by: str = "gradient"
    percentile: float = 95.0
    percentile_range: list[float] | tuple[float, ...] = (70.0, 100.0)
    blur: str = "paper"
    activation: str = "sine"
    confidence_channel: str = "last"
    decoder_type: str | None = None
    decoder_width: int | None = None
    decoder_widths: list[int] | tuple[int, ...] | None = None
    levels: int | None = None
    num_residual_modules: int = 2
    num_attention_blocks: int = 4
    num_attention_heads: int = 12

    def validate_explainer(self) -> None:
        super().validate_explainer()
        check_choice(self.mask_by, "mask_by", ("gradient", "contribution"))
        check_choice(self.blur, "blur", ("paper", "released", "none"))
        check_choice(self.activation, "activation", ("sine", "sigmoid"))
        check_choice(self.confidence_channel, "confidence_channel", ("last", "first"))
        check_choice(self.decoder_type, "decoder_type", ("cnn", "transformer"), optional=True)
        check_number(self.alpha, "alpha", "(0, inf]")
        check_number(self.lam, "lam", "[0, inf]")
        check_number(self.percentile, "percentile", "[0, 100]")
        span = tuple(self.percentile_range)
        if len(span) != 2 or not 0 <= span[0] <= span[1] <= 100:
            raise ValueError(f"`percentile_range` must be (low, high) with 0 <= low <= high <= 100, got {span}.")
        check_count(self.decoder_width, "decoder_width", optional=True)
        check_count(self.num_residual_modules, "num_residual_modules", minimum=0)
        check_count(self.num_attention_blocks, "num_attention_blocks", minimum=0)
        check_count(self.num_attention_heads, "num_attention_heads")
        if self.feature_layers is not None and len(self.feature_layers) != 1:
            raise ValueError(f"SCAN taps one layer; `feature_layers` has {len(self.feature_layers)}.")
        if self.decoder_widths is not None:
            if min(self.decoder_widths, default=1) < 1:
                raise ValueError(f"`decoder_widths` must be at least 1, got {list(self.decoder_widths)}.")
            if self.levels is not None and self.decoder_type is not None:
                needed = self.levels + (self.decoder_type == "cnn")
                if len(self.decoder_widths) != needed:
                    raise ValueError(
                        f"`decoder_widths` has {len(self.decoder_widths)} numbers; the {self.decoder_type!r} decoder "
                        f"needs {needed} to get from the grid of {list(self.feature_layers or ())} to the image in "
                        f"{self.levels} doublings."
                    )
