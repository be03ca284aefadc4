"""Which class to explain: indices, label names or lists of them to one index per image."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch

from hf_explain.io.labels import synonyms
from hf_explain.tensors.checks import refuse


# A class index or label name for all images, or one per image; `None` for the classifier's top class.
Target = int | str | Sequence[int | str] | torch.Tensor | None


def is_several(target: Any) -> bool:
    """Whether a target is a list of classes; one class may also come as a scalar of NumPy or PyTorch."""
    return isinstance(target, Sequence) and not isinstance(target, str) or getattr(target, "ndim", 0) > 0


def resolve_target(
    target: Target,
    batch_size: int,
    id2label: dict[int, str],
    device: torch.device,
    logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Classes to explain, one per image; see [`FrozenClassifier.resolve_target`].

    Args:
        target (`int`, `str`, a list of them, `torch.Tensor` or `None`): A class for the whole batch or one per image.
        batch_size (`int`): Number of images.
        id2label (`dict[int, str]`): The classifier's labels.
        device (`torch.device`): Where the result goes, unless the logits say it.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`, *optional*): Needed for `None`.

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`.
    """
    if target is None:
        if logits is None:
            raise ValueError("`target` is None, which means the top class, but no `logits` were given.")
        return logits.argmax(dim=-1)
    device = logits.device if logits is not None else device
    if not isinstance(target, torch.Tensor) and hasattr(target, "item") and getattr(target, "ndim", None) == 0:
        target = target.item()  # of NumPy
    if isinstance(target, torch.Tensor) and (target.dtype.is_floating_point or target.dtype == torch.bool):
        raise TypeError(f"`target` must hold class indices (integers), got a tensor of {target.dtype}.")
    if isinstance(target, torch.Tensor) and target.ndim == 0 or isinstance(target, (int, str)):
        return torch.full((batch_size,), _class_index(target, id2label), dtype=torch.long, device=device)
    # the length by its shape: `len` would fix the number of images of a graph that is being traced
    if isinstance(target, torch.Tensor) and target.ndim == 1 and target.shape[0] == batch_size:
        outside = (target < 0) | (target >= len(id2label))
        if torch.compiler.is_compiling():  # a graph cannot branch on a value, but it can refuse one
            torch._assert_async(~outside.any(), f"`target` is out of range: there are {len(id2label)} classes.")
            return target.to(device=device, dtype=torch.long)
        given = target
        refuse(outside.any(), lambda: _out_of_range(int(given[outside][0]), id2label))  # one look at all of them
        # a GPU may be asked for them before anybody looks at the check
        return target.clamp(0, len(id2label) - 1).to(device=device, dtype=torch.long, non_blocking=True)
    if not isinstance(target, (Sequence, torch.Tensor)) and not hasattr(target, "__len__"):
        raise TypeError(
            f"`target` must be a class index, a label name or a list of them, got {type(target).__name__}."
        )
    if len(target) != batch_size:
        raise ValueError(
            f"`target` has {len(target)} entries for {batch_size} images; give one class for all of them or "
            "exactly one per image."
        )
    return torch.tensor([_class_index(one, id2label) for one in target], dtype=torch.long, device=device)


def _class_index(target: Any, id2label: dict[int, str]) -> int:
    if isinstance(target, str):
        return _label_index(target, id2label)
    if isinstance(target, (bool, float)) or not hasattr(target, "__index__") and not hasattr(target, "item"):
        raise TypeError(f"`target` must be a class index or a label name, got {target!r}.")
    index = int(target)
    if not 0 <= index < len(id2label):
        raise _out_of_range(index, id2label)
    return index


def _out_of_range(index: int, id2label: dict[int, str]) -> ValueError:
    return ValueError(
        f"`target` {index} is out of range: the classifier has {len(id2label)} classes, 0 to {len(id2label) - 1}."
    )


def _label_index(name: str, id2label: dict[int, str]) -> int:
    wanted = name.strip().casefold()
    exact, partial = [], []
    for index, label in id2label.items():
        folded = str(label).casefold()
        if folded == wanted:
            exact.append(index)
        elif wanted in synonyms(folded):
            partial.append(index)
    found = exact or partial
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"`target` {name!r} names several classes: {found[:6]}; use the index of the one you mean.")
    labels = [str(label) for label in id2label.values()]
    # each synonym counts, else a typo in one is far from the whole
    parts = {part.strip().casefold(): label for label in labels for part in (label, *synonyms(label))}
    matches = difflib.get_close_matches(wanted, parts, n=6, cutoff=0.4)
    near = list(dict.fromkeys(parts[match] for match in matches))[:3] or labels[:3]
    raise ValueError(
        f"`target` {name!r} is not a label of this classifier; the nearest are {', '.join(map(repr, near))}."
    )
