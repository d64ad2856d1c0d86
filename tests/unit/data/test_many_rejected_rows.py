"""Rows with a list of rejected completions: what is read, dropped and counted, and how it packs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import VOCABULARY, all_sequences, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_data import PAIR, read, write

from cpo_ds.data.pack import pack
from cpo_ds.data.pair_columns import comparisons_of, pairs_fingerprint
from cpo_ds.data.pair_file import map_file, read_pairs
from cpo_ds.data.tokenize import Sharing, make_pair, tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run.pair_cache import keep_pairs
from cpo_ds.run.pairs import open_inputs
from cpo_ds.schema import TokenizedPair

LIMITS: dict[str, Any] = {"max_prompt_tokens": 99, "max_tokens": 99}


def rows_of(folder: Path, *rejected: Any, **others: Any) -> tuple[list[tuple[str, ...]], Any]:
    """The rejected texts of each kept row, and the report."""
    path = write(folder / "p.jsonl", [PAIR | {"rejected": one} | others for one in rejected])
    rows, report = read(path, "pairs")
    return [row.rejected for row in rows], report


def test_a_list_of_texts_or_one(tmp_path: Path) -> None:
    kept, report = rows_of(tmp_path, [" He", " Hej", " Ho"], " He", [" Hej"])
    assert kept == [(" He", " Hej", " Ho"), (" He",), (" Hej",)]
    assert report.lost == 0 and not any("rejected" in line for line in report.lines())


def test_texts_that_are_no_comparison_are_dropped_and_counted(tmp_path: Path) -> None:
    kept, report = rows_of(
        tmp_path, [" He", " Hallo", " He\u200b", " Ho"], [" Hallo", "Hallo "], [], [" He"]
    )
    assert kept == [(" He", " Ho"), (" He",)]
    assert report.dropped == {"chosen equals rejected": 1, "no rejected completion": 1}
    assert report.lost == 2
    line = "  rejected completions dropped from pairs, equal to chosen or to another one: 2"
    assert line in report.lines()


@pytest.mark.parametrize(
    ("rejected", "message"),
    [
        ([" He", None], r"field rejected\[1\] is not a string"),
        ([" He", " "], r"field rejected\[1\] is empty"),
        ([" He", 3], r"field rejected\[1\] is not a string but"),
        ([[" He"]], "field rejected must be of the same kind as chosen"),
        ([" He", [{"role": "assistant", "content": "He"}]], "of the same kind as chosen"),
        ({"a": " He"}, "field rejected is not a string but"),
    ],
)
def test_a_bad_text_is_named(tmp_path: Path, rejected: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, rejected)


def turns(*answers: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": answer}] for answer in answers]


def test_conversations_may_be_several_too(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Hi?"}]
    chosen, *rejected = turns("Hallo", "He", "Hej")
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    implicit = {
        "chosen": [*prompt, *chosen],
        "rejected": [[*prompt, *messages] for messages in rejected],
    }
    rows, _ = read(write(tmp_path / "p.jsonl", [row, implicit]), "pairs")
    assert rows[0].rejected == ("He</assistant>", "Hej</assistant>")
    assert rows[0].texts == rows[1].texts and rows[0].chosen == "Hallo</assistant>"


def test_tokens_that_are_no_comparison_are_dropped_and_counted() -> None:
    from cpo_ds.schema import PreferenceRow

    rows = [
        PreferenceRow("a", " b", (" c", " q7" * 90, " e"), "", "r:1"),
        PreferenceRow("a", " b", (" q7" * 90, " 9w" * 90), "", "r:2"),
        PreferenceRow("a", " b5" * 90, (" c", " d"), "", "r:3"),
    ]
    pairs, report = tokenize_rows(rows, tiny_tokenizer(), **LIMITS)
    assert [pair.num_comparisons for pair in pairs] == [2]
    reason = "prompt and completion longer than 99 tokens"
    assert report.dropped == {reason: 2} and report.lost == {reason: 1}
    lines = report.lines()
    assert f"  rejected completions dropped from pairs: 1 ({reason})" in lines
    assert "  rejected completions of these pairs: 2" in lines


def random_sequences(rng: np.random.RandomState, count: int) -> list[tuple[list[int], int]]:
    def draw(low: int, high: int) -> list[int]:
        return rng.randint(3, VOCABULARY, size=rng.randint(low, high)).tolist()

    prompt, common = [1, *draw(1, 7)], draw(0, 4)
    starts = [max(1, len(prompt) - int(rng.randint(0, 2))) for _ in range(count)]
    return [([*prompt, *common, *draw(1, 6), 2], start) for start in starts]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**20),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.sampled_from(["common", "prompt", "none"]),
)
def test_each_completion_is_scored_as_its_plain_sequence(
    seed: int, comparisons: list[int], sharing: Sharing
) -> None:
    rng = np.random.RandomState(seed)
    given_sequences = [random_sequences(rng, count + 1) for count in comparisons]
    pairs = [
        make_pair(*texts, direction="", origin="", sharing=sharing) for texts in given_sequences
    ]
    assert [all_sequences(p) for p in pairs] == [[ids for ids, _ in t] for t in given_sequences]
    batch = pack(pairs, tuple(range(len(pairs))))
    row, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()
    ends = np.cumsum([0, *map(sum, batch.segment_lengths)])

    # Read the scored targets back from the row, for each completion of each pair.
    counted: Counter = Counter()
    scores = zip(
        batch.score_positions.tolist(),
        batch.score_targets.tolist(),
        batch.score_pairs.tolist(),
        batch.score_in_chosen.tolist(),
        batch.score_in_rejected.tolist(),
        strict=True,
    )
    for index, target, number, in_chosen, in_rejected in scores:
        branches = np.cumsum([ends[number], *pairs[number].segments])
        own = branches[:-1].searchsorted(index, side="right") - 1  # 0: in the prefix
        seen = row[branches[0] : min(branches[1], index + 1)]
        seen = seen + (row[branches[own] : index + 1] if own else [])
        assert len(seen) == positions[index] + 1
        for completion, counts in enumerate([in_chosen, *in_rejected]):
            if counts:
                counted[number, completion, tuple(seen), target] += 1
    assert counted == Counter(
        (number, completion, tuple(tokens[:index]), tokens[index])
        for number, texts in enumerate(given_sequences)
        for completion, (tokens, start) in enumerate(texts)
        for index in range(start, len(tokens))
    )
    shares = batch.comparison_shares
    assert (shares.sum(1) - 1).abs().max() < 1e-6
    assert (shares > 0).sum(1).tolist() == comparisons


def config_of(folder: Path, rows: list[dict[str, Any]]) -> Any:
    from helpers import save_tiny_model

    return parse_config(
        {
            "model": {"name_or_path": str(save_tiny_model(folder / "model"))},
            "data": {"format": "pairs", "path": str(write(folder / "p.jsonl", rows))},
            "output_dir": str(folder / "run"),
        },
        "test",
    )


def test_the_cache_keeps_them(tmp_path: Path) -> None:
    words = ["He", "Hej", "Ho", "Hu", "Ha"]
    rows = [
        PAIR | {"prompt": f"Translate {n}: Hi ->", "rejected": words[: 1 + n % 5]}
        for n in range(12)
    ]
    inputs = open_inputs(config_of(tmp_path, rows), print)
    kept = keep_pairs(inputs, print)
    _, train, _ = read_pairs(map_file(kept.path), inputs.places())
    again: list[TokenizedPair] = list(train)
    assert comparisons_of(train).tolist() == [1 + n % 5 for n in range(12)]
    assert comparisons_of(again).tolist() == comparisons_of(train).tolist()
    assert pairs_fingerprint(train) == pairs_fingerprint(again)
    scored = [pair.num_scored for pair in again]
    assert all(len(one) == 2 + n % 5 and min(one) >= 1 for n, one in enumerate(scored))


def test_the_fingerprint_tells_branches_apart() -> None:
    """The same tokens, cut into branches in another way."""
    one = make_pair(([1, 5, 2], 1), ([1, 6, 2], 1), ([1, 7, 8, 2], 1), direction="", origin="")
    other = make_pair(([1, 5, 2], 1), ([1, 6, 2, 7], 1), ([1, 8, 2], 1), direction="", origin="")
    assert one.tokens.tolist() == other.tokens.tolist() and one.starts == other.starts
    assert pairs_fingerprint([one]) != pairs_fingerprint([other])
