"""The task of `evaluate.evaluator("saliency")`, made known without importing `evaluate`, which takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


_MODULE = "evaluate.evaluator"


def register() -> None:
    """Put the task into the list of `evaluate`: at once where that is imported, else as soon as it is."""
    if _MODULE in sys.modules:
        _add_task(import_module(_MODULE))  # which waits for another thread that is importing it
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _add_task(module: ModuleType) -> None:
    module.SUPPORTED_EVALUATOR_TASKS.setdefault(
        "saliency", {"implementation": make_evaluator, "default_metric_name": "auc_d"}
    )


def make_evaluator(**options: Any):
    """A [`~hf_explain.evaluation.evaluator.SaliencyEvaluator`], imported when it is asked for."""
    from hf_explain.evaluation.evaluator import SaliencyEvaluator

    return SaliencyEvaluator(**options)


class _Finder(MetaPathFinder):
    """Finds the one module where everybody finds it; once that has run, the task is in its list."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _MODULE else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                _add_task(module)

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]  # this loader is of this module
        return spec
