from hf_explain.heads.configuration_explainer import ExplainerConfig
from hf_explain.tensors.grids import check_grid
from hf_explain.tensors.scalars import check_choice, check_count


# Fills of one colour: an image without any cell is then the same for all
SHAPLEY_FILLS = ("mean", "black", "white")


class ShapleyConfig(ExplainerConfig):
    """
    Configuration of a head that gives Shapley values in one pass.

    Source: Jethani, Sudarshan, Covert, Lee, Ranganath, "FastSHAP: Real-Time Shapley Value Estimation", ICLR 2022;
    Covert, Kim, Lee, "Learning to Estimate Shapley Values with Vision Transformers", ICLR 2023. Their explainer is a
    network of its own; ours reads the frozen classifier's layers. They train a second classifier that is used to
    removed patches; ours is explained as it is, so what removal means is a setting, `fill`.

    Args:
        feature_layers (`list[str]`, *optional*): Tapped layers, any number; the first one sets the cells where `grid`
            is not given. By default four blocks spread over the depth of ViT and DeiT, the last three stages of
            ConvNeXt and ResNet, coarsest first, and the last spatial layer of any other classifier.
        grid (`tuple[int, int]`, *optional*): `(height, width)` in cells, which divide the image's sides. The positions
            of the first tapped layer when not given: the patches of a vision transformer.
        fill (`str`, *optional*, defaults to `"mean"`): What a removed cell becomes, in training and in what the values
            mean: `"mean"`, the image processor's mean colour, as published, `"black"` or `"white"`.
        num_coalitions (`int`, *optional*, defaults to 32): How many sets of cells the classifier is asked about, per
            image and step, an even number: each set and the rest of the image go together.
        hidden_size (`int`, *optional*, defaults to 128): Channels of each branch.
    """

    model_type = "shapley"

    grid: tuple[int, int] | list[int] | None = None
    fill: str = "mean"
    num_coalitions: int = 32
    hidden_size: int = 128

    def validate_explainer(self) -> None:
        super().validate_explainer()
        if self.grid is not None:
            if isinstance(self.grid, str):
                raise ValueError(f"`grid` must be (height, width) in cells, two whole numbers, got {self.grid!r}.")
            check_grid(self.grid)
            if tuple(self.grid) == (1, 1):
                raise ValueError("`grid` (1, 1) makes the whole image one cell; it needs at least two.")
        check_choice(self.fill, "fill", SHAPLEY_FILLS)
        check_count(self.num_coalitions, "num_coalitions", minimum=2)
        if self.num_coalitions % 2:
            raise ValueError(f"`num_coalitions` must be even, sets and their rests, got {self.num_coalitions}.")
        check_count(self.hidden_size, "hidden_size")
