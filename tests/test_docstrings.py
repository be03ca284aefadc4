"""Every metric and method states its formula and shows an example, and the examples in docstrings run as written."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import hf_explain


PACKAGE = Path(hf_explain.__file__).parent
ROOMS = ("tensors", "classifiers", "metrics", "methods")
MODULES = [
    ".".join(("hf_explain", *path.relative_to(PACKAGE).with_suffix("").parts))
    for room in ROOMS
    for path in sorted((PACKAGE / room).glob("*.py"))
    if path.name != "__init__.py"
]
# The modules of `metrics` whose public functions are measures, or what measures are called with
METRICS = (
    "composites", "functional", "imputation", "localization", "presets", "regions", "single_removals", "statistics"
)  # fmt: skip
# Packages an example needs that are not installed with the package
OPTIONAL = {"lime": ("captum", "sklearn"), "kernel_shap": ("captum", "sklearn")}


def functions(module):
    """The module's own public functions and classes, by name."""
    module = importlib.import_module(module)
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value):
            yield name, value


def is_method(function):
    """A training-free method, by its signature; the helpers that share it need their last two arguments."""
    if not inspect.isfunction(function):
        return False
    parameters = list(inspect.signature(function).parameters.values())
    names = [parameter.name for parameter in parameters]
    return names[:3] == ["classifier", "pixel_values", "target"] and parameters[2].default is None


DOCUMENTED = [
    pytest.param(function, id=name)
    for module in MODULES
    for name, function in functions(module)
    if is_method(function)
    or module in [f"hf_explain.metrics.{name}" for name in METRICS]
    and inspect.isfunction(function)
]
EXAMPLES = [
    pytest.param(value, id=name)
    for module in MODULES
    for name, value in functions(module)
    if ">>>" in (value.__doc__ or "")
]


def test_the_lists_are_whole():
    """Every method of the registry and every function that `metrics.functional` exports is among the documented."""
    from hf_explain.metrics import functional
    from hf_explain.registry import METHODS

    documented = {param.values[0].__name__ for param in DOCUMENTED}
    exported = {name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))}
    assert len(exported) > 10
    assert exported <= documented
    assert {name.replace("gradcam++", "gradcam_plus_plus") for name in METHODS} <= documented


@pytest.mark.parametrize("function", DOCUMENTED)
def test_formula_and_example(function):
    text = inspect.getdoc(function)
    assert re.search(r"^Formula\b.*:\n\n    \S", text, re.M), f"{function.__name__} does not state its formula"
    assert re.search(r"^Example:\n\n```python\n>>> ", text, re.M), f"{function.__name__} has no example"


@pytest.mark.parametrize("value", EXAMPLES)
def test_example_runs(value):
    for package in OPTIONAL.get(value.__name__, ()):
        pytest.importorskip(package)
    text = re.sub(r"^```.*$", "", inspect.getdoc(value), flags=re.M)  # a fence is not output
    test = doctest.DocTestParser().get_doctest(text, {}, value.__name__, value.__module__, 0)
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
