"""Code that travels with a head: a stub that asks for the package, or a flat copy that does without it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_explain.registry import resolve_head


PACKAGE = "hf_explain"
STUB = "modeling_hf_explain"
_STUB = '''"""Loads this head's classes from the hf-explain package, which has to be installed."""

try:
    from hf_explain import {config}, {model}
except ImportError as error:
    raise ImportError(
        "This explainer head needs the hf-explain package: run `pip install hf-explain`, then load it again "
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
    model = resolve_head(config["model_type"])
    settings = model.config_class
    if code == "stub":
        return {"AutoConfig": f"{STUB}.{settings.__name__}", "AutoModel": f"{STUB}.{model.__name__}"}
    return {
        "AutoConfig": f"{_flat(settings.__module__)}.{settings.__name__}",
        "AutoModel": f"{_flat(model.__module__)}.{model.__name__}",
    }


def remote_code_files(config: Mapping[str, Any], code: str | None) -> dict[str, str]:
    """
    The code files of a head's repository.

    The self-contained copy holds the head's modules and every module of the package they import, side by side, with
    `from hf_explain.tensors.maps import x` rewritten to `from .maps import x`: Transformers follows only such imports.

    Args:
        config (`dict`): The head's configuration, for its `model_type`.
        code (`str`, *optional*): `None` for none, `"stub"` or `"self-contained"`.

    Returns:
        `dict[str, str]`: File name to text.

    Raises:
        ValueError: If a module imports the package in a way that cannot be rewritten.
    """
    if code is None:
        return {}
    model = resolve_head(config["model_type"])
    if code == "stub":
        return {f"{STUB}.py": _STUB.format(config=model.config_class.__name__, model=model.__name__)}
    sources: dict[str, str] = {}
    waiting = [model.__module__, model.config_class.__module__]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module], imported = _rewrite(module)
            waiting += imported
    files = {f"{_flat(module)}.py": text for module, text in sorted(sources.items())}
    if len(files) != len(sources):
        raise ValueError(f"Two modules of {sorted(sources)} have the same file name, so they cannot lie side by side.")
    return files


def _flat(module: str) -> str:
    return module.split(".")[-1]


def _rewrite(module: str) -> tuple[str, list[str]]:
    """A module's source with its imports from the package made relative, and the modules they come from."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
            raise ValueError(
                f"{module} line {node.lineno}: write `from {PACKAGE}.x import y`, so it can be copied flat."
            )
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE:
            continue
        origin = importlib.util.find_spec(node.module).origin
        if node.level or origin is None or Path(origin).name == "__init__.py":
            raise ValueError(
                f"{module} line {node.lineno}: import from the module that defines the name, not from {node.module}, "
                "so it can be copied flat."
            )
        old, new = f"from {node.module} import", f"from .{_flat(node.module)} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(old, new)
        imported.append(node.module)
    return "".join(lines), imported
