"""The default that a docstring states is the one that the code has, wherever the code takes it from."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

import hf_explain


PACKAGE = Path(hf_explain.__file__).parent
MODULES = [
    ".".join(("hf_explain", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem != "__init__" and path.name != "app.py"  # which loads Gradio
]
STATED = re.compile(r"^ +([\w, ]+) \([^\n]*?\*optional\*,\s+defaults to\s+(?:`([^`]+)`|([-+.\de]+))\)", re.M)


def documented(module):
    """Every function, class and method that the module defines, by its name."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and (
            inspect.isclass(value) or inspect.isfunction(value)
        ):
            yield name, value
            if inspect.isclass(value):
                yield from (
                    (f"{name}.{own}", method) for own, method in vars(value).items() if inspect.isfunction(method)
                )


def defaults(value):
    """The defaults of all parameters, also of those that a data class makes anew each time."""
    found = {name: parameter.default for name, parameter in inspect.signature(value).parameters.items()}
    if dataclasses.is_dataclass(value):
        made = (field for field in dataclasses.fields(value) if field.default_factory is not dataclasses.MISSING)
        found.update({field.name: field.default_factory() for field in made})
    return found


def stated(value):
    for names, code, number in STATED.findall(inspect.getdoc(value) or ""):
        if "..." not in code:  # `0, 0.1, ..., 1`
            yield from ((name, ast.literal_eval(code or number)) for name in names.split(", "))


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_state_the_defaults(module):
    for name, value in documented(importlib.import_module(module)):
        for argument, said in stated(value):
            found = defaults(value)
            if argument not in found:  # passed on by **kwargs
                assert any(kind.kind is kind.VAR_KEYWORD for kind in inspect.signature(value).parameters.values())
            elif found[argument] is not None:  # which stands for a default that is found out later
                assert found[argument] == said, (
                    f"{name}: `{argument}` defaults to {found[argument]!r}, not to {said!r}"
                )


def test_defaults_are_found():
    """What the pattern must not stop finding."""
    modules = [importlib.import_module(module) for module in MODULES]
    assert sum(len(list(stated(value))) for module in modules for _, value in documented(module)) > 150
