"""Texts that look the same, texts that show nothing, and scores that differ by rounding."""

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_data import PAIR, TRIPLET, alma, pairs_of, read, write
from scored_rows import TEXTS, run, scored

from cpo_ds.data.candidates import read_candidates
from cpo_ds.data.sameness import as_seen, best_and_worst, is_blank, same_score, same_text
from cpo_ds.errors import UserError
from cpo_ds.prepare.analyses.systems import signs

UNSEEN = ["\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u200e", "\u202e", "\ufe0f"]
UNSEEN += ["\u034f", "\u3164", "\u180e", "\u061c"]
SPACES = [" ", "\n", "\t", "\u00a0", "\u3000", "\u2003", "\u2028"]
NOTHING = st.text(alphabet=UNSEEN + SPACES, max_size=6)
# Letters with marks that compose, Hangul in parts, and letters of other scripts.
LETTERS = st.text(alphabet="aeouAE.,!? \u0301\u0308\u0327\u1112\u1161\u11abß中हिसر", max_size=12)


def scattered(text: str, unseen: list[str]) -> str:
    """The text with one invisible character or none before each of its own, in turn."""
    return "".join(before + letter for before, letter in zip(itertools.cycle(unseen), text))


@given(LETTERS, st.lists(st.sampled_from(["", *UNSEEN]), min_size=1), NOTHING, NOTHING)
def test_invisible_characters_and_forms_make_no_other_text(
    text: str, unseen: list[str], before: str, after: str
) -> None:
    for form in ("NFC", "NFD"):
        written = before + scattered(unicodedata.normalize(form, text), unseen) + after
        assert same_text(text, written) and same_text(written, text)
        assert is_blank(written) == is_blank(text)


@given(st.text(), st.text())
def test_one_form_of_each_text(first: str, second: str) -> None:
    assert as_seen(as_seen(first)) == as_seen(first)
    assert is_blank(first) == (as_seen(first) == "")
    assert same_text(first, second) == (as_seen(first) == as_seen(second))


@given(st.text(alphabet="abc déß中ह", min_size=1), st.text(alphabet="abc déß中ह", min_size=1))
def test_negative_control_visible_differences_count(first: str, second: str) -> None:
    assert same_text(first, second) == (first.strip() == second.strip())


@pytest.mark.parametrize("text", ["", " ", "\x00\x1f", "\u2800", "\U000e0041", *UNSEEN, *SPACES])
def test_texts_that_show_nothing(text: str) -> None:
    assert is_blank(text) and is_blank(text * 3) and not is_blank(f"{text}.")


@pytest.mark.parametrize("text", ["0", ".", "\u0301", "\u0600", "\ue000", "👍\ufe0f"])
def test_texts_that_show_something(text: str) -> None:
    assert not is_blank(text)


# Scores.

SCORES = st.floats(-100, 100)


@given(st.permutations([0.1, 0.2, 0.3, 0.7, -0.4]), st.floats(1e-3, 1e3))
def test_sums_in_another_order_are_the_same(order: list[float], scale: float) -> None:
    first = sum(scale * score for score in (0.1, 0.2, 0.3, 0.7, -0.4)) / 5
    assert same_score(first, sum(scale * score for score in order) / 5)


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
def test_other_scores_in_single_precision_are_others(first: float, second: float) -> None:
    """Down to a millionth; below, single precision goes on to numbers that mean nothing."""
    if abs(first) > 1e-6:
        assert same_score(first, second) == (first == second)


@given(SCORES, SCORES, st.sampled_from([1e-16, 1e-13, 1e-9, 1e-7]))
def test_columns_compare_as_numbers_do(first: float, second: float, near: float) -> None:
    others = np.array([second, first, first + near, first - near, first * (1 + near), -first])
    for other, sign in zip(others, signs(np.full(6, first), others), strict=True):
        expected = 0 if same_score(first, float(other)) else 1 if first > other else -1
        assert sign == expected


@given(st.dictionaries(st.text(max_size=2), SCORES, max_size=5))
def test_the_best_is_no_worse_than_any(scores: dict[str, float]) -> None:
    picked = best_and_worst(scores)
    if picked is None:
        assert not scores or same_score(max(scores.values()), min(scores.values()))
    else:
        best, worst = picked
        assert best != worst and same_score(scores[best], max(scores.values()))
        assert same_score(scores[worst], min(scores.values()))


def test_of_scores_that_differ_by_rounding_the_first_counts() -> None:
    third = {"a": 0.1 + 0.2, "b": 0.3, "c": 0.1, "d": 0.3 - 0.2}
    assert third["a"] > third["b"] and third["c"] != third["d"]
    for names in (("b", "a", "c", "d"), ("a", "b", "d", "c")):
        assert best_and_worst({name: third[name] for name in names}) == (names[0], names[2])
    assert best_and_worst({"a": 0.1 + 0.2, "b": 0.3}) is None


def test_a_score_between_two_that_just_differ_is_no_choice_of_its_own() -> None:
    step = 0.9e-9
    assert best_and_worst({"middle": 1.0, "high": 1 + step, "low": 1 - step}) is None


# The same in all places that choose.

ROUNDED = {
    "kiwi": {"a": 0.1, "b": 0.3},
    "xcomet": {"a": 0.2, "b": 0.2},
    "other": {"a": 0.3, "b": 0.1},
}  # means 0.20000000000000004 and 0.19999999999999998


