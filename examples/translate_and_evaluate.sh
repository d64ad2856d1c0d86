#!/usr/bin/env bash
# Translates a test set by the model before and after training, and compares them.
#   bash translate_and_evaluate.sh MODEL RUN SOURCES REFERENCES PAIR [option of translate ...]
# SOURCES and REFERENCES have a text a line; PAIR is a direction such as en-de.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
model=$1 run=$2 sources=$3 references=$4 pair=$5
shift 5

cpo-ds translate --model "$model" --input "$sources" --references "$references" --pair "$pair" \
  --name before --output "$run/before.jsonl" "$@"
cpo-ds translate --model "$run" --input "$run/before.jsonl" --name after \
  --output "$run/translations.jsonl" "$@"
cpo-ds evaluate --input "$run/translations.jsonl" --metric bleu --metric chrf
