"""The address of a view of the demo: what is shown, as a query that one browser keeps and another opens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlencode

from hf_explain.io.colors import OPACITY
from hf_explain.io.labels import short_label


REMOVED = 30  # percent of the pixels, until somebody moves the slider
_LONGEST = 2000  # characters of a query
_MOST_FIELDS = 20


@dataclass
class View:
    """
    What a page shows.

    Args:
        picture (`str`): Name of an example; empty for a visitor's own picture, which no address can hold.
        target (`int`, *optional*): The explained class; the most probable one where it is `None`.
        explainers (`tuple[str, ...]`): Their names.
        removed (`float`): Percent of the pixels removed.
        opacity (`float`): Of the overlays.
        percentile (`float`, *optional*): Of heads that take one.
    """

    picture: str = ""
    target: int | None = None
    explainers: tuple[str, ...] = ()
    removed: float = REMOVED
    opacity: float = OPACITY
    percentile: float | None = None


class Links:
    """
    Writes views as queries and reads them again; what is as it is by itself is left out.

    Args:
        id2label (`Mapping[int, str]`): Every class.
        explainers (`Sequence[str]`): Every explainer.
        default (`Sequence[str]`): Those shown by themselves.
        pictures (`Sequence[str]`): Names of the examples; the first one is shown by itself.
    """

    def __init__(
        self, id2label: Mapping[int, str], explainers: Sequence[str], default: Sequence[str], pictures: Sequence[str]
    ):
        self.explainers, self.default, self.pictures = tuple(explainers), tuple(default), tuple(pictures)
        shorts = [short_label(label) for label in id2label.values()]
        once = {short for short in shorts if shorts.count(short) == 1} if len(shorts) < 5000 else set()
        self._words = {
            index: short if short in once and not short.isdecimal() else str(index)
            for index, short in zip(id2label, shorts)
        }
        self._classes = {str(index): index for index in id2label} | {
            word.casefold(): index for index, word in self._words.items()
        }

    def write(self, view: View) -> str:
        """The query of a view, without its question mark."""
        fields: list[tuple[str, str]] = [("picture", view.picture)]
        if view.target is not None:
            fields.append(("class", self._words[view.target]))
        if view.explainers != self.default:
            fields += [("explainer", name) for name in view.explainers]
        for name, value, default in (
            ("removed", view.removed, REMOVED),
            ("opacity", view.opacity, OPACITY),
            ("percentile", view.percentile, None),
        ):
            if value is not None and value != default:
                fields.append((name, f"{value:g}"))
        return urlencode(fields)

    def read(self, query: str) -> tuple[View, str | None]:
        """
        The view of a query, and what of it there is not, as a sentence.

        Args:
            query (`str`): Anything; fields of other names are not looked at.
        """
        view, missing = View(self.pictures[0] if self.pictures else "", None, self.default), []
        try:
            fields = parse_qs(query[:_LONGEST].removeprefix("?"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        except ValueError:  # too many
            return view, "The link cannot be read; it has too many parts."
        if "picture" in fields:
            view.picture = fields["picture"][0]
            if view.picture not in ("", *self.pictures):
                missing.append(f"no example {view.picture[:100]!r}")
                view.picture = ""
        if "class" in fields:
            word = " ".join(fields["class"][0].split())
            view.target = self._classes.get(word.casefold())
            if view.target is None:
                missing.append(f"no class {word[:100]!r}")
        if "explainer" in fields:
            missing += [f"no explainer {name[:100]!r}" for name in fields["explainer"] if name not in self.explainers]
            view.explainers = tuple(name for name in fields["explainer"] if name in self.explainers) or self.default
        for name, highest in (("removed", 100), ("opacity", 1), ("percentile", 100)):
            if name in fields:
                value = _as_number(fields[name][0], highest)
                if value is None:
                    missing.append(f"no {name} {fields[name][0][:100]!r}")
                else:
                    setattr(view, name, value)
        return view, f"The link asks for what is not here: {', '.join(missing)}." if missing else None


def _as_number(text: str, highest: float) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= highest else None
