"""Selected pairs of real text: ALMA's rule, TRL, the datasets library and cpo_ds read the same."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from alma_rule import alma_rule
from helpers import tiny_tokenizer
from preference_data import read, render_chat
from repository import WMT22
from sacrebleu.metrics import CHRF
from scored_rows import run
from trl_numbers import TrlNumbers, checksum

from cpo_ds.data.prompts import alma_prompt


def load_alma(folder: Path, config: str, cache: Path, **options: Any) -> datasets.Dataset:
    return datasets.load_dataset(
        str(folder), config, split="train", cache_dir=str(cache), **options
    )


# Real text, with stand-ins for scores: chrF against two of the systems, and against the reference.


@pytest.fixture(scope="module")
def real_rows() -> list[dict[str, Any]]:
    if not WMT22.exists():
        pytest.skip(f"{WMT22} is not there")
    with gzip.open(WMT22, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for number, line in enumerate(lines) if number % 70 == 0]
    chrf = CHRF()
    for row in rows:
        texts = {"reference": row["reference"], **row["candidates"]}
        row["scores"] = {
            metric: {
                name: chrf.sentence_score(text, [texts[against]]).score / 100
                for name, text in texts.items()
            }
            for metric, against in (
                ("kiwi", "wmt-winner"), ("xcomet", "gpt-3.5"), ("chrf", "reference")
            )
        }  # fmt: skip
        row["scorers"] = {
            metric: {"model": metric, "uses_reference": metric == "chrf"}
            for metric in row["scores"]
        }
    return rows


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--pairs", "best-each"),
        ("--metrics", "chrf"),
        ("--metrics", "xcomet", "--check-language", "--max-length-ratio", "2"),
    ],
    ids=" ".join,
)
def test_every_reader_sees_the_same_pairs_of_real_text(
    tmp_path: Path, real_rows: list[dict[str, Any]], options: tuple[str, ...]
) -> None:
    rows = [*real_rows]
    rows[7] = rows[7] | {"preference": {"chosen": "gpt-3.5", "rejected": "gpt-4"}}
    rows[120] = rows[120] | {"preference": {"chosen": "alma-13b-lora", "rejected": "reference"}}
    pairs, summary = run(tmp_path, rows, *options)
    assert len(pairs) > 200 and summary["human_preferences"] == 2
    assert len(summary["pairs"]) == 10
    expected = {(p["direction"], p["chosen"], p["rejected"], p["prompt"]) for p in pairs}
    assert len(expected) == len(pairs)

    # Our own readers, of both files.
    ours, report = read(
        tmp_path / "out" / "pairs.jsonl", "pairs", directions=list(summary["pairs"])
    )
    assert [(r.direction, r.chosen, r.rejected[0], r.prompt) for r in ours] == [
        (p["direction"], p["chosen"], p["rejected"], p["prompt"]) for p in pairs
    ]
    scorer = summary["scorer"]
    ours, report = read(tmp_path / "out" / "alma-r", "alma-r", scorer=scorer)
    assert {(r.direction, r.chosen, r.rejected[0], r.prompt) for r in ours} == expected
    assert len(ours) == len(pairs) and not report.dropped

    # The datasets library and ALMA's rule.
    by_alma, directions = set(), set(summary["pairs"])
    for config in ("cs-en", "de-en", "is-en", "ru-en", "zh-en"):
        loaded = load_alma(tmp_path / "out" / "alma-r", config, tmp_path / "cache")
        for row in loaded["translation"]:
            for direction, chosen, rejected in alma_rule(row, directions, scorer):
                source, target = direction.split("-")
                prompt = alma_prompt(row[source], source, target)
                by_alma.add((direction, chosen, rejected, prompt))
    assert by_alma == expected


@pytest.mark.parametrize("metric", ["kiwi", "xcomet", "kiwi_xcomet", "chrf"])
def test_scored_rows_read_as_triplets_give_the_same(
    tmp_path: Path, real_rows: list[dict[str, Any]], metric: str
) -> None:
    pairs, summary = run(tmp_path, real_rows, "--metrics", metric)
    ours, _ = read(tmp_path / "scored.jsonl", "triplets", scorer=metric)
    picked = list(
        dict.fromkeys((row.direction, row.prompt, row.chosen, row.rejected[0]) for row in ours)
    )
    assert picked == [(p["direction"], p["prompt"], p["chosen"], p["rejected"]) for p in pairs]
    assert summary["references_left_out"] == (len(real_rows) if metric == "chrf" else 0)


def test_trl_reads_both_prompt_styles(
    tmp_path: Path, real_rows: list[dict[str, Any]], trl_numbers: TrlNumbers
) -> None:
    """TRL leaves plain rows as they are and renders chats; checksums stand for the texts."""
    # Plain prompts and chats, which hold the same texts.
    _, summary = run(tmp_path, real_rows)
    file = str(tmp_path / "out" / "pairs.jsonl")
    rows = datasets.load_dataset(
        "json", data_files=file, split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(rows) == sum(summary["pairs"].values())
    chat, _ = run(tmp_path / "chat", real_rows, "--prompt-style", "chat")
    assert [row["prompt"][0]["content"] for row in chat] == rows["prompt"][:]

    def compute() -> dict[str, int]:
        from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt

        rendered = maybe_apply_chat_template(maybe_extract_prompt(chat[0]), tiny_tokenizer())
        return {
            "whose prompt is left": sum(maybe_extract_prompt(row) == row for row in rows),
            "whose texts are left": sum(
                maybe_apply_chat_template(row, tiny_tokenizer()) == row for row in rows
            ),
            **{name: checksum(rendered[name]) for name in ("prompt", "chosen", "rejected")},
        }

    # TRL on both styles, then our reader on the chats.
    assert trl_numbers.of("selected pairs", compute) == {
        "whose prompt is left": len(rows),
        "whose texts are left": len(rows),
        "prompt": checksum(f"<s>[user]{rows[0]['prompt']}[assistant]"),
        "chosen": checksum(rows[0]["chosen"] + "</s>"),
        "rejected": checksum(rows[0]["rejected"] + "</s>"),
    }
    ours, _ = read(tmp_path / "chat" / "out" / "pairs.jsonl", "pairs", render_chat)
    assert [row.direction for row in ours] == rows["direction"][:]
