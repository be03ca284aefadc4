"""
A command line out of dataclasses: an option per field, which [`~hf_explain.tensors.options.option`] describes, and one
way to read what a person typed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar


Settings = TypeVar("Settings")

# Earlier names of options, in any command: they are read for good, with a note
OLD_NAMES: dict[str, tuple[str, ...]] = {
    "--disable_tqdm": ("--no_progress",),
    "--no_disable_tqdm": ("--progress",),
    "--no_use_cpu": (),
    "--self_contained_code": ("--code", "self-contained"),
    "--stub_code": ("--code", "stub"),
    "--train_split": ("--split",),
    "--use_cpu": ("--device", "cpu"),
}
_OPTION = re.compile(r"(--[A-Za-z][\w-]*)(=.*)?", re.DOTALL)


# ------------------------------------------------------------------------------------------------------- one's values


def parse_value(text: str) -> Any:
    """
    What a word on the command line stands for: a JSON value; else `True`, `False` or `None` in Python's spelling; else
    the word itself.

    Example:

    ```python
    >>> from hf_explain.apps.command_line import parse_value

    >>> [parse_value(text) for text in ("2.0", "true", "None", '["stage4"]', "stage4")]
    [2.0, True, None, ['stage4'], 'stage4']
    ```
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def format_value(value: Any) -> str:
    """The word that [`parse_value`] reads as `value`."""
    if isinstance(value, str) and parse_value(value) == value:
        return value
    return json.dumps(value)


def parse_assignments(
    words: Iterable[str], argument: str, form: str = "NAME=VALUE", example: str = "variant=img"
) -> dict[str, Any]:
    """
    Assignments as a dictionary; names with two parts give a dictionary of dictionaries.

    Args:
        words (list of `str`): As they were typed.
        argument (`str`): Name of the option, for the error.
        form (`str`, *optional*, defaults to `"NAME=VALUE"`): What an assignment looks like; every name has as many
            dots as it.
        example (`str`, *optional*): For the error.

    Raises:
        ValueError: If a word does not have this form.

    Example:

    ```python
    >>> from hf_explain.apps.command_line import parse_assignments

    >>> parse_assignments(["variant=img", "area_weight=2.0"], "head_option")
    {'variant': 'img', 'area_weight': 2.0}
    >>> parse_assignments(["rise.num_masks=10"], "method_option", "METHOD.OPTION=VALUE")
    {'rise': {'num_masks': 10}}
    ```
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        *owners, last = name.split(".", form.count("."))
        if not equals or len(owners) != form.count(".") or not all(owners) or not last.isidentifier():
            raise ValueError(f"{argument} {word!r} is not {form}: write for example {example}.")
        place = found
        for owner in owners:
            place = place.setdefault(owner, {})
        place[last] = parse_value(value)
    return found


# ------------------------------------------------------------------------------------------------------------- options


class _Switch(argparse.Action):
    """`--name` and `--no_name`."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any):
        strings = [*option_strings, option_strings[-1].replace("--", "--no_", 1)]
        super().__init__(strings, dest, nargs=0, **options)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))

    def format_usage(self) -> str:
        return " | ".join(self.option_strings)


def add_options(parser: argparse.ArgumentParser, kind: type) -> None:
    """
    Give a parser one option for each field of a dataclass that has a `help`, in a group for every class it is made of.

    Read of a field's metadata, besides `help` and `choices`: `flag` (the option's name where it is not the field's),
    `short` (`"-o"`), `positional`, `metavar`, `several` (one option takes several words; the option of any list may be
    repeated), `commas` (a list is one word with commas in it), and of a dictionary `form` and `example`, as for
    [`parse_assignments`]. A class names its group by `options_title`.

    Args:
        parser (`argparse.ArgumentParser`): Gets the options. What is not given is not in its namespace: the
            defaults are the dataclass's.
        kind (`type`): A dataclass.
    """
    groups: dict[str | None, Any] = {None: parser}
    for entry, hint in _options(kind):
        title = vars(_home(kind, entry.name)).get("options_title")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        told = entry.metadata
        described: dict[str, Any] = {"help": _help(entry), "default": argparse.SUPPRESS}
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        shape = _shape(hint)
        if told.get("positional"):
            described["metavar"] = told.get("metavar")
            described |= {"nargs": "+" if required else "*"} if shape is list else {}
            groups[title].add_argument(entry.name, **described)
            continue
        if shape is bool:
            described["action"] = _Switch
        elif shape in (list, dict) and not told.get("commas"):
            described |= {"action": "extend", "nargs": "*"} if told.get("several") else {"action": "append"}
        elif shape in (int, float):
            described["type"] = shape
        if shape is not bool:
            described["choices"] = told.get("choices")
            word = told.get("form") or (shape.__name__.upper() if shape in (int, float) else "TEXT")
            described["metavar"] = told.get("metavar") or (None if told.get("choices") else word)
        names = [told["short"]] if told.get("short") else []
        names.append(f"--{told.get('flag') or entry.name}")
        groups[title].add_argument(*names, dest=entry.name, required=required, **described)


