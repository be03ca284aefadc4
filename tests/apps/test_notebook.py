"""The notebook: what is kept of its last run has pictures and no error, and (slow) it runs as it stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "scripts" / "explain_your_classifier.ipynb"
# What a notebook does with a cell: run it, and show the value of its last line
RUNNER = r"""
import ast, json, sys

names, shown = {"__name__": "__main__"}, []
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        shown.append(hasattr(value, "_repr_png_") and value._repr_png_()[:4] == b"\x89PNG")
print(json.dumps(shown))
"""


def kept():
    """Cells with code, and whether the output that is kept of each has a picture."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    return cells, [any("image/png" in output.get("data", {}) for output in cell["outputs"]) for cell in cells]


def test_it_is_kept_as_it_was_run():
    cells, pictures = kept()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"execute_result", "stream"}  # no error
    assert sum(pictures) >= 5 and NOTEBOOK.stat().st_size < 500_000
    text = NOTEBOOK.read_text("utf-8")
    assert str(Path.home()) + "/" not in text and "site-packages" not in text


@pytest.mark.slow
def test_it_runs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(NOTEBOOK)],
        cwd=NOTEBOOK.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == kept()[1]
