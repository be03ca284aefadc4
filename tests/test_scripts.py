"""The reproduction scripts run as they stand, on data they make themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("script", "name"),
    [("lcam", "lcam-fm-deit-base"), ("ttame", "ttame-convnext-small"), ("scan", "scan-cub-200")],
)
def test_reproduction_smoke(script, name, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUTPUT": str(tmp_path / "out"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / f"reproduce_{script}.sh"), "--smoke", name],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "out" / name / "training_record.json").read_text())
    assert record["steps"] == 2 and record["head"] == script
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_every_setting_of_every_paper_is_a_complete_command():
    for script, head in (("lcam", "lcam"), ("ttame", "ttame"), ("scan", "scan")):
        text = (ROOT / "scripts" / f"reproduce_{script}.sh").read_text()
        for classifier in ("$resnet", "$vit", "$deit", "$convnext"):
            assert f'"{classifier}" "$imagenet" {head}' in text
