"""What comes in when: `import hf_explain` and the program leave out what only some of the work needs."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest

import hf_explain
from hf_explain.cli import COMMANDS
from hf_explain.evaluation import task


ROOT = Path(hf_explain.__file__).parents[1]
# what a metric, a data set or a picture needs, beyond what Transformers' own pipelines import
LATER = ("captum", "datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "sklearn")
# what nothing needs that only answers a question about the program
HEAVY = {*LATER, "PIL", "accelerate", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}


def python(*words):
    """What Python prints when it is started with these words."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_what_pipelines_need_and_no_more():
    code = (
        "import sys, transformers.pipelines\nbefore = set(sys.modules)\nimport hf_explain\n"
        f"print(sorted(set({LATER!r}) & set(sys.modules) - before))\n"
        # and yet everything is registered and every public name is there
        "from transformers import CONFIG_MAPPING\n"
        "assert {'lcam', 'ttame', 'scan'} <= set(CONFIG_MAPPING)\n"
        "assert transformers.pipelines.PIPELINE_REGISTRY.check_task('saliency')\n"
        "assert [type(finder).__module__ for finder in sys.meta_path].count('hf_explain.evaluation.task') == 1\n"
        "assert set(hf_explain.__all__) <= set(dir(hf_explain))\n"
    )
    assert python("-c", code).strip() == "[]"


def test_every_public_name_can_be_imported():
    names = {}
    exec("from hf_explain import *", names)
    assert set(hf_explain.__all__) <= set(names)


def test_evaluate_may_be_imported_later_and_again(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if not isinstance(finder, task._Finder)])
    monkeypatch.delitem(sys.modules, "evaluate.evaluator")
    monkeypatch.setattr(evaluate, "evaluator", evaluate.evaluator)  # of this name are a module and a function
    task.register()
    task.register()
    assert len([finder for finder in sys.meta_path if isinstance(finder, task._Finder)]) == 1
    module = importlib.import_module("evaluate.evaluator")
    assert isinstance(module.evaluator("saliency"), hf_explain.SaliencyEvaluator)
    assert isinstance(importlib.reload(module).evaluator("saliency"), hf_explain.SaliencyEvaluator)


def test_evaluate_may_be_imported_first(monkeypatch):
    evaluator = importlib.import_module("evaluate.evaluator")
    monkeypatch.delitem(evaluator.SUPPORTED_EVALUATOR_TASKS, "saliency")
    finders = list(sys.meta_path)
    task.register()
    assert isinstance(evaluate.evaluator("saliency"), hf_explain.SaliencyEvaluator)
    assert sys.meta_path == finders


@pytest.mark.parametrize(
    ("argv", "orig_argv", "is_the_program"),
    [
        (["/usr/bin/hf-explain", "train"], ["python", "/usr/bin/hf-explain", "train"], True),
        ([r"hf-explain.exe"], ["python", "hf-explain.exe"], True),
        (["-m", "--help"], ["python", "-X", "dev", "-m", "hf_explain.cli", "--help"], True),
        (["-m"], ["python", "-mhf_explain.cli"], True),
        # all others are somebody's own programs
        (["hf-explain.py"], ["python", "hf-explain.py"], False),
        (["hf-explain/run.py", "hf-explain"], ["python", "hf-explain/run.py", "hf-explain"], False),
        (["-m", "hf_explain.cli"], ["python", "-m", "mine", "hf_explain.cli"], False),
        (["-c"], ["python", "-c", "import hf_explain"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_only_the_program_itself_registers_later(monkeypatch, argv, orig_argv, is_the_program):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert hf_explain._is_the_program() == is_the_program


def test_public_names_are_those_that_editors_see():
    tree = ast.parse(Path(hf_explain.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"hf_explain.{home}" for name, home in hf_explain._HOMES.items()}
    with pytest.raises(AttributeError, match="module 'hf_explain' has no attribute 'Nothing'"):
        hf_explain.Nothing  # noqa: B018


def test_the_program_answers_without_what_only_its_work_needs(tmp_path):
    questions = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    (tmp_path / "hf-explain").write_text(
        f"import sys\nfrom hf_explain.cli import main\nfor sys.argv[1:] in {questions}:\n"
        "    try:\n        main()\n    except SystemExit as end:\n"
        f"        print('|', *sys.argv[1:], end.code, *sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    answers = [line.split() for line in python(tmp_path / "hf-explain").splitlines() if line.startswith("| ")]
    assert answers == [["|", *words, "0"] for words in questions]
