"""
Settings as dataclasses whose fields say what they mean: to a person, to a check, and to a command line.

Nothing here needs PyTorch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_explain.tensors.scalars import check_choice, check_count, check_number


# Precisions of a classifier's passes, and what the options called `dtype` say of them
DTYPES = ("float32", "bfloat16", "auto")
DTYPE_HELP = (
    "precision of the classifier's passes, of explainers and metrics that keep their numbers in bfloat16; auto is "
    "bfloat16 where the device has it and the first images get the same answers"
)


def option(
    default: Any = dataclasses.MISSING,
    help: str | None = None,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: int | None = None,
    interval: str | None = None,
    **spelling: Any,
) -> Any:
    r"""
    A field of a settings dataclass.

    Args:
        default (*optional*): Its default; a list or dictionary is copied for every object. Without one it is required.
        help (`str`, *optional*): What it is, for `--help`; a field without `help` is not an option of a command line.
        choices (`tuple[str, ...]`, *optional*): The values that work.
        minimum (`int`, *optional*): The least value of a whole number.
        interval (`str`, *optional*): Where a number must lie, as for [`~hf_explain.tensors.scalars.check_number`].
        spelling: How a command line spells it, as [`~hf_explain.apps.command_line.add_options`] reads it.

    Returns:
        `dataclasses.Field`.

    Example:

    ```python
    >>> from dataclasses import dataclass
    >>> from hf_explain.tensors.options import check_options, option

    >>> @dataclass
    ... class Settings:
    ...     batch_size: int = option(8, "images per pass", minimum=1)
    ...
    ...     def __post_init__(self):
    ...         check_options(self)
    >>> Settings(batch_size=0)
    Traceback (most recent call last):
    ValueError: `batch_size` must be a whole number of at least 1, got 0.
    ```
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "interval": interval, **spelling}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_options(settings: Any) -> None:
    """Hold every field of `settings` to its choices, minimum and interval; one whose default is `None` may be it."""
    for entry in dataclasses.fields(settings):
        value, optional = getattr(settings, entry.name), entry.default is None
        if (choices := entry.metadata.get("choices")) is not None:
            for one in value if isinstance(value, list) else [value]:
                check_choice(one, entry.name, choices, optional)
        if (minimum := entry.metadata.get("minimum")) is not None:
            setattr(settings, entry.name, check_count(value, entry.name, minimum, optional))
        if (interval := entry.metadata.get("interval")) is not None:
            check_number(value, entry.name, interval, optional=optional)
