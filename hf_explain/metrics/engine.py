"""What every metric runs on: perturbed images in full batches, whatever image and step they are of, to numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hf_explain.tensors.perturbation import blend
from hf_explain.tensors.scalars import check_choice, check_count, check_number


SCORES = ("accuracy", "probability", "agreement")
MAX_BATCH = 64  # images per forward pass, where nothing else is asked for

Predict = Callable[[torch.Tensor], torch.Tensor]


def run_predict(predict: Predict, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Logits of one batch, in float32, without a graph.

    Args:
        predict (`Callable`): `pixel_values` to logits (or to a model output that has `logits`).
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_labels)`.

    Raises:
        ValueError: If what comes back is not one row of at least two finite logits per image.
    """
    with torch.no_grad():
        logits = predict(pixel_values)
    return check_logits(getattr(logits, "logits", logits), len(pixel_values), "`predict`")


def check_logits(logits: torch.Tensor, batch_size: int, name: str = "`logits`") -> torch.Tensor:
    """`logits` as detached float32 if they are one row of at least two finite numbers per image, else ValueError."""
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != batch_size:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"{name} must give logits of shape ({batch_size}, num_labels), got {got}.")
    if logits.shape[1] < 2:
        raise ValueError(
            f"{name} gives {logits.shape[1]} number{'s' * (logits.shape[1] != 1)} per image; class probabilities need "
            "logits of at least 2 classes."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"{name} gives logits that are NaN or infinite.")
    return logits.detach().float()


def base_logits(
    predict: Predict, pixel_values: torch.Tensor, logits: torch.Tensor | None, max_batch: int
) -> torch.Tensor:
    """Logits of the unperturbed images: those the caller already has, or one pass over the batch."""
    if logits is not None:
        return check_logits(logits, len(pixel_values)).to(pixel_values.device)
    return torch.cat([run_predict(predict, chunk) for chunk in pixel_values.split(max_batch)])


Classes = torch.Tensor | Sequence[int] | int


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
    outside = (classes < 0) | (classes >= num_labels)
    if bool(outside.any()):
        raise ValueError(f"`{name}` {int(classes[outside][0])} is out of range: there are {num_labels} classes.")
    return classes.long()


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


def run_jobs(
    predict: Predict,
    build: Callable[[torch.Tensor], torch.Tensor],
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    num_jobs: int,
    max_batch: int,
    device: torch.device,
) -> torch.Tensor:
    """
    Run `num_jobs` perturbed images through the classifier, `max_batch` at a time, whatever image and step they are of.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        build (`Callable`): Job indices (LongTensor) to their `pixel_values`.
        read (`Callable`): Logits and job indices to one number per job.
        num_jobs (`int`): How many jobs there are.
        max_batch (`int`): Jobs per forward pass; only these are ever in memory at once.
        device (`torch.device`): Where indices and results live.

    Returns:
        `torch.FloatTensor` of shape `(num_jobs,)`.
    """
    results = torch.empty(num_jobs, device=device)
    for start in range(0, num_jobs, max_batch):
        jobs = torch.arange(start, min(start + max_batch, num_jobs), device=device)
        results[start : start + len(jobs)] = read(run_predict(predict, build(jobs)), jobs)
    return results


def removal_scores(
    predict: Predict,
    pixel_values: torch.Tensor,
    ranks: torch.Tensor,
    counts: Sequence[int],
    orders: Sequence[str],
    filled: torch.Tensor,
    classes: torch.Tensor,
    score: str,
    logits: torch.Tensor,
    max_batch: int,
) -> torch.Tensor:
    """
    Scores after exactly `counts` pixels are removed, most (`"positive"`) or least (`"negative"`) salient first.

    The two ends are the same image whatever the order: the unperturbed one is read from `logits`, the empty one is run
    once for all orders, and once for the whole batch where `filled` is a plain colour.

    Args:
        predict (`Callable`): `pixel_values` to logits.
        pixel_values (`torch.Tensor` of shape `(batch_size, channels, height, width)`): Images.
        ranks (`torch.LongTensor` of shape `(batch_size, height, width)`): 0 is the most salient pixel.
        counts (sequence of `int`): Pixels removed at each step, in any order.
        orders (sequence of `str`): `"positive"` and/or `"negative"`.
        filled (`torch.Tensor` of shape `(1, channels, 1, 1)` or that of `pixel_values`): What replaces them.
        classes (`torch.LongTensor` of shape `(batch_size,)`): Class each score looks at.
        score (`str`): One of `SCORES`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): Of the unperturbed images.
        max_batch (`int`): Images per forward pass.

    Returns:
        `torch.FloatTensor` of shape `(len(orders), batch_size, len(counts))`.
    """
    size, device = len(pixel_values), pixel_values.device
    num_pixels = ranks[0].numel()
    inner = sorted(set(counts) - {0, num_pixels})
    scores = torch.empty(len(orders), size, len(inner) + 2, device=device)
    scores[:, :, 0] = read_score(logits, classes, score)
    if num_pixels in counts:
        ends = filled.expand(-1, -1, *pixel_values.shape[-2:])
        end_logits = torch.cat([run_predict(predict, chunk) for chunk in ends.split(max_batch)])
        scores[:, :, -1] = read_score(end_logits.expand(size, -1), classes, score)
    if inner:
        steps = torch.tensor(inner, device=device)
        least_first = torch.tensor([order == "negative" for order in orders], device=device)

        def split(jobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """Job number to (order, image, step); steps run fastest so that neighbours share an image."""
            return jobs // (size * len(inner)), jobs // len(inner) % size, jobs % len(inner)

        def build(jobs: torch.Tensor) -> torch.Tensor:
            order, image, step = split(jobs)
            count, rank = steps[step].view(-1, 1, 1), ranks[image]
            kept = torch.where(least_first[order].view(-1, 1, 1), rank < num_pixels - count, rank >= count)
            return blend(pixel_values[image], kept, filled if len(filled) == 1 else filled[image])

        def read(job_logits: torch.Tensor, jobs: torch.Tensor) -> torch.Tensor:
            return read_score(job_logits, classes[split(jobs)[1]], score)

        results = run_jobs(predict, build, read, len(orders) * size * len(inner), max_batch, device)
        scores[:, :, 1:-1] = results.view(len(orders), size, len(inner))
    column = {0: 0, num_pixels: len(inner) + 1, **{count: place for place, count in enumerate(inner, start=1)}}
    return scores[:, :, [column[count] for count in counts]]


def fill_name(fill: str | Sequence[float]) -> str | list[float]:
    """A fill as a protocol writes it down."""
    return fill if isinstance(fill, str) else [float(value) for value in fill]


def target_name(score: str, target: Classes | None) -> str:
    """Where the class a score looks at comes from, as a protocol writes it down."""
    if score == "accuracy":
        return "label"
    return "given" if score == "probability" and target is not None else "top-1"
