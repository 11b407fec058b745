#!/usr/bin/env bash
# Makes .venv-byzfl: byzfl, and flcourse, with the same torch and numpy as PYTHON has, so that both
# sides of benchmarks/byzantine.py sort and multiply by the same code. Nothing else needs byzfl.
#
#   benchmarks/make_byzfl_env.sh                   # about two minutes
#   PYTHON=python3.12 benchmarks/make_byzfl_env.sh # the Python whose torch is matched
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
same() {
  "$PYTHON" -c "from importlib.metadata import version; print('$1==' + version('$1').split('+')[0])"
}

"$PYTHON" -m venv .venv-byzfl
.venv-byzfl/bin/python -m pip install --quiet --disable-pip-version-check \
  'byzfl>=0.0.11' "$(same torch)" "$(same numpy)" -e .
.venv-byzfl/bin/python -c 'from importlib.metadata import version
import byzfl, flcourse
print(*(f"{name} {version(name)}" for name in ("byzfl", "torch", "numpy")), sep=" · ")'
