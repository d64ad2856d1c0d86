"""Pairs in ALMA's schema: its own rule and ours read them back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from alma_rule import alma_rule
from hypothesis import example, given
from hypothesis import strategies as st
from scored_rows import run, scored

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.formats import format_of
from cpo_ds.data.sources import RawRow
from cpo_ds.prepare.pairs.alma_rows import alma_row, config_name
from cpo_ds.prepare.pairs.choose import EQUAL, Pair, choose, rate, scorer_name
from cpo_ds.prepare.pairs.filters import not_equal
from cpo_ds.settings.data import DataConfig

SCORES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])  # few, so that they often tie
NAMES = ("gpt-4", "alma-13b", "a", "b", "c")


@st.composite
def scored_rows(draw: st.DrawFn) -> CandidateRow:
    systems = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    texts = {name: draw(st.sampled_from([f"{name} text", "same text"])) for name in systems}
    reference = draw(st.sampled_from([None, "the reference"]))
    translations = [*systems, *(["reference"] if reference else [])]
    scores: Any = {
        metric: {name: draw(SCORES) for name in translations if draw(st.integers(0, 9))}
        for metric in ("kiwi", "xcomet")
    }
    values: dict[str, Any] = {"scores": scores}
    if draw(st.booleans()):
        values["scorers"] = {"kiwi": {"uses_reference": draw(st.booleans())}}
    if len(translations) > 1 and draw(st.booleans()):
        chosen, rejected = draw(st.permutations(translations))[:2]
        values["preference"] = {"chosen": chosen, "rejected": rejected}
    direction = draw(st.sampled_from(["en-de", "de-en", "nl-de"]))
    return CandidateRow(direction, "the source", reference, texts, values, "x, line 1")


@example(  # 0.4 and 0.39999999999999997, which are equal up to rounding
    CandidateRow(
        "en-de", "the source", None, {name: f"{name} text" for name in ("gpt-4", "alma-13b", "c")},
        {"scores": {"kiwi": {"gpt-4": 0.3, "alma-13b": 0.0, "c": 0.1},
                    "xcomet": {"gpt-4": 0.5, "alma-13b": 0.0, "c": 0.7}}},
        "x, line 1",
    ),
    "best-each",
    ("kiwi", "xcomet"),
)  # fmt: skip
@given(
    scored_rows(),
    st.sampled_from(["best-worst", "best-each"]),
    st.sampled_from([("kiwi",), ("xcomet",), ("kiwi", "xcomet")]),
)
def test_alma_and_we_read_back_the_pair(
    row: CandidateRow, pairing: str, metrics: tuple[str, ...]
) -> None:
    pairs = choose(rate(row, metrics), pairing)
    for pair in pairs if isinstance(pairs, list) else []:
        if not_equal(pair) == EQUAL:
            continue  # dropped
        check_alma_row(pair, scorer_name(metrics))


def check_alma_row(pair: Pair, scorer: str) -> None:
    written = json.loads(json.dumps(alma_row(pair)))
    values = written["translation"]
    expected = (pair.direction, pair.chosen, pair.rejected)
    both = {pair.direction, "-".join(reversed(pair.direction.split("-")))}
    assert alma_rule(values, both, scorer) == [expected]
    assert alma_rule(values, both - {pair.direction}, scorer) == []
    data = DataConfig(format="alma-r", path="p", scorer=scorer)
    ours, raw = format_of(data, None), RawRow("x", "line", 1, written)
    assert ours.directions(raw) == [pair.direction]
    assert ours.pick(raw, pair.direction)[:3] == (pair.source, pair.chosen, (pair.rejected,))
    texts = pair.rated.row.translations
    target = pair.direction.split("-")[1]
    for slot, key in (("ref", target), ("gpt4", f"gpt4_{target}"), ("alma", f"alma_{target}")):
        assert values[key] == texts[values[f"{slot}_system"]]  # said to be whose it is
        mean = values[f"{slot}_{target}_{scorer}"]
        assert mean == (pair.rated.means | {}).get(values[f"{slot}_system"])


def slots(row: dict[str, Any], metrics: tuple[str, ...] = ("kiwi", "xcomet"), at: int = 0) -> Any:
    candidate_row = CandidateRow("en-de", "s", row["reference"], row["candidates"], row, "x")
    pairs = choose(rate(candidate_row, metrics), "best-each" if at else "best-worst")
    assert isinstance(pairs, list)
    values = alma_row(pairs[at])["translation"]
    return tuple(values[f"{slot}_system"] for slot in ("ref", "gpt4", "alma")), values


def test_slots_are_the_natural_ones_where_they_can_be() -> None:
    two = {"alma-7b": "A", "gpt-4": "G"}
    row = scored({"reference": 0.5, "alma-7b": 0.9, "gpt-4": 0.1}, candidates=two)
    assert slots(row)[0] == ("reference", "gpt-4", "alma-7b")
    row = scored({"reference": 0.5, "alma-7b": 0.9, "gpt-4": 0.9}, candidates=two)
    assert slots(row)[0] == ("reference", "alma-7b", "gpt-4")  # alma-7b is first in the row
    row = scored({"alma-7b": 0.9, "gpt-4": 0.1}, candidates=two, reference=None)
    assert slots(row)[0] == ("alma-7b", "gpt-4", "alma-7b")
    row = scored({"reference": 0.1, "a": 0.5, "b": 0.4, "c": 0.9})
    assert slots(row)[0] == ("reference", "a", "c")  # a is in the middle
    row = scored({"reference": 0.3, "a": 0.9, "b": 0.5, "c": 0.1})
    assert slots(row)[0] == ("reference", "a", "c")
    assert slots(row, at=1)[0] == ("a", "a", "b")  # the reference would be the worst


def test_a_person_s_verdict_is_delta(tmp_path: Path) -> None:
    two = {"alma-7b": "A", "gpt-4": "G"}
    row = scored(
        {"alma-7b": 0.9}, candidates=two, preference={"chosen": "gpt-4", "rejected": "alma-7b"}
    )
    names, values = slots(row)
    assert names == ("reference", "gpt-4", "alma-7b") and values["Delta"] == 1.0
    assert values["alma_de_kiwi"] == 0.9 and values["gpt4_de_kiwi"] is None
    row["preference"] = {"chosen": "alma-7b", "rejected": "gpt-4"}
    names, values = slots(row)
    assert names == ("reference", "gpt-4", "alma-7b") and values["Delta"] == -1.0


def test_languages_of_a_configuration() -> None:
    assert [config_name(way) for way in ("en-de", "de-en", "nl-de", "de-nl", "zh-en")] == [
        *("de-en", "de-en", "de-nl", "de-nl", "zh-en")
    ]


def load_alma(folder: Path, config: str, cache: Path, **options: Any) -> datasets.Dataset:
    return datasets.load_dataset(
        str(folder), config, split="train", cache_dir=str(cache), **options
    )


def test_the_first_rows_may_leave_columns_without_a_type(tmp_path: Path) -> None:
    """The datasets library guesses types from the first chunk, whose pairs have no scores."""
    person = scored({"a": 0.1}, preference={"chosen": "a", "rejected": "b"})
    del person["scores"]
    rows = [person | {"source": f"Source {n}"} for n in range(20)]
    rows += [
        scored({"a": 1, "b": 0}, language_pair="de-en", source=f"Quelle {n}") for n in range(9)
    ]
    run(tmp_path, rows)
    folder = tmp_path / "out" / "alma-r"
    loaded = load_alma(folder, "de-en", tmp_path / "cache", chunksize=500)
    assert len(loaded) == 29 and loaded[28]["translation"]["gpt4_en_kiwi_xcomet"] in (0.0, 1.0)
