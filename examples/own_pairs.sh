#!/usr/bin/env bash
# Trains a LoRA adapter on preference pairs of your own, and prints what it learned.
#   bash own_pairs.sh MODEL PAIRS RUN [--section.field value ...]
# MODEL is a folder or a Hugging Face name, PAIRS a file of lines like
#   {"prompt": "...", "chosen": "...", "rejected": "..."}
# Given again after an interruption, it goes on from the last checkpoint.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
model=$1 pairs=$2 run=$3
shift 3

# It takes all GPUs of this machine; cpo-ds train --hostfile FILE those of several hosts.
cpo-ds train --config own-pairs \
  --model.name_or_path "$model" --data.path "$pairs" --output-dir "$run" "$@"
cpo-ds report "$run"
