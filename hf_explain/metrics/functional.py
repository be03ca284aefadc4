"""Metrics as functions: tensors in, numbers out, on the device of the images, one number per image always kept.

`predict` is any callable from `pixel_values` to logits; a [`FrozenClassifier`] is one. The batch it is given is
overwritten by the next one, so it must not keep it; nothing of the caller's is modified. Every result carries its
`protocol`: a plain dictionary of what was measured and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_explain.metrics.composites import Composites, GridPointing, grid_composites, grid_pointing
from hf_explain.metrics.engine import (
    EVERY_FILL,
    MAX_BATCH,
    Filler,
    Predict,
    Removal,
    base_logits,
    batch_limit,
    fill_name,
    read_score,
    reference_classes,
    removal_scores,
    run_jobs,
    saliency_ranks,
    shared_fill,
    target_name,
)
from hf_explain.metrics.imputation import Road, linear_imputation, road
from hf_explain.metrics.localization import Pointing, boxes_to_masks, pointing
from hf_explain.metrics.photographs import Photographs
from hf_explain.metrics.presets import PRESETS, step_fractions
from hf_explain.metrics.single_removals import SingleDeletion, single_deletion
from hf_explain.metrics.statistics import (
    PairedDifference,
    WinRate,
    bootstrap_interval,
    paired_difference,
    rank_agreement,
    win_rate,
)
from hf_explain.tensors.checks import check_pixel_values
from hf_explain.tensors.grids import Grid, grid_cells, grid_protocol, spread_cells
from hf_explain.tensors.perturbation import (
    full_size_saliency,
    keep_top,
    mask_space_fill,
    pixel_counts,
    tied_ranks,
)
from hf_explain.tensors.scalars import check_choice, check_numbers, check_percent
from hf_explain.tensors.sharing import sharing


__all__ = [
    "ORDERS",
    "PRESETS",
    "AucD",
    "AverageDrop",
    "Composites",
    "GridPointing",
    "InsertionDeletion",
    "PairedDifference",
    "PerturbationCurves",
    "Photographs",
    "Pointing",
    "Road",
    "SingleDeletion",
    "WinRate",
    "auc",
    "auc_d",
    "auc_d_fills",
    "average_drop",
    "bootstrap_interval",
    "boxes_to_masks",
    "grid_composites",
    "grid_pointing",
    "insertion_deletion",
    "linear_imputation",
    "paired_difference",
    "perturbation_curves",
    "pointing",
    "rank_agreement",
    "road",
    "single_deletion",
    "step_fractions",
    "win_rate",
]

ORDERS = ("positive", "negative")
SCALES = ("map", "rank")
_AUC_D, _FILLS, _DROP, _INSERTION = (
    PRESETS[name]["default"] for name in ("auc_d", "auc_d_fills", "average_drop", "insertion_deletion")
)


# ---------------------------------------------------------------------------------------------------------------- area


def auc(curve: torch.Tensor, fractions: Sequence[float] | None = None, normalize: bool = True) -> torch.Tensor:
    """
    Area under curves by the trapezoid rule.

    With equal steps and `normalize` this is RISE's `(Σ − first/2 − last/2) / (n − 1)`.

    Formula, with `c_s` the scores and `f_s` the fractions; without `normalize` the denominator is 1:

        area = Σ_s (f_s+1 − f_s) (c_s + c_s+1) / 2 / (f_last − f_first)

    Args:
        curve (`torch.Tensor` of shape `(..., num_steps)`): Scores.
        fractions (sequence of `float` of length `num_steps`, *optional*): Where they lie, increasing; equal steps over
            [0, 1] by default.
        normalize (`bool`, *optional*, defaults to `True`): Divide by the width of the range, so that a constant curve
            of 1 has area 1 (`False`: as Chefer et al., whose range of 0.9 gives 0.9).

    Returns:
        `torch.DoubleTensor` of shape `(...)`.

    Raises:
        ValueError: If there are fewer than two points or `fractions` does not fit them.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import auc

    >>> auc(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000, dtype=torch.float64)
    >>> auc(torch.tensor([1.0, 1.0]), fractions=(0.0, 0.9), normalize=False)
    tensor(0.9000, dtype=torch.float64)
    ```
    """
    num_steps = curve.shape[-1] if curve.ndim else 0
    if num_steps < 2:
        raise ValueError(f"`curve` needs at least 2 points for an area, got {num_steps}.")
    if fractions is None:
        fractions = step_fractions(num_steps - 1)
    points = torch.as_tensor(tuple(fractions), dtype=torch.float64)
    if len(points) != num_steps or not bool((points.diff() > 0).all()):
        raise ValueError(f"`fractions` must be {num_steps} increasing numbers, one per point of the curve.")
    area = torch.trapezoid(curve.double(), points.to(curve.device, non_blocking=True), dim=-1)
    return area / float(points[-1] - points[0]) if normalize else area


# -------------------------------------------------------------------------------------------------------------- curves


@dataclass
class PerturbationCurves:
    """
    Scores while pixels are removed.

    Args:
        fractions (`tuple[float, ...]`): Part of the pixels removed at each step.
        positive (`torch.FloatTensor` of shape `(batch_size, num_steps)`, *optional*): Most salient removed first.
        negative (`torch.FloatTensor` of shape `(batch_size, num_steps)`, *optional*): Least salient removed first.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class each score looks at.
        protocol (`dict`): How it was measured.
    """

    fractions: tuple[float, ...]
    positive: torch.Tensor | None
    negative: torch.Tensor | None
    target: torch.Tensor
    protocol: dict[str, Any]


def perturbation_curves(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    target: torch.Tensor | Sequence[int] | int | None = None,
    labels: torch.Tensor | Sequence[int] | None = None,
    fractions: Sequence[float] = _AUC_D["fractions"],
    score: str = _AUC_D["score"],
    fill: str | Sequence[float] = _AUC_D["fill"],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    photos: Photographs | None = None,
    orders: Sequence[str] = ORDERS,
    rounding: str = "nearest",
    grid_size: tuple[int, int] | None = None,
    grid: Grid = "pixel",
    logits: torch.Tensor | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    max_batch: int = MAX_BATCH,
    max_bytes: int | None = None,
) -> PerturbationCurves:
    r"""
    Remove pixels in the order of saliency, and in the opposite one, and watch the classifier.

    A map is ranked once. The unperturbed image is one forward pass for both curves (none with `logits`), and so is the
    fully removed one; where that is a plain colour it is one image for the whole batch. All other steps of all images
    run `max_batch` at a time.

    Formula, with `f` the fraction removed of `HW` pixels:

        positive(f) = score(x with its round(f HW) most salient pixels replaced)
        negative(f) = score(x with its round(f HW) least salient pixels replaced)

    Source: Chefer et al. 2021 (https://huggingface.co/papers/2012.09838), section 4.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps at any resolution;
            resized bilinearly to the image.
        target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): Class whose softmax
            `score="probability"` reads; the unperturbed top-1 by default.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): True classes, for `score="accuracy"`.
        fractions (sequence of `float`, *optional*, defaults to 0, 0.1, ..., 1): Parts of the pixels removed.
        score (`str`, *optional*, defaults to `"agreement"`): `"agreement"` (top-1 unchanged), `"accuracy"` (top-1 is
            the label) or `"probability"` (softmax of `target`).
        fill (`str` or colour, *optional*, defaults to `"black"`): `"black"`, `"white"`, `"mean"`, `"blur"` or a
            colour, see [`~hf_explain.tensors.perturbation.fill_values`]; `"noise"` or `"color"`, drawn for every
            image, see [`~hf_explain.tensors.perturbation.random_fill_values`]; or `"photo"`, another photograph.
        image_mean (sequence of `float`, *optional*): The image processor's, needed for all but mean, blur and photo.
        image_std (sequence of `float`, *optional*): The image processor's, likewise.
        photos ([`Photographs`], *optional*): What `"photo"` takes one of for every image, one that the classifier
            takes for another class.
        orders (sequence of `str`, *optional*): `"positive"`, `"negative"` or both.
        rounding (`str`, *optional*, defaults to `"nearest"`): Fraction to pixel count, `"nearest"` or `"floor"`.
        grid_size (`tuple[int, int]`, *optional*): Average maps down to this `(height, width)` first (SCAN's protocol)
            and enlarge them again, bilinearly.
        grid (`str` or `tuple[int, int]`, *optional*, defaults to `"pixel"`): What is ranked, and removed together:
            every pixel by itself; `"patch"`: the patches a vision transformer reads, by the mean of the map over each
            (half of a patch still tells it what is there); or as many equal cells, `(height, width)`.
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`, *optional*): Of the unperturbed images, if at hand.
        seed (`int`, *optional*, defaults to 0): Orders pixels of equal saliency.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): See
            [`~hf_explain.tensors.randomness.image_keys`].
        max_batch (`int`, *optional*, defaults to 64): Images per forward pass.
        max_bytes (`int`, *optional*): Bytes of `pixel_values` per forward pass, a second limit.

    Returns:
        [`PerturbationCurves`].

    Raises:
        ValueError: If maps are not one finite, non-negative map per image, or an option is unknown; each names the
            argument, the value and what would work.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import perturbation_curves

    >>> def predict(pixel_values):  # two classes: how bright the left half is, and the right half
    ...     return 4 * pixel_values.mean((1, 2))

    >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # right
    >>> saliency = images[:, 0]
    >>> curves = perturbation_curves(predict, images, saliency, fractions=(0, 0.5, 1), fill="mean")
    >>> curves.positive, curves.negative
    (tensor([[1., 0., 0.]]), tensor([[1., 1., 0.]]))
    ```
    """
    pixel_values = check_pixel_values(pixel_values)
    limit = batch_limit(pixel_values, max_batch, max_bytes)
    fractions = _check_fractions(fractions)
    orders = (orders,) if isinstance(orders, str) else tuple(orders)
    if not orders or any(order not in ORDERS for order in orders):
        raise ValueError(f"`orders` must be some of {', '.join(ORDERS)}, got {orders}.")
    cells = grid_cells(grid, predict, pixel_values.shape[-2:])
    ranks = saliency_ranks(_to_grid(saliency, grid_size), pixel_values, image_ids, seed, cells)
    counts = pixel_counts(fractions, ranks[0].numel(), rounding)
    logits = base_logits(predict, pixel_values, logits, limit, score)
    classes = reference_classes(score, logits, target, labels)
    filled = Filler(image_mean, image_std, seed, image_ids, photos).fill(pixel_values, fill, classes)
    removals = [Removal(order, counts, filled) for order in orders]
    scores = removal_scores(predict, pixel_values, ranks, removals, classes, score, logits, limit)
    protocol = {
        "score": score,
        "target": target_name(score, target),
        "fractions": list(fractions),
        "fill": fill_name(fill),
        "rounding": rounding,
        "grid_size": None if grid_size is None else list(grid_size),
        **grid_protocol(grid, cells),
        "image_size": list(pixel_values.shape[-2:]),
        "seed": seed,
    }
    return PerturbationCurves(
        fractions=fractions,
        positive=scores[orders.index("positive")] if "positive" in orders else None,
        negative=scores[orders.index("negative")] if "negative" in orders else None,
        target=classes,
        protocol=protocol,
    )


@dataclass
class AucD:
    """
    Areas under the perturbation curves, in percent (0 to 100), one per image; means over images are the metric.

    Args:
        auc_d (`torch.DoubleTensor` of shape `(batch_size,)`): `negative_auc - positive_auc`; higher is better.
        positive_auc (`torch.DoubleTensor` of shape `(batch_size,)`): Most salient removed first; lower is better.
        negative_auc (`torch.DoubleTensor` of shape `(batch_size,)`): Least salient removed first; higher is better.
        curves ([`PerturbationCurves`]): What they are the areas of.
        protocol (`dict`): How it was measured.
    """

    auc_d: torch.Tensor
    positive_auc: torch.Tensor
    negative_auc: torch.Tensor
    curves: PerturbationCurves
    protocol: dict[str, Any]


def auc_d(
    predict: Predict, pixel_values: torch.Tensor, saliency: torch.Tensor, *, normalize: bool = True, **options: Any
) -> AucD:
    """
    AUC-D: the negative perturbation AUC minus the positive one, times 100.

    A map of random numbers gives about 0. `PRESETS["auc_d"]` holds published settings.

    Formula:

        AUC-D = 100 (area(negative) − area(positive))

    Source: SCAN (2026); the curves are those of Chefer et al. 2021.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps, any resolution.
        normalize (`bool`, *optional*, defaults to `True`): See [`auc`].
        **options: Those of [`perturbation_curves`], except `orders`.

    Returns:
        [`AucD`].

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import auc_d

    >>> def predict(pixel_values):  # two classes: how bright the left half is, and the right half
    ...     return 4 * pixel_values.mean((1, 2))

    >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # right
    >>> result = auc_d(predict, images, images[:, 0], fractions=(0, 0.5, 1), fill="mean")
    >>> result.positive_auc.item(), result.negative_auc.item(), result.auc_d.item()
    (25.0, 75.0, 50.0)
    ```
    """
    curves = perturbation_curves(predict, pixel_values, saliency, **{**options, "orders": ORDERS})
    assert curves.positive is not None and curves.negative is not None  # both orders were asked for
    positive = 100 * auc(curves.positive, curves.fractions, normalize)
    negative = 100 * auc(curves.negative, curves.fractions, normalize)
    return AucD(negative - positive, positive, negative, curves, {**curves.protocol, "normalize": normalize})


@dataclass
class AucDFills:
    """
    AUC-D with each fill, one per image.

    Args:
        auc_d_fills (`torch.DoubleTensor` of shape `(batch_size,)`): Mean over the fills; higher is better.
        by_fill (`dict[str, AucD]`): With each of them.
        protocol (`dict`): How it was measured.
    """

    auc_d_fills: torch.Tensor
    by_fill: dict[str, AucD]
    protocol: dict[str, Any]


def auc_d_fills(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    fills: Sequence[str] = _FILLS["fills"],
    **options: Any,
) -> AucDFills:
    """
    AUC-D with black, with the mean colour and with a blur for what is removed (or with other fills), and the mean of
    them.

    What pixels are replaced by decides much of which map wins, and an explainer that was trained by masking with one
    fill has learned what that fill does to the classifier. A map that is right holds with all of them.

    Formula:

        AUC-D with fills = mean over fills of AUC-D(fill), such as (AUC-D(black) + AUC-D(mean) + AUC-D(blur)) / 3

    Args:
        predict, pixel_values, saliency: As for [`auc_d`].
        fills (sequence of `str`, *optional*, defaults to `("black", "mean", "blur")`): Some of black, mean, blur,
            white, noise, color and photo.
        **options: Those of [`auc_d`], except `fill`.

    Returns:
        [`AucDFills`].

    Raises:
        TypeError: If `fill` is given.
        ValueError: As [`auc_d`], and if `fills` are none, unknown or not different.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import auc_d_fills

    >>> def predict(pixel_values):  # two classes: how bright the left half is, and the right half
    ...     return 4 * pixel_values.mean((1, 2))

    >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # right
    >>> black = {"image_mean": (0.0,), "image_std": (1.0,)}
    >>> result = auc_d_fills(predict, images, images[:, 0], fractions=(0, 0.5, 1), **black)
    >>> {fill: one.auc_d.item() for fill, one in result.by_fill.items()}
    {'black': 50.0, 'mean': 50.0, 'blur': 0.0}
    ```
    """
    if "fill" in options:
        raise TypeError(f"`auc_d_fills` measures with {', '.join(fills)}; for one `fill` there is `auc_d`.")
    fills = (fills,) if isinstance(fills, str) else tuple(fills)
    if not fills or any(fill not in EVERY_FILL for fill in fills) or len(set(fills)) < len(fills):
        raise ValueError(f"`fills` must be some of {', '.join(EVERY_FILL)}, each once, got {', '.join(fills)}.")
    if options.get("logits") is None:  # of the images themselves: one pass for all fills
        limit = batch_limit(pixel_values, options.get("max_batch", 64), options.get("max_bytes"))
        options["logits"] = base_logits(
            predict, check_pixel_values(pixel_values), None, limit, options.get("score", "agreement")
        )
    with sharing():
        by_fill = {fill: auc_d(predict, pixel_values, saliency, fill=fill, **options) for fill in fills}
    protocol = {name: value for name, value in by_fill[fills[0]].protocol.items() if name != "fill"}
    mean = torch.stack([result.auc_d for result in by_fill.values()]).mean(0)
    return AucDFills(mean, by_fill, {**protocol, "fills": list(fills)})


@dataclass
class InsertionDeletion:
    """
    RISE's two curves and their areas, in [0, 1], one per image.

    Args:
        insertion_auc (`torch.DoubleTensor` of shape `(batch_size,)`): Higher is better.
        deletion_auc (`torch.DoubleTensor` of shape `(batch_size,)`): Lower is better.
        insertion (`torch.FloatTensor` of shape `(batch_size, num_steps + 1)`): Most salient pixels put in first.
        deletion (`torch.FloatTensor` of shape `(batch_size, num_steps + 1)`): Most salient pixels taken out first.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class whose softmax is read.
        protocol (`dict`): How it was measured.
    """

    insertion_auc: torch.Tensor
    deletion_auc: torch.Tensor
    insertion: torch.Tensor
    deletion: torch.Tensor
    target: torch.Tensor
    protocol: dict[str, Any]


def insertion_deletion(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    target: torch.Tensor | Sequence[int] | int | None = None,
    steps: int = _INSERTION["steps"],
    deletion_fill: str | Sequence[float] = _INSERTION["deletion_fill"],
    insertion_fill: str | Sequence[float] = _INSERTION["insertion_fill"],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    photos: Photographs | None = None,
    grid: Grid = "pixel",
    logits: torch.Tensor | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    max_batch: int = MAX_BATCH,
    max_bytes: int | None = None,
) -> InsertionDeletion:
    """
    Insertion and deletion of RISE: softmax of `target` while pixels come into a blurred image, or leave the image.

    Every step moves ⌈HW / steps⌉ pixels (or as many of the cells of a `grid`), the last one what is left.

    Formula, with `p` the target's softmax and `k_s` the pixels moved up to step `s`:

        deletion(s)  = p(x with its k_s most salient pixels replaced by deletion_fill)
        insertion(s) = p(x filled with insertion_fill, its k_s most salient pixels put back)
        each area is RISE's (Σ_s c_s − c_first/2 − c_last/2) / steps

    Source: RISE (https://huggingface.co/papers/1806.07421), section 4.2, and its released evaluation code.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Non-negative maps, any resolution.
        target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): The top-1 by default.
        steps (`int`, *optional*, defaults to 28): Steps per curve; 28 are 1,792 pixels each at 224².
        deletion_fill, insertion_fill (`str` or colour, *optional*): As `fill` in [`perturbation_curves`].
        image_mean, image_std, photos (*optional*): What the fills need, likewise.
        grid, logits, seed, image_ids, max_batch, max_bytes: As in [`perturbation_curves`].

    Returns:
        [`InsertionDeletion`].

    Raises:
        ValueError: As [`perturbation_curves`], and if `steps` is below 1.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import insertion_deletion

    >>> def predict(pixel_values):  # two classes: how bright the left half is, and the right half
    ...     return 4 * pixel_values.mean((1, 2))

    >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # right
    >>> result = insertion_deletion(predict, images, images[:, 0], steps=2, insertion_fill="mean")
    >>> result.deletion.round(decimals=2), result.insertion.round(decimals=2)
    (tensor([[0.9800, 0.5000, 0.5000]]), tensor([[0.5000, 0.9800, 0.9800]]))
    >>> round(result.insertion_auc.item(), 3), round(result.deletion_auc.item(), 3)
    (0.862, 0.621)
    ```
    """
    step_fractions(steps)  # the check alone: steps here are whole pixels
    pixel_values = check_pixel_values(pixel_values)
    cells = grid_cells(grid, predict, pixel_values.shape[-2:])
    limit = batch_limit(pixel_values, max_batch, max_bytes)
    ranks = saliency_ranks(saliency, pixel_values, image_ids, seed, cells)
    num_units, num_pixels = ranks[0].numel(), pixel_values.shape[-2] * pixel_values.shape[-1]
    per_step = -(-num_units // steps)
    counts = [*range(0, num_units, per_step), num_units]
    logits = base_logits(predict, pixel_values, logits, limit)
    classes = reference_classes("probability", logits, target, None)
    filler = Filler(image_mean, image_std, seed, image_ids, photos)
    fills = [filler.fill(pixel_values, fill, classes) for fill in (deletion_fill, insertion_fill)]
    # Inserting the k most salient pixels is removing all others, the least salient ones
    removals = [
        Removal("positive", counts, fills[0]),
        Removal("negative", [num_units - count for count in counts], fills[1]),
    ]
    deletion, insertion = removal_scores(predict, pixel_values, ranks, removals, classes, "probability", logits, limit)
    protocol = {
        "score": "probability",
        "target": target_name("probability", target),
        "steps": steps,
        "pixels_per_step": per_step * num_pixels // num_units,
        "deletion_fill": fill_name(deletion_fill),
        "insertion_fill": fill_name(insertion_fill),
        **grid_protocol(grid, cells),
        "image_size": list(pixel_values.shape[-2:]),
        "seed": seed,
    }
    return InsertionDeletion(auc(insertion), auc(deletion), insertion, deletion, classes, protocol)


# -------------------------------------------------------------------------------------------------------- average drop


@dataclass
class AverageDrop:
    """
    What is left of the classifier's confidence on the most salient part alone, per image and percentage kept.

    Args:
        percents (`tuple[float, ...]`): Percentages of pixels kept, v.
        drop (`torch.FloatTensor` of shape `(batch_size, num_percents)`): `max(0, p - p') / p`, in [0, 1].
        increase (`torch.BoolTensor` of shape `(batch_size, num_percents)`): `p' > p`, strictly.
        area (`torch.FloatTensor` of shape `(batch_size, num_percents)`): Mean of the soft map kept, in [0, 1].
        probability (`torch.FloatTensor` of shape `(batch_size,)`): p, softmax of the target on the image.
        kept_probability (`torch.FloatTensor` of shape `(batch_size, num_percents)`): p', on the kept part.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class.
        protocol (`dict`): How it was measured.
    """

    percents: tuple[float, ...]
    drop: torch.Tensor
    increase: torch.Tensor
    area: torch.Tensor
    probability: torch.Tensor
    kept_probability: torch.Tensor
    target: torch.Tensor
    protocol: dict[str, Any]

    @property
    def average_drop(self) -> torch.Tensor:
        """AD(v) over these images in percent, lower is better; `torch.DoubleTensor` of shape `(num_percents,)`."""
        return 100 * self.drop.double().mean(0)

    @property
    def increase_in_confidence(self) -> torch.Tensor:
        """IC(v) over these images in percent, higher is better; `torch.DoubleTensor` of shape `(num_percents,)`."""
        return 100 * self.increase.double().mean(0)


def average_drop(
    predict: Predict,
    pixel_values: torch.Tensor,
    saliency: torch.Tensor,
    *,
    target: torch.Tensor | Sequence[int] | int | None = None,
    percents: Sequence[float] = _DROP["percents"],
    rule: str = _DROP["rule"],
    mask_space: str = _DROP["mask_space"],
    scale: str = "map",
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    grid: Grid = "pixel",
    logits: torch.Tensor | None = None,
    seed: int = 0,
    image_ids: torch.Tensor | Sequence[int] | None = None,
    max_batch: int = MAX_BATCH,
    max_bytes: int | None = None,
) -> AverageDrop:
    """
    Average drop and increase in confidence, AD(v) and IC(v).

    The map is resized to the image, all but its most salient v % is set to 0, the rest stays soft, and the image is
    multiplied by it.

    Formula, with `p` the target's softmax on the image and `p'` on the image times its map's top v %:

        AD(v) = 100 mean(max(0, p − p') / p)
        IC(v) = 100 mean([p' > p])

    With `scale="rank"` the map's value `L_i` among its `n` is replaced by `(|{j: L_j < L_i}| + |{j: L_j ≤ L_i}| − 1) /
    (2 (n − 1))`.

    Source: Grad-CAM++ (https://huggingface.co/papers/1710.11063), section 4.1; v from L-CAM (ECCV-W 2022) and T-TAME
    (IEEE Access 2024).

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
        saliency (`torch.Tensor` of shape `(batch_size, map_height, map_width)`): Maps in [0, 1], any resolution.
        target (`torch.LongTensor` of shape `(batch_size,)` or `int`, *optional*): The top-1 by default.
        percents (sequence of `float`, *optional*, defaults to `(100, 50, 15)`): Pixels kept, each in (0, 100].
        rule (`str`, *optional*, defaults to `"ceil"`): See [`~hf_explain.tensors.perturbation.keep_top`].
        mask_space (`str`, *optional*, defaults to `"pixel"`): Multiply the [0, 1] picture (masked goes black) or, with
            `"normalized"`, `pixel_values` (masked goes to the mean colour).
        scale (`str`, *optional*, defaults to `"map"`): What the image is multiplied by: the map itself, as published,
            which a brighter map wins; or, with `"rank"`, the rank of each of its values, from 0 to 1 in equal steps,
            so that all maps have the same histogram and only their order counts. Equal values share the mean of their
            ranks: a constant map is 1/2 everywhere.
        image_mean, image_std (sequence of `float`, *optional*): The image processor's, needed for `"pixel"`.
        grid, logits, seed, image_ids, max_batch, max_bytes: As in [`perturbation_curves`].

    Returns:
        [`AverageDrop`].

    Raises:
        ValueError: As [`perturbation_curves`], and if a percentage is outside (0, 100] or a map goes above 1.

    Example:

    ```python
    >>> import torch
    >>> from hf_explain.metrics.functional import average_drop

    >>> def predict(pixel_values):  # two classes: how bright the left half is, and the right half
    ...     return 4 * pixel_values.mean((1, 2))

    >>> images = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])  # right
    >>> saliency = torch.tensor([[[0.0, 1.0], [0.0, 0.5]]])
    >>> result = average_drop(predict, images, saliency, percents=(50, 25), mask_space="normalized")
    >>> result.average_drop.round(decimals=1), result.increase_in_confidence
    (tensor([ 3.0000, 10.3000], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
    ```
    """
    pixel_values = check_pixel_values(pixel_values)
    percents = tuple(check_percent(percent) for percent in check_numbers(percents, "percents"))
    if not percents:
        raise ValueError("`percents` must name at least one percentage of pixels kept, in (0, 100].")
    limit = batch_limit(pixel_values, max_batch, max_bytes)
    filled = shared_fill(pixel_values, mask_space_fill(mask_space), image_mean, image_std)
    cells = grid_cells(grid, predict, pixel_values.shape[-2:])
    ranks = saliency_ranks(saliency, pixel_values, image_ids, seed, cells) if rule == "ceil" else None
    # The values kept, and the quantiles, are those of the resize every head and method uses
    values = full_size_saliency(saliency, pixel_values, at_most_one=True, exact_ties=False, cells=cells)
    if check_choice(scale, "scale", SCALES) == "rank":
        # of the resize that ties exactly
        exact = full_size_saliency(saliency, pixel_values, at_most_one=True, cells=cells)
        values = (tied_ranks(exact.flatten(1)) / max(1, exact[0].numel() - 1)).view(exact.shape).to(values)
    kept = torch.stack([keep_top(values, percent, rule, ranks) for percent in percents], dim=1)
    kept = spread_cells(kept, pixel_values.shape[-2:])

    logits = base_logits(predict, pixel_values, logits, limit)
    classes = reference_classes("probability", logits, target, None)
    probability = read_score(logits, classes, "probability")
    evidence = pixel_values - filled
    num_percents = len(percents)

    def build(span: slice, batch: torch.Tensor) -> None:
        for image in range(span.start // num_percents, -(-span.stop // num_percents)):
            first, last = (min(max(end - image * num_percents, 0), num_percents) for end in (span.start, span.stop))
            out = batch[image * num_percents + first - span.start : image * num_percents + last - span.start]
            out.copy_(torch.addcmul(filled[0], kept[image, first:last, None].to(filled.dtype), evidence[image]))

    kept_probability = run_jobs(
        predict, pixel_values, build, classes.repeat_interleave(num_percents), "probability", limit
    ).view(len(pixel_values), num_percents)
    base = probability[:, None]
    # A target the softmax gives exactly 0 has nothing left to lose: its drop is 0, not 0/0
    drop = torch.where(base > 0, (base - kept_probability).clamp(min=0) / torch.where(base > 0, base, 1.0), 0.0)
    protocol = {
        "target": target_name("probability", target),
        "percents": list(percents),
        "rule": rule,
        "mask_space": mask_space,
        "scale": scale,
        **grid_protocol(grid, cells),
        "image_size": list(pixel_values.shape[-2:]),
        "seed": seed,
    }
    return AverageDrop(
        percents, drop, kept_probability > base, kept.mean((2, 3)), probability, kept_probability, classes, protocol
    )


# -------------------------------------------------------------------------------------------------------------- pieces


def _check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    fractions = check_numbers(fractions, "fractions")
    if not fractions:
        raise ValueError("`fractions` must name at least one part of the pixels to remove, in [0, 1].")
    if any(after <= before for before, after in zip(fractions, fractions[1:])):
        raise ValueError(f"`fractions` must increase, got {fractions}.")
    return fractions


def _to_grid(saliency: torch.Tensor, grid_size: tuple[int, int] | None) -> torch.Tensor:
    if grid_size is None or not isinstance(saliency, torch.Tensor) or saliency.ndim != 3:
        return saliency  # what is wrong with it is said once, by `full_size_saliency`
    sides = tuple(int(side) for side in check_numbers(grid_size, "grid_size"))
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"`grid_size` must be (height, width) with both at least 1, got {sides}.")
    return F.adaptive_avg_pool2d(saliency.detach().float()[:, None], sides)[:, 0]
