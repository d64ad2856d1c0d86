"""Makes `models/wmt22_lengths.json`: token counts of real pairs, and nothing of their text.

    python benchmarks/wmt22_lengths.py --model runs/models/smollm2-135m-instruct --wmt FILE

FILE has the form of `memory_vs_dpo.py --wmt`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from models.synthetic import WMT22_LENGTHS
from models.workload import MAX_PROMPT_TOKENS, MAX_TOKENS, WMT_CHOSEN, WMT_REJECTED, read_wmt

from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.schema import TokenizedPair

COUNT, SEED = 1000, 22


def lengths_of(pair: TokenizedPair) -> list[int]:
    """Counts the tokens of [prompt, chosen, rejected, common beginning of the completions]."""
    start = min(pair.starts)
    common = max(0, pair.num_prefix - start)
    return [start, *pair.num_scored, common]


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Token counts of WMT22 pairs.")
    parser.add_argument("--model", required=True, help="folder of the tokenizer")
    parser.add_argument("--wmt", required=True, type=Path, help="jsonl.gz of WMT candidates")
    arguments = parser.parse_args()
    rows = random.Random(SEED).sample(read_wmt(arguments.wmt), 2 * COUNT)
    pairs, _ = tokenize_rows(
        rows,
        load_tokenizer(arguments.model),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_tokens=MAX_TOKENS,
        add_bos="always",  # as TRL does
    )
    lengths = [lengths_of(pair) for pair in pairs[:COUNT]]
    contents = {
        "what": f"tokens of {COUNT} pairs of WMT22, {WMT_CHOSEN} over {WMT_REJECTED}, directions "
        f"mixed; tokenizer: {Path(arguments.model).name}",
        "made by": "python benchmarks/wmt22_lengths.py --model FOLDER --wmt FILE",
        "columns": ["prompt", "chosen", "rejected", "common beginning of chosen and rejected"],
    }
    text = json.dumps(contents, indent=1)[:-2] + ',\n "lengths": [\n  '
    text += ",\n  ".join(map(json.dumps, lengths)) + "\n ]\n}\n"
    WMT22_LENGTHS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
