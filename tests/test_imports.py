"""Imports go one way: a file imports only from rooms below its own, read from the source without running it."""

import ast
import functools
import importlib
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

import hf_explain


PACKAGE = Path(hf_explain.__file__).parent
# The rooms, from the ground floor up: a file imports only from rooms below its own, or from its own room.
FLOORS = (
    ("tensors", "io"),
    ("classifiers", "metrics", "training"),
    ("heads", "methods"),
    ("registry.py",),
    ("evaluation", "pipeline.py"),
    ("publish",),  # reads what an evaluation wrote
    ("apps",),
    ("__init__.py",),  # the public names
    ("cli.py",),  # the program
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room(file):
    return file.split("/")[0]


def file_of(module, name=None):
    """The file that `from module import name` reads, or `None` where it is not a module of the package."""
    parts = module.split(".")[1:]
    tries = [[*parts, name]] if name else []
    for try_parts in (*tries, parts):
        path = "/".join(try_parts)
        for candidate in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py"):
            if (PACKAGE / candidate).is_file():
                return candidate
    return None


@functools.cache
def nodes(file):
    """All of a file's syntax tree."""
    return list(ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))))


def imports(file):
    """Line, module file and statement of every import of the package's own, also inside functions and conditions."""
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"hf_explain/{file}:{node.lineno} imports relatively; imports are absolute"
            if node.module.split(".")[0] == "hf_explain":
                for alias in node.names:
                    assert alias.name != "*", f"hf_explain/{file}:{node.lineno} imports everything"
                    yield node.lineno, file_of(node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "hf_explain":
                    yield node.lineno, file_of(alias.name)


def test_every_file_lies_in_a_room():
    assert len(FILES) > 10
    assert {room(file) for file in FILES} == set(FLOOR)
    assert len([file for file in FILES if "/" not in file]) <= 7, "the hall fills up again: every module has a room"


@pytest.mark.parametrize("file", FILES)
def test_imports_come_from_below(file):
    for line, imported in imports(file):
        assert imported is not None, f"hf_explain/{file}:{line} imports a module that does not exist"
        assert room(imported) == room(file) or FLOOR[room(imported)] < FLOOR[room(file)], (
            f"hf_explain/{file}:{line} imports hf_explain/{imported}, which lies on the same floor or above"
        )
        if file.startswith("heads/") and file.count("/") == 2 and imported.count("/") == 2:
            assert Path(imported).parent == Path(file).parent, f"hf_explain/{file}:{line}: a head imports another"


def test_no_circle():
    """No module imports itself by way of others, also inside a room."""
    below = {file: {imported for _, imported in imports(file)} for file in FILES}
    done: set[str] = set()

    def visit(file, path):
        assert file not in path, " -> ".join([*path[path.index(file) :], file])
        if file not in done:
            for imported in below[file]:
                visit(imported, [*path, file])
            done.add(file)

    for file in FILES:
        visit(file, [])


def test_only_one_file_knows_what_transformers_does_not_promise():
    """Names with an underscore, and modules that its documentation does not import from."""
    inner = ("transformers.models", "transformers.dynamic_module_utils", "transformers.initialization")
    for file in FILES:
        if file == "io/transformers_names.py":
            continue
        for node in nodes(file):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "transformers":
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    assert "._" not in name and not name.startswith(inner), f"hf_explain/{file}:{node.lineno}: {name}"


def test_a_name_that_transformers_lost_is_told(monkeypatch):
    for name in ("transformers.models.auto.auto_factory", "hf_explain.io.transformers_names"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.delitem(sys.modules, "hf_explain.io.transformers_names")
    with pytest.raises(ImportError, match=r"Transformers 5\S+ lacks .*_BaseAutoModelClass.*; install one that"):
        importlib.import_module("hf_explain.io.transformers_names")


@pytest.mark.parametrize("file", FILES)
def test_no_dependency_that_users_would_have_to_work_around(file):
    for node in nodes(file):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in names:
            assert name.split(".")[0] not in {"torchvision", "cv2", "scipy", "timm"}, f"hf_explain/{file}: {name}"


def test_what_is_imported_is_declared():
    """A package that comes with another today need not do so tomorrow."""
    with open(Path(__file__).parents[1] / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split("[<>=]", requirement)[0] for requirements in lists for requirement in requirements}
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "huggingface_hub": "huggingface-hub"}
    known = {*sys.stdlib_module_names, "hf_explain", "starlette"}  # Gradio is an app of Starlette's
    for file in FILES:
        for node in nodes(file):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for module in {module.split(".")[0] for module in modules} - known:
                assert names.get(module, module) in declared, f"hf_explain/{file} imports {module}"
    assert (PACKAGE / "py.typed").is_file()


def test_only_one_file_knows_the_architectures():
    """ViT, DeiT, ConvNeXt and ResNet by class or module name appear in `architectures.py` and nowhere else."""
    classes = ("ViTFor", "DeiTFor", "ConvNextFor", "ResNetFor", "ViTModel", "layernorm_before", "encoder.stages")
    for file in FILES:
        if file == "classifiers/architectures.py":
            continue
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in nodes(file)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        }
        for node in nodes(file):
            text = None
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                text = node.value
            elif isinstance(node, (ast.Name, ast.Attribute)):
                text = node.id if isinstance(node, ast.Name) else node.attr
            if text and not file.startswith("apps/quickstart/"):  # which builds a classifier of its own
                assert not any(name in text for name in classes), f"hf_explain/{file}:{node.lineno} names {text!r}"