def test_means_that_differ_by_rounding_give_no_pair(tmp_path: Path) -> None:
    decided = scored({"a": 0.9, "b": 0.5}) | {"scores": {n: {"a": 0.9, "b": 0.5} for n in ROUNDED}}
    row = scored({}) | {"scores": ROUNDED}
    for pairing in ("best-worst", "best-each"):
        options = ("--metrics", "kiwi+xcomet+other", "--pairs", pairing)
        pairs, summary = run(tmp_path, [row, decided], *options)
        assert len(pairs) == 1 and summary["dropped"] == {"equal scores": 1}
    triplet = TRIPLET | {"candidates": {"a": "Hallo", "b": "He"}}
    rows = [triplet | {"scores": ROUNDED}, triplet | {"scores": decided["scores"]}]
    _, report = read(write(tmp_path / "t.jsonl", rows), "triplets", scorer="kiwi+xcomet+other")
    assert report.dropped == {"all scores equal": 1}
    near = {f"{slot}_de_kiwi_xcomet": 0.2 + n * 3e-17 for n, slot in enumerate(("ref", "gpt4"))}
    tied = alma(required_directions="en-de", **near, alma_de_kiwi_xcomet=0.1 + 0.1)
    _, report = read(write(tmp_path / "a.jsonl", [tied, alma()]), "alma-r")
    assert report.dropped == {"all scores equal": 1}


def test_margins_that_reach_the_least_one_but_for_rounding(tmp_path: Path) -> None:
    assert 0.3 - 0.1 < 0.2
    pairs, _ = run(tmp_path, [scored({"a": 0.3, "b": 0.1})], "--min-margin", "0.2")
    assert len(pairs) == 1


SAME = ["Gru\u0308ße!", " Grüße!", "Grü\u200bße!", "Grü\u00adße!\u00a0", "\ufeffGrüße!\u200d"]


@pytest.mark.parametrize("other", SAME)
def test_the_same_candidate_once_more(tmp_path: Path, other: str) -> None:
    texts = {"a": "Grüße!", "b": other, "c": "Morgen."}
    two, three = ({n: texts[n] for n in names} for names in ("ab", "abc"))
    scores = {"a": 0.9, "b": 0.1, "c": 0.5}
    rows = [scored(scores, candidates=two), scored(scores, candidates=three)]
    pairs, summary = run(tmp_path, rows)
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("Grüße!", "Morgen.")]
    assert summary["dropped"] == {"chosen equals rejected": 1}
    # The first of them counts, and is written as it is.
    reversed_texts = {"b": other, "a": "Grüße!", "c": "Morgen."}
    pairs, _ = run(tmp_path, [scored({"b": 0.9, "c": 0.1, "a": 0}, candidates=reversed_texts)])
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [(other, "Morgen.")]
    # In triplets and in pairs too.
    triplets = [
        TRIPLET | {"candidates": candidates, "scores": {"kiwi": {n: scores[n] for n in candidates}}}
        for candidates in (two, three)
    ]
    path = write(tmp_path / "t.jsonl", triplets)
    assert pairs_of(path, "triplets", scorer="kiwi") == [("en-de", "Grüße!", "Morgen.")]
    path = write(tmp_path / "p.jsonl", [PAIR | {"chosen": "Grüße!", "rejected": other}, PAIR])
    rows_read, report = read(path, "pairs")
    assert len(rows_read) == 1 and report.dropped == {"chosen equals rejected": 1}


def test_duplicates_that_differ_in_invisible_characters(tmp_path: Path) -> None:
    again = scored({"a": 0.9, "b": 0.1}, candidates=TEXTS | {"a": "Guten\u200b Morgen! "})
    pairs, summary = run(tmp_path, [scored({"a": 0.9, "b": 0.1}), again])
    assert len(pairs) == 1 and summary["dropped"] == {"duplicate": 1}


@pytest.mark.parametrize("nothing", ["\u200b", " \u00ad\n", "\ufeff", "\u2800"])
def test_an_invisible_text_is_empty(tmp_path: Path, nothing: str) -> None:
    row = scored({"a": 0.9, "b": 0.1, "c": 0.5}, candidates=TEXTS | {"b": nothing})
    path = write(tmp_path / "rows.jsonl", [row, row | {"reference": nothing}])
    (first, second), skipped = read_candidates(str(path))
    assert skipped == {"empty candidate": 2, "empty reference": 1}
    assert "b" not in first.translations and second.reference is None
    pairs, summary = run(tmp_path, [row])
    assert [(p["chosen_system"], p["rejected_system"]) for p in pairs] == [("a", "c")]
    assert summary["left_out"] == {"empty candidate": 1}


@pytest.mark.parametrize(
    ("format", "row", "field"),
    [
        ("pairs", PAIR | {"chosen": "\u200b"}, "chosen"),
        ("pairs", PAIR | {"rejected": "\u00ad \u200d"}, "rejected"),
        ("triplets", TRIPLET | {"candidates": TRIPLET["candidates"] | {"b": "\u200b"}}, "b"),
        ("alma-r", alma(gpt4_en="\u2060"), "translation.gpt4_en"),
    ],
)
def test_an_invisible_text_of_a_row_is_refused_by_name(
    tmp_path: Path, format: str, row: Any, field: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    settings = {"scorer": "kiwi"} if format == "triplets" else {}
    with pytest.raises(UserError, match=rf"rows.jsonl, line 1: field \S*{field} is empty"):
        read(path, format, **settings)
