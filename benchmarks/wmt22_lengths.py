"""Makes `models/wmt22_lengths.json` and `models/wmt22_candidates.json`: token counts of real text.

    python benchmarks/wmt22_lengths.py --model runs/models/smollm2-135m-instruct --wmt FILE

FILE has the form of `memory_vs_dpo.py --wmt`. Nothing of its text is kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from itertools import groupby
from pathlib import Path
from typing import Any

from models.candidate_lists import MOST_REJECTED, WMT22_CANDIDATES, unrolled
from models.synthetic import WMT22_LENGTHS
from models.workload import MAX_PROMPT_TOKENS, MAX_TOKENS, WMT_CHOSEN, WMT_REJECTED, read_wmt

from cpo_ds.data.prompts import alma_prompt, parse_direction
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.prepare.noise import Noise, is_unspaced, noised
from cpo_ds.schema import PreferenceRow, TokenizedPair

COUNT, LISTS, SEED = 1000, 500, 22
NOISE = Noise(deletion=0.15, swap=0.3, reach=1)


def lengths_of(pair: TokenizedPair) -> list[int]:
    """Counts the tokens of [prompt, chosen, rejected, common beginning of the completions]."""
    start = min(pair.starts)
    common = max(0, pair.num_prefix - start)
    return [start, *pair.num_scored, common]


def list_lengths(pairs: list[TokenizedPair]) -> list[Any]:
    """[prompt, chosen, [[rejected, common beginning with chosen], ...]] of one row's pairs."""
    counts = [lengths_of(pair) for pair in pairs]
    prompt, chosen = (max(count[place] for count in counts) for place in (0, 1))
    # A merge of tokens at the prompt's end may differ between pairs: none is lost, by the prompt.
    return [prompt, chosen, [[rejected, min(common, chosen - 1, rejected - 1)]
                             for _, _, rejected, common in counts]]  # fmt: skip


def read_lists(path: Path) -> list[PreferenceRow]:
    """Rows with eight rejected completions: other systems', the reference, noised copies of chosen.

    Noise is that of `cpo-ds prepare noise` with its defaults. Rows with fewer different texts are
    left out.
    """
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            direction, candidates = row["language_pair"], dict(row["candidates"])
            chosen = candidates.pop(WMT_CHOSEN)
            rng, is_by_letter = random.Random(number), is_unspaced(chosen, direction)
            draws = (noised(chosen, NOISE, rng, unspaced=is_by_letter) for _ in range(50))
            texts = dict.fromkeys([*candidates.values(), row["reference"], *draws])
            others = [text for text in texts if text.strip() and text != chosen][:MOST_REJECTED]
            if len(others) == MOST_REJECTED:
                prompt = alma_prompt(row["source"], *parse_direction(direction))
                rows.append(PreferenceRow(prompt, chosen, tuple(others), direction, str(number)))
    return rows


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description="Token counts of WMT22 pairs and candidates.")
    parser.add_argument("--model", required=True, help="folder of the tokenizer")
    parser.add_argument("--wmt", required=True, type=Path, help="jsonl.gz of WMT candidates")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.model)
    rows = random.Random(SEED).sample(read_wmt(arguments.wmt), 2 * COUNT)
    lengths = [lengths_of(pair) for pair in tokenized(rows, tokenizer)[:COUNT]]
    write(
        WMT22_LENGTHS,
        f"tokens of {COUNT} pairs of WMT22, {WMT_CHOSEN} over {WMT_REJECTED}, directions mixed; "
        f"tokenizer: {Path(arguments.model).name}",
        ["prompt", "chosen", "rejected", "common beginning of chosen and rejected"],
        lengths,
    )
    lists = random.Random(SEED).sample(read_lists(arguments.wmt), 2 * LISTS)
    pairs_of = groupby(
        tokenized(unrolled(lists), tokenizer), lambda pair: pair.origin.split(".")[0]
    )
    by_row = [list(pairs) for _, pairs in pairs_of]
    whole = [list_lengths(pairs) for pairs in by_row if len(pairs) == MOST_REJECTED]
    write(
        WMT22_CANDIDATES,
        f"tokens of {LISTS} rows of WMT22, directions mixed: {WMT_CHOSEN} over {MOST_REJECTED} "
        f"others (systems, the reference, noised copies); tokenizer: {Path(arguments.model).name}",
        ["prompt", "chosen", "[rejected, common beginning of chosen and rejected] of each"],
        whole[:LISTS],
    )


def tokenized(rows: list[PreferenceRow], tokenizer: Any) -> list[TokenizedPair]:
    """The rows' pairs, without those that are too long."""
    return tokenize_rows(
        rows,
        tokenizer,
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_tokens=MAX_TOKENS,
        add_bos="always",  # as TRL does
    )[0]


def write(path: Path, what: str, columns: list[str], lengths: list[Any]) -> None:
    """Writes a file of lengths, a line for each row."""
    contents = {
        "what": what,
        "made by": "python benchmarks/wmt22_lengths.py --model FOLDER --wmt FILE",
        "columns": columns,
    }
    text = json.dumps(contents, indent=1)[:-2] + ',\n "lengths": [\n  '
    text += ",\n  ".join(map(json.dumps, lengths)) + "\n ]\n}\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
