#!/usr/bin/env bash
# Runs the tests that need an NVIDIA GPU, then the benchmarks on models of 1.1 to 7 billion weights.
# Writes the results to benchmarks/results, with the GPU's name in theirs. Downloads no model.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/test.sh -m gpu -n 0
export PATH="$PWD/.venv/bin:$PATH"
beside_dpo() { python benchmarks/memory_vs_dpo.py --dtype bfloat16 --methods all --steps 8 "$@"; }

beside_dpo --shape tinyllama-1.1b --pairs-per-step 32 --repeats 3
beside_dpo --shape llama-2-7b --training lora --pairs-per-step 16 --repeats 3 --find-limit
python benchmarks/head_memory.py --dtype bfloat16
python benchmarks/ablations.py --shape tinyllama-1.1b --dtype bfloat16 --pairs-per-step 32
python benchmarks/scaling.py --shape tinyllama-1.1b --dtype bfloat16
python benchmarks/planner_check.py
python benchmarks/rank_scaling.py --dtype bfloat16 # over all GPUs of this host
python benchmarks/scoring.py --hidden-size 1024 --layers 24 # test.sh has made .venv-comet
