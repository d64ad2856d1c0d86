#!/usr/bin/env bash
# Sets up, then trains SmolLM2-135M-Instruct on the built-in sample with LoRA, on two ZeRO-3 ranks.
# Shows what it learned: metrics before and after, curves, translations, and what to do next.
# Arguments are passed to the run: bash scripts/demo.sh --train.epochs 3
# An earlier demo is moved to runs/demo/earlier-1 and so on. In another output_dir a run is resumed.
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

model=runs/models/smollm2-135m-instruct
if [ -f .venv/setup.stamp ] && [ -f "$model/model.safetensors" ]; then
  echo "The demo takes about 5 minutes on two CPU cores."
else
  echo "The demo takes about 10 minutes on two CPU cores, of which half to set up, and 3 GB of disk" \
    "here (.venv and runs); more with an NVIDIA GPU, for which torch is larger."
fi
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

# Check the arguments first: a wrong one must not move the finished demo.
folder=$(python scripts/output_folder.py --config recipes/demo.yaml "$@")
python scripts/make_demo_model.py "$model"
gpus=$(nvidia-smi -L 2>/dev/null | wc -l || true)
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu # without it each process warns of no GPU
ranks=$([ "$gpus" -eq 1 ] && echo 1 || echo 2)
anew=()
if [ "$folder" -ef runs/demo ]; then # any other folder may hold a run of the user's, to be resumed
  anew=(--checkpoint.resume restart)
fi
# The user's arguments come last, so that they win.
deepspeed -q --num_accelerators "$ranks" cpo_ds/train.py --config recipes/demo.yaml "${anew[@]}" "$@"
python -m cpo_ds.report.command "$folder"
# Beside other programs, threads that wait by spinning would translate for minutes.
OMP_WAIT_POLICY=PASSIVE python scripts/demo_lesson.py "$folder"
