"""Code that travels with a head: a stub that asks for its package, or a flat copy that does without it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_explain.registry import HEADS


PACKAGE = "hf_explain"
STUB = "modeling_hf_explain"
_STUB = '''"""Loads this head's classes from the package that defines them, which has to be installed."""

try:
    from {config_home} import {config}
    from {model_home} import {model}
except ImportError as error:
    raise ImportError(
        "This explainer head needs the {package} package: {advice}, then load it again "
        "(trust_remote_code is not needed then)."
    ) from error

__all__ = ["{config}", "{model}"]
'''


def auto_map(config: Mapping[str, Any], code: str) -> dict[str, str]:
    """
    The `auto_map` entry of a config.json that makes Transformers load the uploaded code.

    Args:
        config (`dict`): The head's configuration, for its `model_type`.
        code (`str`): `"stub"` or `"self-contained"`.

    Returns:
        `dict[str, str]`: Auto class to `file.Class`.
    """
    head = HEADS[config["model_type"]]
    return {
        auto_class: f"{STUB if code == 'stub' else _flat(own.__module__)}.{own.__name__}"
        for auto_class, own in (("AutoConfig", head.config), ("AutoModel", head.model))
    }


def remote_code_files(config: Mapping[str, Any], code: str | None) -> dict[str, str]:
    """
    The code files of a head's repository.

    The self-contained copy holds the head's modules and every module of this package, and of the head's own where that
    is another one, that they import, side by side, with `from hf_explain.tensors.maps import x` rewritten to
    `from .maps import x`: Transformers follows only such imports.

    Args:
        config (`dict`): The head's configuration, for its `model_type`.
        code (`str`, *optional*): `None` for none, `"stub"` or `"self-contained"`.

    Returns:
        `dict[str, str]`: File name to text.

    Raises:
        ValueError: If a module has no source file, or imports these packages in a way that cannot be rewritten.
    """
    if code is None:
        return {}
    head = HEADS[config["model_type"]]
    if code == "stub":
        own = head.package == PACKAGE
        stub = _STUB.format(
            config=head.config.__name__,
            config_home=_shortest_home(head.config),
            model=head.model.__name__,
            model_home=_shortest_home(head.model),
            package="hf-explain" if own else head.package,
            advice="run `pip install hf-explain`" if own else "install it",
        )
        return {f"{STUB}.py": stub}
    sources: dict[str, str] = {}
    waiting = [head.model.__module__, head.config.__module__]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module], imported = _rewrite(module, {PACKAGE, head.package})
            waiting += imported
    files = {f"{_flat(module)}.py": text for module, text in sorted(sources.items())}
    if len(files) != len(sources):
        raise ValueError(f"Two modules of {sorted(sources)} have the same file name, so they cannot lie side by side.")
    return files


def _flat(module: str) -> str:
    return module.split(".")[-1]


def _shortest_home(own: type) -> str:
    """The outermost package a class can be imported from: it stays where it is when modules inside are moved."""
    parts = own.__module__.split(".")
    homes = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return next(home for home in homes if getattr(importlib.import_module(home), own.__name__, None) is own)


def _source_file(module: str) -> Path | None:
    found = None if module == "__main__" else importlib.util.find_spec(module)  # a script, a notebook
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def _rewrite(module: str, packages: set[str]) -> tuple[str, list[str]]:
    """A module's source with its imports from the packages made relative, and the modules they come from."""
    file = _source_file(module)
    if file is None:
        raise ValueError(f"The head's code is in {module!r}, which is not a file to copy: define it in a module.")
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in packages:
                    package = alias.name.split(".")[0]
                    raise ValueError(
                        f"{module} line {node.lineno}: write `from {package}.x import y`, so it can be copied flat."
                    )
        if not isinstance(node, ast.ImportFrom):
            continue
        written = "." * node.level + (node.module or "")
        origin = importlib.util.resolve_name(written, module.rpartition(".")[0])
        if origin.split(".")[0] not in packages:
            continue
        home = _source_file(origin)
        if home is None or home.name == "__init__.py":
            raise ValueError(
                f"{module} line {node.lineno}: import from the module that defines the name, not from {written}, "
                "so it can be copied flat."
            )
        old, new = f"from {written} import", f"from .{_flat(origin)} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(old, new)
        imported.append(origin)
    return "".join(lines), imported
