#!/usr/bin/env bash
# The one check: lint, types and tests.
#   scripts/check.sh            with the python at hand
#   scripts/check.sh --fix      mend what ruff can mend first
#   scripts/check.sh --fresh    in a new virtual environment, as CI does
#   scripts/check.sh --lowest   in a new one with every dependency at its lower bound, those of the extras too
#   scripts/check.sh --newest   in a new one with every dependency, torch too, at the newest version there is
# Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
mode=""
venv=""
case "${1:-}" in
  --fix)
    shift
    "$python" -m ruff check --fix .
    "$python" -m ruff format .
    ;;
  --fresh | --lowest | --newest)
    mode=$1
    shift
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
    "$python" -m venv "$venv"
    python=$venv/bin/python
    if [ "$mode" = --fresh ]; then
      # torch by itself first: the CPU build, where the index has one, before anything asks for a CUDA build
      "$python" -m pip install --quiet "torch==2.13.0"
    fi
    if [ "$mode" = --lowest ]; then
      "$python" - > "$venv/lowest.txt" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [extra for name, extra in project["optional-dependencies"].items() if name != "test"]
print("\n".join(requirement.replace(">=", "==") for requirement in sum(extras, project["dependencies"])))
PYTHON
      "$python" -m pip install --quiet -r "$venv/lowest.txt"
      "$python" -m pip install --quiet -c "$venv/lowest.txt" ".[test]"
    else
      "$python" -m pip install --quiet ".[test]"
    fi
    "$python" -m pip list 2>/dev/null | grep -iE "^(torch|transformers|huggingface|datasets|accelerate|evaluate|safetensors|numpy|pillow) " || true
    ;;
esac

"$python" -m ruff check .
"$python" -m ruff format --check .
[ "$mode" = --lowest ] || "$python" -m mypy  # old releases have other annotations
# two processes of one thread each: the models are too small for more threads to help
OMP_NUM_THREADS=1 "$python" -m pytest --numprocesses 2 --dist worksteal "$@"