def read_options(kind: type[Settings], namespace: argparse.Namespace) -> Settings:
    """
    The dataclass, with what a parser with [`add_options`] found.

    Raises:
        ValueError: If a value cannot be read, or the dataclass refuses it.
    """
    given: dict[str, Any] = {}
    for entry, hint in _options(kind):
        if not hasattr(namespace, entry.name):
            continue
        value, told = getattr(namespace, entry.name), entry.metadata
        if _shape(hint) is dict:
            value = parse_assignments(value, told.get("flag") or entry.name, told["form"], told["example"])
        elif told.get("commas"):
            value = [word.strip() for word in value.split(",") if word.strip()]
        given[entry.name] = value
    return kind(**given)


def as_words(settings: Any) -> list[str]:
    """The command line that [`read_options`] reads as these settings; what is `None` or empty is left out."""
    words: list[str] = []
    for entry, hint in _options(type(settings)):
        value, told = getattr(settings, entry.name), entry.metadata
        name = f"--{told.get('flag') or entry.name}"
        if _shape(hint) is bool:
            words += [] if value == entry.default else [name if value else name.replace("--", "--no_", 1)]
        elif value is None or value in ([], {}):
            continue
        elif told.get("positional"):
            words = [*map(str, value if isinstance(value, list) else [value]), *words]
        elif isinstance(value, Mapping):
            for assignment in _assignments(value, told["form"].count(".")):
                words += [name, assignment]
        elif told.get("commas"):
            words += [name, ",".join(value)]
        elif isinstance(value, list):
            words += [name, *value] if told.get("several") else [word for one in value for word in (name, str(one))]
        else:
            words += [name, str(value)]
    return words


def current_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """
    A command line with the options spelled as they are called today: `_` for `-`, and no old name.

    Returns:
        `tuple[list[str], list[str]]`: The words, and a sentence about every old name.
    """
    found: list[str] = []
    notes: list[str] = []
    for place, word in enumerate(words):
        if word == "--":  # what follows is not an option
            return [*found, *words[place:]], notes
        match = _OPTION.fullmatch(word)
        if match is None:
            found.append(word)
            continue
        name, value = "--" + match[1][2:].replace("-", "_"), match[2] or ""
        today = OLD_NAMES.get(name)
        if today is None:
            found.append(name + value)
        else:
            found += [*today[:-1], today[-1] + value] if today else []
            notes.append(f"{match[1]} is called {' '.join(today)} now." if today else f"{match[1]} has no effect now.")
    return found, notes


def part_of(settings: Any, kind: type[Settings]) -> Settings:
    """A `kind` with the values of its fields in `settings`; other fields of `settings` are ignored."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # every `Settings` is a dataclass
    return kind(**{entry.name: getattr(settings, entry.name) for entry in fields})


# -------------------------------------------------------------------------------------------------------------- pieces


def _options(kind: type) -> list[tuple[dataclasses.Field, Any]]:
    """The fields that are options, with their types: those of the class itself first, as it lists them."""
    hints = typing.get_type_hints(kind)
    fields = {entry.name: entry for entry in dataclasses.fields(kind) if entry.metadata.get("help")}
    listed = dict.fromkeys(name for one in kind.__mro__ for name in inspect.get_annotations(one))
    return [(fields[name], hints[name]) for name in listed if name in fields]


def _home(kind: type, name: str) -> type:
    """The class that defines a field, or the last one to redefine it."""
    return next(one for one in kind.__mro__ if name in inspect.get_annotations(one))


def _shape(hint: Any) -> type:
    """`bool`, `int`, `float`, `list`, `dict`, or `str` for everything else."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    origin = typing.get_origin(hint)
    if isinstance(origin, type):
        return dict if issubclass(origin, Mapping) else list if issubclass(origin, Sequence) else str
    return hint if hint in (bool, int, float) else str


def _help(entry: dataclasses.Field) -> str:
    default = entry.default
    if entry.default_factory is not dataclasses.MISSING:
        default = ",".join(map(str, entry.default_factory()))
    text = entry.metadata["help"]
    if not entry.metadata.get("positional") and default not in (dataclasses.MISSING, None, False, ""):
        text += f" (default: {'yes' if default is True else default})"
    return text.replace("%", "%%")


def _assignments(value: Mapping[str, Any], depth: int) -> list[str]:
    if depth == 0:
        return [f"{name}={format_value(one)}" for name, one in value.items()]
    return [f"{name}.{rest}" for name, inner in value.items() for rest in _assignments(inner, depth - 1)]
