#!/usr/bin/env bash
# Sets up, checks style and types, runs the tests. Arguments go to pytest: scripts/test.sh -k rows
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
bash scripts/setup.sh --comet || [ $? -eq 3 ] # without a Python for COMET its tests are skipped
bash scripts/setup.sh --test-hosts

export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # same sums on every machine
export TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

ruff check --quiet .
ruff format --check --quiet . || {
  echo "Not formatted; run: .venv/bin/ruff format ." >&2
  exit 1
}
mypy --no-error-summary
# Two processes share the files: most tests keep one core busy, those of several ranks wait a lot.
# Files go by their names: by their numbers of tests the slowest would come last, and one waits.
exec pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
