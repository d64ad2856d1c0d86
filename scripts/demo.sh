#!/usr/bin/env bash
# Sets up, then trains SmolLM2-135M-Instruct on the built-in sample with LoRA, on two ZeRO-3 ranks.
# Shows held-out reward accuracy and margin before and after training, and draws the curves.
# Arguments are passed to the run: bash scripts/demo.sh --train.epochs 3
# It deletes an earlier demo in runs/demo. In another output_dir it resumes the run that is there.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

for argument in "$@"; do
  if [ "$argument" = --help ] || [ "$argument" = -h ]; then
    sed -n '2,5s/^# \{0,1\}//p' scripts/demo.sh
    echo "Every setting is in docs/configuration.md, and below once .venv is set up."
    [ ! -x .venv/bin/python ] || .venv/bin/python scripts/output_folder.py --help
    exit
  fi
done

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

# Check the arguments first: a wrong one must not delete the finished demo.
folder=$(python scripts/output_folder.py --config recipes/demo.yaml "$@")
python scripts/make_demo_model.py runs/models/smollm2-135m-instruct
gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu # without it each process warns of no GPU
ranks=$([ "$gpus" -eq 1 ] && echo 1 || echo 2)
if [ "$folder" -ef runs/demo ]; then # any other folder may hold a run of the user's
  rm -rf runs/demo
fi
deepspeed -q --num_accelerators "$ranks" cpo_ds/train.py --config recipes/demo.yaml "$@"
python -m cpo_ds.report.command "$folder"
