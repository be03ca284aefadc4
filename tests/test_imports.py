"""Imports go one way: a file imports only from rows above its own, read from the source without running it."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

import hf_explain


PACKAGE = Path(hf_explain.__file__).parent
# Row of every file, the first pattern that fits; a file may import what lies in a smaller row. Rows 0 to 7 are the
# design's, a second number orders files that share one. Heads and methods of one row never import one another.
ROWS = {
    "outputs.py": (0,),
    "maps.py": (0,),
    "losses.py": (0, 1),
    "fingerprint.py": (0,),
    "downloads.py": (0,),
    "distributed.py": (0,),
    "images.py": (0,),
    "citations.py": (0,),
    "features.py": (0,),
    "files.py": (0,),
    "targets.py": (0,),
    "architectures.py": (0,),
    "hooked.py": (1, 0),
    "perturbation.py": (1, 0),
    "backbones.py": (1, 1),
    "configuration_explainer.py": (2, 0),
    "modeling_explainer.py": (2, 1),
    "modeling_mask_trained.py": (2, 2),
    "heads/__init__.py": (3, 0),
    "heads/*/configuration_*.py": (3, 0),
    "heads/*/modeling_*.py": (3, 2),
    "heads/*/__init__.py": (3, 3),
    "heads/*/*.py": (3, 1),
    "methods/__init__.py": (3, 0),
    "methods/common.py": (3, 0),
    "methods/gradient_defence.py": (3, 0),
    "methods/relevance.py": (3, 0),
    "methods/*.py": (3, 1),
    "mapping.py": (4, 0),
    "metrics/engine.py": (4, 0),
    "metrics/presets.py": (4, 0),
    "metrics/statistics.py": (4, 0),
    "metrics/functional.py": (4, 2),
    "metrics/__init__.py": (4, 3),
    "metrics/*.py": (4, 1),
    "metrics/*/*.py": (4, 3),
    "visualization.py": (5, 0),
    "page.py": (5, 0),
    "data.py": (5, 0),
    "checkpointing.py": (5, 0),
    "card_facts.py": (5, 0),
    "cards.py": (5, 1),
    "batching.py": (5, 1),
    "training_arguments.py": (5, 1),
    "runtime.py": (5, 2),
    "training.py": (5, 3),
    "evaluation_inputs.py": (5, 2),
    "evaluation.py": (5, 3),
    "sanity.py": (5, 4),
    "error_study.py": (5, 3),
    "error_report.py": (5, 4),
    "remote_code.py": (6, 0),
    "pipeline.py": (6, 0),
    "hub.py": (6, 1),
    "comparison.py": (6, 1),
    "export_inputs.py": (6, 0),
    "export.py": (7, 0),
    "train_command.py": (7, 0),
    "push_command.py": (7, 0),
    "demo_explainers.py": (7, 1),
    "demo.py": (7, 2),
    "evaluate_command.py": (7, 0),
    "errors_command.py": (7, 1),
    "quickstart/classifier.py": (7, 0),
    "quickstart/data.py": (7, 0),
    "quickstart/page.py": (7, 0),
    "quickstart/measure.py": (7, 1),
    "quickstart/run.py": (7, 2),
    "quickstart/__init__.py": (7, 3),
    "__init__.py": (8,),  # the public names: everything but the program itself
    "cli.py": (9,),
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def row(file):
    for pattern, place in ROWS.items():
        # a star does not cross a folder
        if pattern.count("/") == file.count("/") and fnmatch(file, pattern):
            return place
    pytest.fail(f"hf_explain/{file} has no row in {Path(__file__).name}; give it the one it belongs to")


def file_of(module, name=None):
    """The file that `from module import name` reads, or None where it is no module of the package."""
    parts = module.split(".")[1:]
    tries = [[*parts, name]] if name else []
    for try_parts in (*tries, parts):
        path = "/".join(try_parts)
        for candidate in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py"):
            if (PACKAGE / candidate).is_file():
                return candidate
    return None


def imports(file):
    """Line, module file and statement of every import of the package's own, also inside functions and conditions."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
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


def test_every_file_has_a_row():
    assert len(FILES) > 10
    for file in FILES:
        row(file)


@pytest.mark.parametrize("file", FILES)
def test_imports_come_from_above(file):
    for line, imported in imports(file):
        assert imported is not None, f"hf_explain/{file}:{line} imports a module that does not exist"
        assert row(imported) < row(file), (
            f"hf_explain/{file}:{line} (row {row(file)}) imports hf_explain/{imported} (row {row(imported)}), "
            "which does not lie above it"
        )


@pytest.mark.parametrize("file", FILES)
def test_no_dependency_that_users_would_have_to_work_around(file):
    for node in ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        for name in names:
            assert name.split(".")[0] not in {"torchvision", "cv2", "scipy", "timm"}, f"hf_explain/{file}: {name}"


def test_only_one_file_knows_the_architectures():
    """ViT, DeiT, ConvNeXt and ResNet by class or module name appear in `architectures.py` and nowhere else."""
    classes = ("ViTFor", "DeiTFor", "ConvNextFor", "ResNetFor", "ViTModel", "layernorm_before", "encoder.stages")
    for file in FILES:
        if file == "architectures.py":
            continue
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        docstrings = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        }
        for node in ast.walk(tree):
            text = None
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                text = node.value
            elif isinstance(node, (ast.Name, ast.Attribute)):
                text = node.id if isinstance(node, ast.Name) else node.attr
            if text and not file.startswith("quickstart/"):  # which builds a classifier of its own
                assert not any(name in text for name in classes), f"hf_explain/{file}:{node.lineno} names {text!r}"
