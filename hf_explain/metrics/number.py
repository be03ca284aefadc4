"""What the numbers of a metric's result are called, and which way they are better. It stands once, with the metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """
    One number of a metric's result.

    Args:
        key (`str`): Its key in the result.
        name (`str`): What it is called in a sentence.
        higher_is_better (`bool`, *optional*): Whether a larger one is of a better map; `None` where it says nothing
            about the map.
        unit (`str`, *optional*, defaults to `""`): `"%"` or `"points"` where it goes up to 100, nothing where up to 1.
        heading (`str`, *optional*): What it is called above a column; `name` where not given.
        per_percent (`bool`, *optional*, defaults to `False`): There is one for every percentage `v` of pixels, with
            the key `KEY_v`. The first of them may stand under `key` as well.
        in_tables (`bool`, *optional*, defaults to `True`): Whether a table that has to fit a page shows it.
        ranks (`bool`, *optional*, defaults to `False`): Whether it is told who is ahead by it, as it is by the first
            number of every metric.

    Example:

    ```python
    >>> from hf_explain.metrics import Number

    >>> drop = Number("average_drop", "average drop", False, "%", heading="AD", per_percent=True)
    >>> drop.heading_of("average_drop_50"), drop.title_of("average_drop_50")
    ('AD 50', 'Average drop at 50 %')
    ```
    """

    key: str
    name: str
    higher_is_better: bool | None
    unit: str = ""
    heading: str | None = None
    per_percent: bool = False
    in_tables: bool = True
    ranks: bool = False

    def describes(self, key: str) -> bool:
        """Whether `key` of a result is this number's."""
        return key == self.key or self.per_percent and self._percent(key) is not None

    def heading_of(self, key: str) -> str:
        """`key` above a column."""
        percent = self._percent(key)
        return f"{self.heading or self.name}{'' if percent is None else f' {percent}'}"

    def title_of(self, key: str) -> str:
        """`key` at the beginning of a row."""
        percent = self._percent(key)
        return f"{self.name[:1].upper()}{self.name[1:]}{'' if percent is None else f' at {percent} %'}"

    @property
    def decimals(self) -> int:
        """How many decimals a table shows."""
        return 1 if self.unit else 3

    def _percent(self, key: str) -> str | None:
        """The `v` of `KEY_v`."""
        start, _, percent = key.rpartition("_")
        return percent if start == self.key and percent[:1].isdigit() else None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Number:
        """What `to_json` wrote."""
        return cls(**value)


def unknown_number(key: str, higher_is_better: bool | None = None) -> Number:
    """A number that no metric describes, by its key alone."""
    return Number(key, key.replace("_", " "), higher_is_better)


def find_number(numbers: Iterable[Number], key: str) -> Number:
    """The one of `numbers` that `key` of a result is, or what the key alone tells."""
    return next((number for number in numbers if number.describes(key)), unknown_number(key))
