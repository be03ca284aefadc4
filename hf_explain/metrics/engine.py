"""What every metric runs on: perturbed images in full batches, whatever image and step they are of, to numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_explain.metrics.photographs import Photographs
from hf_explain.tensors.batch_size import batches
from hf_explain.tensors.checks import refuse
from hf_explain.tensors.grids import spread_cells
from hf_explain.tensors.perturbation import (
    FILLS,
    RANDOM_FILLS,
    fill_values,
    full_size_saliency,
    random_fill_values,
    rank_pixels,
)
from hf_explain.tensors.randomness import image_keys
from hf_explain.tensors.scalars import check_choice, check_count, check_number
from hf_explain.tensors.sharing import shared


SCORES = ("accuracy", "probability", "agreement")
MAX_BATCH = 64  # images per forward pass, where nothing else is asked for

Predict = Callable[[torch.Tensor], torch.Tensor]
Classes = torch.Tensor | Sequence[int] | int


def check_logits(logits: Any, batch_size: int, name: str = "`logits`") -> torch.Tensor:
    """`logits` as detached float32 if they are one row of at least two finite numbers per image, else ValueError."""
    logits = _check_rows(logits, batch_size, name)
    _check_finite(torch.isfinite(logits).all(), name)
    return logits


def _check_rows(logits: Any, batch_size: int, name: str) -> torch.Tensor:
    """The check of the shape alone, for which the device need not be asked."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != batch_size:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"{name} must give logits of shape ({batch_size}, num_labels), got {got}.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"{name} gives {logits.shape[1]} number{'s' * (logits.shape[1] != 1)} per image; class probabilities need "
            "logits of at least 2 classes."
        )
    return logits.detach().float()


def _check_finite(finite: torch.Tensor, name: str) -> None:
    refuse(~finite, lambda: ValueError(f"{name} gives logits that are NaN or infinite."))


def base_logits(
    predict: Predict,
    pixel_values: torch.Tensor,
    logits: torch.Tensor | None,
    max_batch: int,
    score: str = "probability",
) -> torch.Tensor:
    """Logits of the unperturbed images, for a score: those the caller already has, or one pass over the batch."""
    if logits is not None:
        logits = check_logits(logits, len(pixel_values)).to(pixel_values.device)
        return _decided(predict, pixel_values, logits, score)
    size = len(pixel_values)

    def build(span: slice, batch: torch.Tensor) -> None:
        batch.copy_(pixel_values[span])

    return torch.cat([found for _, found in run_passes(predict, pixel_values, build, size, max_batch, score)])


def resolve_classes(
    classes: Classes, batch_size: int, num_labels: int, device: torch.device, name: str
) -> torch.Tensor:
    """Class indices as a LongTensor of shape `(batch_size,)` on `device`; ValueError if they are not that."""
    try:
        classes = torch.as_tensor(classes, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"`{name}` must hold class indices, got {classes!r}; a FrozenClassifier's `resolve_target` makes them of "
            "label names."
        ) from None
    if classes.ndim == 0:
        classes = classes.expand(batch_size)
    if classes.shape != (batch_size,) or classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(
            f"`{name}` must hold one class index per image ({batch_size}), got shape {tuple(classes.shape)} and dtype "
            f"{classes.dtype}."
        )
    given, outside = classes, (classes < 0) | (classes >= num_labels)

    def error() -> ValueError:
        return ValueError(f"`{name}` {int(given[outside][0])} is out of range: there are {num_labels} classes.")

    refuse(outside.any(), error)
    return classes.long().clamp(0, num_labels - 1)  # a GPU may be asked for them before anybody looks at the check


def reference_classes(
    score: str, logits: torch.Tensor, target: Classes | None, labels: Classes | None
) -> torch.Tensor:
    """
    The class a score looks at in each image: the label for `"accuracy"`, the unperturbed top-1 for `"agreement"`,
    `target` (or else that top-1) for `"probability"`.
    """
    check_choice(score, "score", SCORES)
    size, num_labels = logits.shape
    if score == "accuracy":
        if labels is None:
            raise ValueError("`labels` are needed for score='accuracy'; score='agreement' needs none.")
        return resolve_classes(labels, size, num_labels, logits.device, "labels")
    if score == "probability" and target is not None:
        return resolve_classes(target, size, num_labels, logits.device, "target")
    return logits.argmax(-1)


