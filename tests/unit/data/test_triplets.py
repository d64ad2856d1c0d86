"""Triplets: candidates of one source with scores."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from preference_data import TRIPLET, pairs_of, read, write
from repository import WMT22

from cpo_ds.errors import UserError


@pytest.mark.parametrize(
    ("scorer", "chosen", "rejected"),
    [
        ("kiwi", "Hallo", "He"),
        ("xcomet", "Servus", "Hallo"),
        ("kiwi_xcomet", "Servus", "He"),  # means .5, .15, .65
        ("xcomet-kiwi", "Servus", "He"),
        ("kiwi + xcomet", "Servus", "He"),
        ("kiwi+kiwi+xcomet", "Hallo", "He"),  # means .633, .133, .6
    ],
)
def test_triplet_scorers(tmp_path: Path, scorer: str, chosen: str, rejected: str) -> None:
    path = write(tmp_path / "t.jsonl", [TRIPLET])
    assert pairs_of(path, "triplets", scorer=scorer) == [("en-de", chosen, rejected)]


def test_triplet_prefers_a_metric_of_the_literal_name(tmp_path: Path) -> None:
    scores = TRIPLET["scores"] | {"kiwi_xcomet": {"a": 0.1, "b": 0.9, "c": 0.5}}
    path = write(tmp_path / "t.jsonl", [TRIPLET | {"scores": scores}])
    assert pairs_of(path, "triplets") == [("en-de", "He", "Hallo")]


def test_triplet_scored_reference_is_the_first_candidate(tmp_path: Path) -> None:
    kiwi = {"a": 0.9, "b": 0.1, "c": 0.5, "reference": 0.9}
    path = write(tmp_path / "t.jsonl", [TRIPLET | {"scores": {"kiwi": kiwi}}])
    assert pairs_of(path, "triplets", scorer="kiwi") == [("en-de", "Grüß Gott", "He")]


@pytest.mark.parametrize(
    ("scorer", "scorers", "chosen"),
    [
        ("kiwi", {"kiwi": {"uses_reference": False}}, "Grüß Gott"),
        ("kiwi", {"kiwi": {"uses_reference": True}}, "Hallo"),
        ("kiwi+chrf", {"kiwi": {"uses_reference": False}}, "Hallo"),  # chrF compares in any case
        ("chrf", {"chrf": {"model": "x", "uses_reference": False}}, "Grüß Gott"),
        ("chrf", None, "Hallo"),
        ("kiwi", [3], "Grüß Gott"),
    ],
)
def test_triplet_reference_is_no_candidate_of_what_compares_with_it(
    tmp_path: Path, scorer: str, scorers: Any, chosen: str
) -> None:
    scores = {"a": 0.9, "b": 0.1, "c": 0.5, "reference": 1.0}
    row = TRIPLET | {"scores": {"kiwi": scores, "chrf": scores}, "scorers": scorers}
    path = write(tmp_path / "t.jsonl", [row])
    assert pairs_of(path, "triplets", scorer=scorer) == [("en-de", chosen, "He")]


def test_triplet_without_a_preference_is_dropped(tmp_path: Path) -> None:
    equal = TRIPLET | {"scores": {"kiwi": dict.fromkeys("abc", 0.5)}}
    alone = TRIPLET | {"candidates": {"a": "Hallo", "b": None}, "scores": {"kiwi": {"a": 1}}}
    path = write(tmp_path / "t.jsonl", [equal, alone, TRIPLET])
    _, report = read(path, "triplets", scorer="kiwi")
    assert report.dropped == {"all scores equal": 1, "fewer than two candidates": 1}
    assert report.read == 3 and report.kept == {"en-de": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"kiwi": {"a": 0.9, "b": 0.1}}}, "field scores.kiwi.c is missing"),
        ({"scores": {"kiwi": {"a": 1, "b": float("nan"), "c": 0}}}, "scores.kiwi.b is nan"),
        ({"scores": {"bleu": {}}}, "scores.kiwi is missing; data.scorer is 'kiwi'.*are: bleu"),
        ({"scores": {"kiwi": 0.5}}, "field scores.kiwi is not an object but 0.5"),
        ({"scores": None}, "field scores is missing"),
        ({"candidates": ["x"]}, "field candidates is not an object"),
        ({"candidates": {"a": "x", "b": ""}}, "field candidates.b is empty"),
        ({"candidates": {"a": "x", "b": "y"}}, "candidates.c is missing, but it has a score"),
        ({"source": "\t"}, "field source is empty"),
        ({"language_pair": "en"}, "field language_pair has an unknown direction 'en'"),
        ({"source": "\ud800"}, "field source has half of a surrogate pair"),
        (
            {"reference": None, "scores": {"kiwi": dict.fromkeys(["a", "b", "c", "reference"], 1)}},
            "field reference is missing",
        ),
    ],
)
def test_triplet_errors(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(TRIPLET | change))
    with pytest.raises(UserError, match=f"t.jsonl, line 1: .*{message}"):
        read(path, "triplets", scorer="kiwi")


def test_wmt22_candidates_read_as_triplets(tmp_path: Path) -> None:
    path = WMT22
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(200)]
    for row in rows:  # shortest candidate best, so that the expectation is plain
        row["scores"] = {"short": {name: -len(t) for name, t in row["candidates"].items()}}
    picked = pairs_of(write(tmp_path / "w.jsonl", rows), "triplets", scorer="short")
    lengths = [sorted(len(text) for text in row["candidates"].values()) for row in rows]
    assert [(len(c), len(r)) for _, c, r in picked] == [
        (sizes[0], sizes[-1]) for sizes in lengths if sizes[0] != sizes[-1]
    ]
