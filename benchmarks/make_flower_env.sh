#!/usr/bin/env bash
# Makes .venv-flower: Flower with its simulation, and flcourse, with the same torch as PYTHON has.
# Flower caps packages that the course leaves free, so it never shares the course's environment.
#
#   benchmarks/make_flower_env.sh                   # about two minutes
#   PYTHON=python3.12 benchmarks/make_flower_env.sh # the Python whose torch is matched
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
torch=$("$PYTHON" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])')

"$PYTHON" -m venv .venv-flower
.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check \
  'flwr[simulation]>=1.41' "torch==$torch" -e .
.venv-flower/bin/python -c 'import flcourse, flwr, ray, torch
print("flwr", flwr.__version__, "· ray", ray.__version__, "· torch", torch.__version__)'