def read_score(logits: torch.Tensor, classes: torch.Tensor, score: str) -> torch.Tensor:
    """Score of each row: the softmax of its class, or 1.0 where that class comes first and 0.0 where not."""
    if score == "probability":
        return logits.softmax(-1).gather(1, classes[:, None])[:, 0]
    return (logits.argmax(-1) == classes).float()


def batch_limit(pixel_values: torch.Tensor, max_batch: int, max_bytes: int | None) -> int:
    """Images per forward pass under both limits, at least one."""
    check_count(max_batch, "max_batch")
    if max_bytes is None:
        return max_batch
    check_number(max_bytes, "max_bytes", "[1, inf)")  # 2e9 is a number of bytes, too
    return max(1, min(max_batch, int(max_bytes) // (pixel_values[0].numel() * pixel_values.element_size())))


@shared
def saliency_ranks(
    saliency: torch.Tensor,
    pixel_values: torch.Tensor,
    image_ids: torch.Tensor | Sequence[int] | None,
    seed: int,
    cells: tuple[int, int] | None = None,
) -> torch.Tensor:
    """[`~hf_explain.tensors.perturbation.rank_pixels`] of maps at the size of the images, or of the cells' means."""
    values = full_size_saliency(saliency, pixel_values, cells=cells)
    return rank_pixels(values, image_keys(pixel_values, image_ids, seed))


# What a metric can fill with: what heads may be trained with, and what none is
EVERY_FILL = (*FILLS, "white", *RANDOM_FILLS, "photo")


@dataclass(frozen=True)
class Filler:
    """
    What makes the fills of a batch.

    Args:
        image_mean, image_std (sequence of `float`, *optional*): The image processor's.
        seed (`int`): Of what is drawn for an image.
        image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*): See
            [`~hf_explain.tensors.randomness.image_keys`].
        photos ([`Photographs`], *optional*): What `"photo"` takes one of.
    """

    image_mean: Sequence[float] | None
    image_std: Sequence[float] | None
    seed: int = 0
    image_ids: torch.Tensor | Sequence[int] | None = None
    photos: Photographs | None = None

    def fill(self, pixel_values: torch.Tensor, fill: str | Sequence[float], classes: torch.Tensor) -> torch.Tensor:
        """
        What removed pixels are replaced by, as `pixel_values`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Normalised images.
            fill (`str` or colour): One of `EVERY_FILL`, or a colour: see
                [`~hf_explain.tensors.perturbation.fill_values`] and
                [`~hf_explain.tensors.perturbation.random_fill_values`]; or `"photo"`, another photograph.
            classes (`torch.LongTensor` of shape `(batch_size,)`): What the images show, and the photograph must not.

        Raises:
            ValueError: If `fill` is none of these, or what it needs is missing.
        """
        if isinstance(fill, (str, int, float)) and fill not in EVERY_FILL:
            raise ValueError(f"`fill` must be one of {', '.join(EVERY_FILL)} or a colour, got {fill!r}.")
        if fill == "photo":
            if self.photos is None:
                raise ValueError(
                    "`photos` are needed for fill='photo': Photographs of the data set, which an evaluation finds "
                    "by itself."
                )
            return _other_photographs(self.photos, pixel_values, self.image_ids, self.seed, tuple(classes.tolist()))
        if fill in RANDOM_FILLS:
            return _random_fill(pixel_values, fill, self.image_ids, self.seed, self.image_mean, self.image_std)
        return shared_fill(pixel_values, fill, self.image_mean, self.image_std)


def _fill_keys(pixel_values: torch.Tensor, image_ids: torch.Tensor | Sequence[int] | None, seed: int) -> torch.Tensor:
    """Not the numbers that order ties."""
    return image_keys(pixel_values, image_ids, ~seed)


shared_fill = shared(fill_values)


@shared
def _random_fill(
    pixel_values: torch.Tensor,
    fill: str,
    image_ids: torch.Tensor | Sequence[int] | None,
    seed: int,
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
) -> torch.Tensor:
    keys = _fill_keys(pixel_values, image_ids, seed)
    return random_fill_values(pixel_values, fill, keys, image_mean, image_std)


@shared
def _other_photographs(
    photos: Photographs,
    pixel_values: torch.Tensor,
    image_ids: torch.Tensor | Sequence[int] | None,
    seed: int,
    classes: tuple[int, ...],
) -> torch.Tensor:
    keys = _fill_keys(pixel_values, image_ids, seed)
    return photos.others(pixel_values, keys, image_ids, torch.tensor(classes))


@shared
def as_input(predict: Predict, images: torch.Tensor) -> torch.Tensor:
    """
    `images` in the precision and the memory format in which `predict` runs: its `dtype` and `memory_format`, which a
    [`FrozenClassifier`] has. What it does not name stays as it is.
    """
    dtype = getattr(predict, "dtype", None)
    dtype = dtype if isinstance(dtype, torch.dtype) else images.dtype
    return images.detach().to(dtype=dtype, memory_format=_memory_format(predict))


def _memory_format(predict: Predict) -> torch.memory_format:
    memory_format = getattr(predict, "memory_format", None)
    return memory_format if isinstance(memory_format, torch.memory_format) else torch.contiguous_format


def run_passes(
    predict: Predict,
    pixel_values: torch.Tensor,
    build: Callable[[slice, torch.Tensor], Any],
    num_jobs: int,
    max_batch: int,
    score: str = "probability",
) -> Iterator[tuple[slice, torch.Tensor]]:
    """
    Run `num_jobs` perturbed images through the classifier, whatever image and step they are of.

    They are made in place, in one batch that serves all passes, in the classifier's own precision and memory format.
    The device is waited for once, after the last pass.

    Args:
        predict (`Callable`): `pixel_values` to logits (or to a model output that has `logits`).
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): The unperturbed images.
        build (`Callable`): Gets a slice of the jobs and the `pixel_values` to fill with them.
        num_jobs (`int`): How many jobs there are.
        max_batch (`int`): Jobs per pass at most; only these are ever in memory at once.
        score (`str`, *optional*, defaults to `"probability"`): What the logits are for. Those for a score of the top
            class say which it is in the weights' own precision, too.

    Yields:
        `tuple`: the slice of the jobs, and their logits, a `torch.FloatTensor` of shape `(jobs, num_labels)`.

    Raises:
        ValueError: If what comes back is not one row of at least two finite logits per image.
    """
    like = as_input(predict, pixel_values[:1])
    shape = (min(num_jobs, max_batch), *like.shape[1:])
    batch = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=_memory_format(predict))
    finite = torch.ones((), dtype=torch.bool, device=like.device)
    passes = _Undecided(predict, score, max_batch)
    for span in batches(predict, batch, num_jobs, max_batch):
        images = batch[: span.stop - span.start]
        with torch.no_grad():
            build(span, images)
            found: Any = predict(images)
        logits = _check_rows(getattr(found, "logits", found), len(images), "`predict`")
        finite = finite & torch.isfinite(logits).all()
        yield from passes.add(span, images, logits)
    yield from passes.decided()
    _check_finite(finite, "`predict`")


class _Undecided:
    """Passes held back until what they could not tell is decided: the images of several of them in one more pass."""

    def __init__(self, predict: Predict, score: str, max_batch: int):
        self._predict, self._score, self._max_batch = predict, score, max_batch
        self._rows_of = None if score == "probability" else getattr(predict, "undecided", None)
        self._passes: list[tuple[slice, torch.Tensor]] = []
        self._close: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # which pass, its rows, their images

    def add(self, span: slice, images: torch.Tensor, logits: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """One more pass, whose images will be overwritten; yields, in order, those that need not be held back."""
        with torch.no_grad():  # as the pass ran: with a graph it would have been in the weights' own precision
            rows = None if self._rows_of is None else self._rows_of(logits)
        if rows is not None and sum(len(own) for _, own, _ in self._close) + len(rows) > self._max_batch:
            yield from self.decided()
        if rows is not None and len(rows):
            self._close.append((len(self._passes), rows, images[rows]))
        self._passes.append((span, logits))
        if not self._close:
            yield from self.decided()

    def decided(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Those held back."""
        passes, close = self._passes, self._close
        self._passes, self._close = [], []
        if close:
            images = torch.cat([own for _, _, own in close])
            found = torch.cat([passes[place][1][rows] for place, rows, _ in close])
            parts = _decided(self._predict, images, found, self._score).split([len(rows) for _, rows, _ in close])
            for (place, rows, _), logits in zip(close, parts):
                passes[place] = passes[place][0], passes[place][1].index_copy(0, rows, logits)
        yield from passes


def _decided(predict: Predict, images: torch.Tensor, logits: torch.Tensor, score: str) -> torch.Tensor:
    """Logits by which a score can tell the top class, whatever precision they are in; a FrozenClassifier knows how."""
    decide = getattr(predict, "decided", None)
    if score == "probability" or decide is None:
        return logits
    with torch.no_grad():
        return decide(images, logits)


def run_jobs(
    predict: Predict,
    pixel_values: torch.Tensor,
    build: Callable[[slice, torch.Tensor], Any],
    classes: torch.Tensor,
    score: str,
    max_batch: int,
) -> torch.Tensor:
    """
    [`run_passes`], one job for each of `classes`, to the `score` of each.

    Returns:
        `torch.FloatTensor` of the shape of `classes`.
    """
    passes = run_passes(predict, pixel_values, build, len(classes), max_batch, score)
    return torch.cat([read_score(logits, classes[span], score) for span, logits in passes])


@dataclass
class Removal:
    """
    One curve: what is removed of every image, in which order, and for what.

    Args:
        order (`str`): `"positive"`: most salient pixels first; `"negative"`: least salient ones first.
        counts (sequence of `int`): Pixels (or cells) removed at each step, in any order.
        filled (`torch.Tensor` of shape `(1, channels, 1, 1)` or that of the images): What replaces them.
    """

    order: str
    counts: Sequence[int]
    filled: torch.Tensor


@dataclass
class _Piece:
    """Jobs in a row that are of one image and one curve."""

    start: int
    image: int
    least_first: bool
    differs: torch.Tensor
    filled: torch.Tensor
    counts: torch.Tensor


def removal_scores(
    predict: Predict,
    pixel_values: torch.Tensor,
    ranks: torch.Tensor,
    removals: Sequence[Removal],
    classes: torch.Tensor,
    score: str,
    logits: torch.Tensor,
    max_batch: int,
) -> list[torch.Tensor]:
    """
    Scores after exactly so many pixels, or cells of a grid, are removed; all steps of all curves and images share
    their passes.

    The two ends are the same image whatever the order: the unperturbed one is read from `logits`, the empty one is run
    once for all curves of the same fill, and once for the whole batch where that is a plain colour.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        ranks (`torch.LongTensor` of shape `(batch_size, height, width)`): 0 is the most salient pixel, or cell: then
            as many numbers as there are cells.
        removals (list of [`Removal`]): The curves.
        classes (`torch.LongTensor` of shape `(batch_size,)`): Class each score looks at.
        score (`str`): One of `SCORES`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Of the unperturbed images.
        max_batch (`int`): Images per forward pass.

    Returns:
        list of `torch.FloatTensor` of shape `(batch_size, len(counts))`, one per curve.
    """
    size, device, num_units = len(pixel_values), pixel_values.device, ranks[0].numel()
    images = as_input(predict, pixel_values)
    # Pixels are chosen as bit patterns, `kept * (image ^ filled) ^ filled`, which a CPU does several at a time, unlike
    # `torch.where`; for the same reason ranks are as dense as the images, and as narrow as they can be
    pattern = {2: torch.int16, 4: torch.int32, 8: torch.int64}[images.element_size()]
    narrow, shift = (torch.int16, 2**15) if num_units < 2**16 else (torch.int32, 0)
    places = spread_cells((ranks - shift).to(narrow), images.shape[-2:])
    places = places[:, None].expand(images.shape).contiguous(memory_format=_memory_format(predict))
    fills = {
        id(one.filled): as_input(predict, one.filled.expand(-1, *images.shape[1:])).view(pattern) for one in removals
    }
    differs = {fill: images.view(pattern) ^ filled for fill, filled in fills.items()}
    pieces: list[_Piece] = []

    def add(one: Removal, steps: list[int], num_images: int) -> int:
        """Jobs for each of the first images; returns the number of the first one."""
        first = start = pieces[-1].start + len(pieces[-1].counts) if pieces else 0
        least_first, differ, filled = one.order == "negative", differs[id(one.filled)], fills[id(one.filled)]
        # The rank from which on (or, least salient first, before which) a pixel is kept
        bounds = [(num_units - count if least_first else count) - shift for count in steps]
        counts = torch.tensor(bounds).to(narrow).view(-1, 1, 1, 1).to(device, non_blocking=True)
        for image in range(num_images):
            own = filled[image if len(filled) > 1 else 0]
            pieces.append(_Piece(start, image, least_first, differ[image], own, counts))
            start += len(steps)
        return first

    inner = [sorted(set(one.counts) - {0, num_units}) for one in removals]
    firsts = [add(one, steps, size) if steps else 0 for one, steps in zip(removals, inner)]
    ends: dict[int, int] = {}  # of each fill, the first job
    for one in removals:
        if num_units in one.counts and id(one.filled) not in ends:
            ends[id(one.filled)] = add(one, [num_units], len(one.filled))
    starts = [piece.start for piece in pieces]

    def build(span: slice, batch: torch.Tensor) -> None:
        batch = batch.view(pattern)
        for piece in pieces[bisect_right(starts, span.start) - 1 : bisect_left(starts, span.stop)]:
            first, last = max(span.start - piece.start, 0), min(span.stop - piece.start, len(piece.counts))
            counts, place = piece.counts[first:last], places[piece.image]
            kept = place < counts if piece.least_first else place >= counts
            offset = piece.start - span.start
            torch.mul(kept, piece.differs, out=batch[offset + first : offset + last]).bitwise_xor_(piece.filled)

    job_classes = torch.cat(
        [
            *(classes.repeat_interleave(len(steps)) for steps in inner),
            *(classes[: len(fills[fill])] for fill in ends),
        ]
    )
    found, end_scores = [], {}
    for span, job_logits in run_passes(predict, pixel_values, build, len(job_classes), max_batch, score):
        found.append(read_score(job_logits, job_classes[span], score))
        for fill, job in ends.items():
            if len(fills[fill]) == 1 and span.start <= job < span.stop:  # one image, read for every image's class
                end_scores[fill] = read_score(job_logits[job - span.start].expand(size, -1), classes, score)
    scores = torch.cat(found) if found else classes.new_empty(0)
    end_scores |= {fill: scores[job : job + size] for fill, job in ends.items() if fill not in end_scores}
    tables = []
    for one, steps, first in zip(removals, inner, firsts):
        columns = {0: read_score(logits, classes, score)}
        columns |= {num_units: end_scores[id(one.filled)]} if num_units in one.counts else {}
        columns |= zip(steps, scores[first : first + size * len(steps)].view(size, -1).unbind(1) if steps else ())
        tables.append(torch.stack([columns[count] for count in one.counts], dim=1))
    return tables


def fill_name(fill: str | Sequence[float]) -> str | list[float]:
    """A fill as a protocol writes it down."""
    return fill if isinstance(fill, str) else [float(value) for value in fill]


def target_name(score: str, target: Classes | None) -> str:
    """Where the class a score looks at comes from, as a protocol writes it down."""
    if score == "accuracy":
        return "label"
    return "given" if score == "probability" and target is not None else "top-1"
