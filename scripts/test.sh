#!/usr/bin/env bash
# Sets up, checks style and types, then runs the tests. Other arguments go to pytest.
#   bash scripts/test.sh [-k rows]        all tests
#   bash scripts/test.sh unit [-k rows]   the quick ones in tests/unit, which need .venv alone
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
if [ "${1:-}" = unit ]; then
  shift
  set -- tests/unit "$@"
else
  bash scripts/setup.sh --comet || [ $? -eq 3 ] # 3: no Python fits; COMET's tests are skipped
  bash scripts/setup.sh --transformers4 || [ $? -eq 3 ] # 3: it cannot be installed, and is left out
  bash scripts/setup.sh --pearmut || [ $? -eq 3 ] # 3: no Python fits, or it cannot be installed
  bash scripts/setup.sh --test-hosts
fi

export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # another number would sum in another order
export TOKENIZERS_PARALLELISM=false            # it would warn in every test that forks
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1

ruff check --quiet .
ruff format --check --quiet . || {
  echo "Some files are not formatted; run: .venv/bin/ruff format ." >&2
  exit 1
}
mypy --no-error-summary

# Two processes, because tests of several ranks mostly wait and would leave cores idle. Each takes
# the next file, the slow tiers first (tests/conftest.py); without the last option pytest-xdist would
# order files by their number of tests, and one process would wait for the other at the end.
exec pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"
