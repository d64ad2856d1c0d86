#!/usr/bin/env bash
# Sets up, then trains SmolLM2-135M-Instruct on the built-in sample with LoRA, on two ZeRO-3 ranks.
# Shows held-out reward accuracy and margin before and after, and draws the curves.
# Arguments go to the run: bash scripts/demo.sh --train.epochs 3
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu # else each process warns that it found no GPU
ranks=$([ "$gpus" -eq 1 ] && echo 1 || echo 2)
rm -rf runs/demo # the demo starts anew; a run of yours goes on from its last checkpoint
deepspeed -q --num_accelerators "$ranks" cpo_ds/train.py --config recipes/demo.yaml "$@"
python -m cpo_ds.report runs/demo
