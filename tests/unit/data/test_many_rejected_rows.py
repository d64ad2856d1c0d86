"""Rows with a list of rejected completions: what is read, dropped and counted, and how it packs."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import VOCABULARY, all_sequences, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_data import PAIR, TRIPLET, X_ALMA, read, write, write_parquet

from cpo_ds.data.pack import pack
from cpo_ds.data.pair_columns import comparisons_of, pairs_fingerprint
from cpo_ds.data.pair_file import map_file, read_pairs
from cpo_ds.data.plan import check_budget
from cpo_ds.data.tokenize import Sharing, make_pair, tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run.pair_cache import keep_pairs
from cpo_ds.run.pairs import open_inputs
from cpo_ds.schema import PreferenceRow, TokenizedPair

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


@pytest.mark.parametrize(
    "written", ['[" He", " Ho"]', "[' He', ' Ho']", ' ["He"] ', "['He'\n 'Ho']"]
)
def test_a_list_that_was_written_as_text_is_refused(tmp_path: Path, written: str) -> None:
    """A csv file cannot hold a list, and its text would be learnt with brackets and commas."""
    message = r"field rejected is a list written as text.* csv and tsv\s+have no lists"
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, written)
    table = tmp_path / "p.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([[*PAIR], [PAIR["prompt"], PAIR["chosen"], written]])
    with pytest.raises(UserError, match="p.csv, line 2: " + message):
        read(table, "pairs")


def test_texts_with_brackets_are_texts(tmp_path: Path) -> None:
    for text in ("[1] He", "[He]", "[]", "[1, 2]", '["He"', "[[He]]"):
        assert rows_of(tmp_path, text)[0] == [(text,)]
    assert rows_of(tmp_path, '["He"]', chosen='["Hallo"]')[0] == [('["He"]',)]  # meant so


def test_lists_of_parquet_files(tmp_path: Path) -> None:
    rows = [PAIR | {"rejected": texts} for texts in ([" He", " Ho"], [" Hu"], [])]
    kept, report = read(write_parquet(tmp_path / "p.parquet", rows), "pairs")
    assert [row.rejected for row in kept] == [(" He", " Ho"), (" Hu",)]
    assert report.dropped == {"no rejected completion": 1}
    prompt, *turned = [{"role": "user", "content": "Hi?"}], *turns("Hallo", "He", "Ho")
    chats = [{"prompt": prompt, "chosen": turned[0], "rejected": turned[1:]}]
    kept, _ = read(write_parquet(tmp_path / "c.parquet", chats), "pairs")
    assert kept[0].rejected == ("He</assistant>", "Ho</assistant>")


@pytest.mark.parametrize("rejected", [None, "missing"])
def test_a_row_without_a_rejected_text_is_named(tmp_path: Path, rejected: str | None) -> None:
    row = {name: PAIR[name] for name in ("prompt", "chosen")}
    row |= {} if rejected else {"rejected": None}
    with pytest.raises(UserError, match=r"p\.jsonl, line 2: field rejected is missing"):
        read(write(tmp_path / "p.jsonl", [PAIR, row]), "pairs")


def test_other_formats_have_one_rejected_text(tmp_path: Path) -> None:
    row = X_ALMA | {"reject": ["He", "Ho"]}
    with pytest.raises(UserError, match=r"field reject is not a string but \['He', 'Ho'\]"):
        read(write(tmp_path / "x.jsonl", [row]), "x-alma")
    (kept,), _ = read(write(tmp_path / "t.jsonl", [TRIPLET]), "triplets", scorer="kiwi")
    assert kept.rejected == ("He",)  # the worst of three


def test_fifty_texts_make_one_pair_and_a_row_over_the_budget_is_named() -> None:
    texts = tuple(f" {number} Haus" for number in range(50))
    row = PreferenceRow("Translate: a ->", " das", texts, "", "p.jsonl:7")
    (pair,), report = tokenize_rows([row], tiny_tokenizer(), **LIMITS)
    assert pair.num_comparisons == report.comparisons == 50
    check_budget([pair], len(pair.tokens))
    with pytest.raises(UserError) as caught:
        check_budget([pair], len(pair.tokens) - 1)
    message = str(caught.value)
    assert f"pair at p.jsonl:7 has {len(pair.tokens)} unique tokens with its 50 rejected" in message
    assert message.endswith("or give it fewer rejected completions.")


def test_boundaries_that_merge_otherwise_in_each_branch() -> None:
    """Branches share what no merge changed; each is scored from its own first token."""
    prompt = "Translate this from English to German:\nEnglish: a\nGerman"
    texts = (":das alte Haus", " x", ":", "Haus", ": b")
    row = PreferenceRow(prompt, texts[0], texts[1:], "", "p.jsonl:1")
    tokenizer = tiny_tokenizer()
    (pair,), report = tokenize_rows([row], tokenizer, **LIMITS)
    assert report.merged_boundaries == 1 and len(set(pair.starts)) == 2
    alone = tokenizer(prompt, add_special_tokens=False).input_ids
    for tokens, start, text in zip(all_sequences(pair), pair.starts, texts, strict=True):
        whole = tokenizer(prompt + text, add_special_tokens=False).input_ids
        assert tokens[-len(whole) - 1 : -1] == whole and tokens[-1] == tokenizer.eos_token_id
        own = start - (len(tokens) - 1 - len(whole))
        assert whole[:own] == alone[:own] and (own == len(alone) or whole[own] != alone[own])


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
