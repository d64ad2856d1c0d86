#!/usr/bin/env bash
# Tests and measures a machine with an NVIDIA GPU, in parts of under nine minutes, the most
# important first; a call goes on where the last one ended. Downloads no model.
#   bash scripts/gpu.sh --help
# PYTHON=... picks the interpreter; without it .venv's is taken if scripts/setup.sh has made one,
# else python3, which must have torch.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
exec "$PYTHON" benchmarks/gpu.py "$@"
