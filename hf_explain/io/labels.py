"""The classes of a classifier as people name them. Nothing here needs PyTorch."""

from __future__ import annotations


# Which class of an image a training, an evaluation or an export explains: the classifier's own, or the data set's
TARGETS = ("prediction", "label")


def synonyms(label: str) -> list[str]:
    """The names in a label: ImageNet's are lists, such as "tench, Tinca tinca"."""
    return [name.strip() for name in label.split(",")]


def short_label(label: str) -> str:
    """
    A label as captions and tables show it: its first name, or the whole where that is empty.

    Example:

    ```python
    >>> from hf_explain.io.labels import short_label

    >>> short_label("tench, Tinca tinca")
    'tench'
    ```
    """
    return synonyms(label)[0] or label
