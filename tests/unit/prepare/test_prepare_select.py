"""`cpo-ds prepare select`: what is chosen and dropped, and that all readers of it agree."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import launch
import pytest
from helpers import tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from preference_data import read, render_chat, write
from repository import ROOT, WMT22
from sacrebleu.metrics import CHRF
from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt

from cpo_ds import cli
from cpo_ds.config import DataConfig
from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.formats import format_of
from cpo_ds.data.prompts import alma_prompt
from cpo_ds.data.sources import RawRow
from cpo_ds.prepare.pairs.alma_rows import alma_row, config_name
from cpo_ds.prepare.pairs.choose import Pair, choose, rate, scorer_name

TEXTS = {"a": "Guten Morgen!", "b": "Gute Morgen.", "c": "Morgen."}


def scored(
    kiwi: dict[str, float | None],
    xcomet: dict[str, float | None] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """An English-German row; the reference takes part where it has scores."""
    scores = {"kiwi": kiwi, "xcomet": kiwi if xcomet is None else xcomet}
    row = {
        "language_pair": "en-de",
        "source": "Good morning.",
        "reference": "Guten Morgen.",
        "candidates": TEXTS,
        "scores": scores,
    }
    return row | changes


def run(folder: Path, rows: list[Any], *options: object) -> tuple[list[Any], dict[str, Any]]:
    """Selects from rows; returns the pairs written and the summary."""
    path, output = write(folder / "scored.jsonl", rows), folder / "out"
    arguments = ["prepare", "select", "--input", path, "--output", output, *options]
    assert cli.main([str(argument) for argument in arguments]) == 0
    lines = (output / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((output / "summary.json").read_text())


def names(folder: Path, rows: list[Any], *options: object) -> list[tuple[str, str]]:
    pairs, _ = run(folder, rows, *options)
    return [(pair["chosen_system"], pair["rejected_system"]) for pair in pairs]


def refused(
    capsys: pytest.CaptureFixture[str], folder: Path, rows: list[Any], *options: object
) -> str:
    """What is said of rows or options that are wrong; nothing may be written."""
    path = write(folder / "scored.jsonl", rows)
    arguments = ["prepare", "select", "--input", path, "--output", folder / "out", *options]
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert not (folder / "out").exists()
    said = capsys.readouterr().err
    assert said.startswith("cpo_ds: error: ") and said.count("\n") == 1
    return said


# What is chosen.


def test_best_against_worst_by_the_mean(tmp_path: Path) -> None:
    kiwi = {"reference": 0.9, "a": 0.8, "b": 0.1, "c": 0.5}
    xcomet = {"reference": 0.5, "a": 0.9, "b": 0.4, "c": 0.2}  # means .7, .85, .25, .35
    pairs, summary = run(tmp_path, [scored(kiwi, xcomet)])
    assert pairs == [
        {
            "prompt": "Translate this from English to German:\nEnglish: Good morning.\nGerman:",
            "chosen": "Guten Morgen!",
            "rejected": "Gute Morgen.",
            "direction": "en-de",
            "chosen_system": "a",
            "rejected_system": "b",
            "margin": pytest.approx(0.6),
        }
    ]
    assert summary["metrics"] == ["kiwi", "xcomet"] and summary["scorer"] == "kiwi_xcomet"
    assert summary["chosen"] == {"en-de": {"a": 1}} and summary["rejected"] == {"en-de": {"b": 1}}
    assert names(tmp_path, [scored(kiwi, xcomet)], "--metrics", "xcomet") == [("a", "c")]
    assert names(tmp_path, [scored(kiwi, xcomet)], "--metrics", "kiwi") == [("reference", "b")]


def test_best_against_each(tmp_path: Path) -> None:
    row = scored({"reference": 0.2, "a": 0.9, "b": 0.1, "c": 0.9})
    pairs, summary = run(tmp_path, [row], "--pairs", "best-each")
    picked = [(p["chosen_system"], p["rejected_system"], p["margin"]) for p in pairs]
    assert picked == [("a", "reference", pytest.approx(0.7)), ("a", "b", pytest.approx(0.8))]
    assert summary["dropped"] == {"equal scores": 1}  # c is as good as a


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"reference": 0.9, "a": 0.9, "b": 0.1, "c": 0.1}, ("reference", "b")),
        ({"reference": 0.1, "a": 0.1, "b": 0.9, "c": 0.9}, ("b", "reference")),
        ({"reference": 0.5, "c": 0.9, "b": 0.9, "a": 0.1}, ("b", "a")),  # in the row's order
    ],
)
def test_of_equal_scores_the_first_counts(
    tmp_path: Path, scores: dict[str, float], expected: tuple[str, str]
) -> None:
    assert names(tmp_path, [scored(scores)]) == [expected]


@pytest.mark.parametrize(
    ("kiwi", "xcomet"),
    [
        ("kiwi-xxl", "XCOMET-XXL"),
        ("wmt23-cometkiwi-da-xxl", "xcomet-xxl"),
        ("Unbabel/wmt23-cometkiwi-da-xxl", "Unbabel/XCOMET-XXL"),
    ],
)
def test_the_usual_metrics_under_their_usual_names(tmp_path: Path, kiwi: str, xcomet: str) -> None:
    row = scored({"a": 0.9, "b": 0.1})
    row["scores"] = {"chrf": {"a": 0, "b": 1}, kiwi: {"a": 0.9, "b": 0.1}, xcomet: {"a": 1, "b": 0}}
    pairs, summary = run(tmp_path, [row])
    assert pairs[0]["margin"] == pytest.approx(0.9)
    assert summary["metrics"] == [kiwi, xcomet] and summary["scorer"] == "kiwi_xcomet"
    assert run(tmp_path, [row], "--metrics", "xcomet+kiwi")[1]["scorer"] == "kiwi_xcomet"
    assert run(tmp_path, [row], "--metrics", "xcomet_kiwi")[1]["metrics"] == [kiwi, xcomet]


def test_a_metric_of_any_name_with_a_plus_or_a_path(tmp_path: Path) -> None:
    row = scored({"a": 0.9, "b": 0.1}) | {"scores": {"runs/a+b.ckpt": {"a": 0, "b": 1}}}
    assert names(tmp_path, [row], "--metrics", "runs/a+b.ckpt") == [("b", "a")]


def test_metrics_that_compare_with_the_reference_leave_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = scored({"reference": 1.0, "a": 0.2, "b": 0.7, "c": 0.4})
    row["scorers"] = {"kiwi": {"uses_reference": False}, "xcomet": {"uses_reference": True}}
    pairs, summary = run(tmp_path, [row])
    assert (pairs[0]["chosen_system"], pairs[0]["rejected_system"]) == ("b", "a")
    assert summary["references_left_out"] == 1 and summary["scorers"]["xcomet"] == [
        {"uses_reference": True}
    ]
    assert "  references left out, as a metric compares with them: 1\n" in capsys.readouterr().out
    assert names(tmp_path, [row], "--metrics", "kiwi") == [("reference", "a")]
    row = row | {"scores": {"chrf": row["scores"]["kiwi"]}, "scorers": None}
    assert names(tmp_path, [row], "--metrics", "chrf") == [("b", "a")]  # chrF always compares


def test_what_has_no_score_is_counted(tmp_path: Path) -> None:
    rows = [
        scored({"reference": None, "a": 0.9, "b": 0.1}, {"a": 0.9, "b": 0.1, "c": 1.0}),
        scored({"a": 0.9}),
        scored({"a": 0.7, "b": 0.1}, reference=None, candidates={"b": "B", "a": "A", "d": " "}),
    ]
    pairs, summary = run(tmp_path, rows)
    assert len(pairs) == 2
    assert summary["dropped"] == {"fewer than two scored translations": 1}
    assert summary["unscored_translations"] == 2 + 3 + 0
    assert summary["rows"] == 3 and summary["left_out"] == {"empty candidate": 1}


def test_a_person_goes_before_the_scores(tmp_path: Path) -> None:
    scores = {"reference": 0.5, "a": 0.9, "b": 0.1, "c": 0.4}
    rows = [
        scored(scores, preference={"chosen": "b", "rejected": "a"}),
        scored(scores, preference={"chosen": "reference", "rejected": "c"}, source="Hi there."),
        scored(scores, preference=None, source="Hello."),
    ]
    for pairing in ("best-worst", "best-each"):
        pairs, summary = run(tmp_path, rows, "--min-margin", 0.2, "--pairs", pairing)
        picked = [(p["chosen_system"], p["rejected_system"], p["margin"]) for p in pairs[:2]]
        assert picked == [("b", "a", pytest.approx(-0.8)), ("reference", "c", pytest.approx(0.1))]
        assert pairs[2]["chosen_system"] == "a"
        assert summary["human_preferences"] == 2
    rows = [{key: value for key, value in row.items() if key != "scores"} for row in rows[:2]]
    pairs, summary = run(tmp_path, rows)  # without any score too
    assert [p["margin"] for p in pairs] == [None, None] and summary["metrics"] == []
    kept, _ = read(tmp_path / "out" / "alma-r", "alma-r")
    assert [(row.chosen, row.rejected) for row in kept] == [
        (TEXTS["b"], TEXTS["a"]),
        ("Guten Morgen.", TEXTS["c"]),
    ]


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "triplets.md").read_text(encoding="utf-8")
    row, preference, pair = map(json.loads, re.findall(r"```json\n(.*?)\n```", text, flags=re.S))
    pairs, _ = run(tmp_path, [row], "--metrics", "kiwi")
    assert pairs == [pair | {"margin": pytest.approx(pair["margin"])}]
    assert names(tmp_path, [row | preference], "--metrics", "kiwi") == [("gpt-4", "reference")]


# What is dropped.


def test_margin_duplicates_and_equal_texts(tmp_path: Path) -> None:
    good = scored({"a": 0.9, "b": 0.5})
    rows = [
        good,
        good | {"source": "Morning."},
        good | {"scores": scored({"a": 0.8, "b": 0.1})["scores"]},
        good | {"language_pair": "en-nl"},
        good | {"candidates": {"a": "same", "b": "same"}},
        scored({"a": 0.9, "b": 0.75}),
        scored({"a": 0.9, "b": 0.9}),
    ]
    pairs, summary = run(tmp_path, rows, "--min-margin", "0.2")
    assert [(p["prompt"].split("\n")[1], p["direction"]) for p in pairs] == [
        ("English: Good morning.", "en-de"),
        ("English: Morning.", "en-de"),
        ("English: Good morning.", "en-nl"),
    ]
    assert summary["dropped"] == {
        "duplicate": 1,
        "chosen equals rejected": 1,
        "margin below 0.2": 1,
        "equal scores": 1,
    }


def test_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [scored({"a": 0.9, "b": 0.5}, language_pair=way) for way in ("en-de", "en-nl", "en-sv")]
    pairs, summary = run(tmp_path, rows, "--directions", "en-sv, en-de")
    assert [pair["direction"] for pair in pairs] == ["en-de", "en-sv"]
    assert summary["dropped"] == {"direction not selected": 1}
    said = refused(capsys, tmp_path / "2", rows, "--directions", "en-de,de-en")
    assert (
        "--directions: de-en is not in the rows; choose among those that are: en-de, en-nl" in said
    )
    said = refused(capsys, tmp_path / "2", rows, "--directions", "en-dee")
    assert "--directions: unknown direction 'en-dee'" in said and "did you mean en-de?" in said


def test_lengths_against_the_direction_s_median(tmp_path: Path) -> None:
    def row(source: str, a: str, b: str) -> dict[str, Any]:
        return scored({"a": 1, "b": 0}, source=source, reference=None, candidates={"a": a, "b": b})

    rows = [
        row("x" * 10, "y" * 20, "z" * 20),  # ratios 2, 2
        row("x" * 20, "y" * 40, "z" * 40),  # 2, 2: the median
        row("x" * 30, "y" * 60, "z" * 121),  # 2, 4.03: too long
        row("x" * 40, "y" * 160, "z" * 40),  # 4, 1: both just within
        row("x" * 50, "y" * 49, "z" * 100),  # .98, 2: too short
    ]
    pairs, summary = run(tmp_path, rows, "--max-length-ratio", 2)
    assert [len(pair["chosen"]) for pair in pairs] == [20, 40, 160]
    assert summary["dropped"] == {"length 2 times off": 2}
    other = [
        row | {"language_pair": "en-nl", "candidates": {"a": "y", "b": "z"}} for row in rows[:2]
    ]
    _, summary = run(tmp_path, rows + other, "--max-length-ratio", 2)
    assert summary["pairs"] == {"en-de": 3, "en-nl": 2}  # a median of its own


def test_languages(tmp_path: Path) -> None:
    english = "The weather has been fine since the beginning of the week."
    german = "Das Wetter ist seit Anfang der Woche schön und soll so bleiben."
    other = "Das Wetter war in dieser Woche meistens gut, sagte sie."
    french = "Il fait beau depuis le début de la semaine, dit-elle."
    dutch = "Het weer is sinds het begin van de week erg mooi geweest."

    def row(a: str, b: str, source: str = english) -> dict[str, Any]:
        return scored({"a": 1, "b": 0}, source=source, candidates={"a": a, "b": b})

    rows = [row(german, other), row(french, german), row(german, dutch), row(german, english)]
    rows += [row("Rome", "Paris"), row(f" {english}", german)]  # too short to tell; a copy
    pairs, summary = run(tmp_path, rows, "--check-language")
    assert [pair["chosen"] for pair in pairs] == [german, "Rome"]
    assert summary["dropped"] == {"not in the target language": 2, "copy of the source": 2}
    _, summary = run(tmp_path, rows, "--check-language", "1")
    assert summary["options"]["check_language"] == 1.0
    assert summary["dropped"] == {"copy of the source": 2}  # nobody is so sure
    assert len(run(tmp_path, rows)[0]) == 6


def test_without_py3langid_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    said = refused(capsys, tmp_path, [scored({"a": 1, "b": 0})], "--check-language")
    assert "pip install 'cpo-ds[langid]'" in said


# Errors.


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, ["--metrics", "kiwi+bleu"], "no row has a score by 'bleu'; set --metrics to one of"),
        ({}, ["--metrics", "xcomt"], "'xcomt' (did you mean xcomet?); set"),
        ({}, ["--metrics", "kiwi+kiwi-xxl"], "names kiwi twice"),
        ({"scores": {}}, [], "no row of --input has scores; make some with `cpo-ds prepare score`"),
        ({"scores": {"chrf": {"a": 1}}}, ["--metrics", "kiwi"], "by 'kiwi'; set --metrics to one"),
        ({"scores": [1]}, [], "line 2: field scores is not an object of objects"),
        ({"scores": {"kiwi": 1}}, [], "line 2: field scores is not an object of objects"),
        ({"scores": {"kiwi": {"a": float("nan")}}}, [], "2: field scores.kiwi.a is not a finite"),
        ({"scores": {"kiwi": {"a": True}}}, [], "field scores.kiwi.a is not a finite number"),
        (
            {"scores": {"kiwi": {"a": "1"}}},
            [],
            "field scores.kiwi.a is not a finite number but '1'",
        ),
        ({"preference": "a"}, [], "line 2: field preference is not an object but 'a'"),
        ({"preference": {"chosen": "a"}}, [], "line 2: field preference.rejected is None; write"),
        (
            {"preference": {"chosen": ["a"], "rejected": "b"}},
            [],
            "field preference.chosen is ['a']",
        ),
        (
            {"preference": {"chosen": "gpt", "rejected": "b"}},
            [],
            "preference.chosen is 'gpt'; write one of the row's translations: reference, a, b, c.",
        ),
        ({"preference": {"chosen": "a", "rejected": "a"}}, [], "'a' as chosen and as rejected"),
        ({"language_pair": "en-xx"}, [], "line 2: field language_pair has an unknown direction"),
        ({}, ["--min-margin", "-1"], "--min-margin is -1.0"),
        ({}, ["--min-margin", "nan"], "--min-margin is nan"),
        ({}, ["--min-margin", "0.9"], "no pair is left of 2 rows (dropped: margin below 0.9: 2)"),
        ({}, ["--max-length-ratio", "1"], "--max-length-ratio is 1.0; give a number above 1"),
        ({}, ["--check-language", "70"], "--check-language is 70.0; give a probability"),
    ],
)
def test_errors_say_what_and_where(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    options: list[str],
    message: str,
) -> None:
    row = scored({"a": 0.9, "b": 0.5})
    rows = [row, row | change] if "field" in message else [row | change, row | change]
    assert message in refused(capsys, tmp_path, rows, *options)


def test_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "select", "--output", tmp_path / "o"]
    path = write(tmp_path / "s.jsonl", [scored({"a": 0.75, "b": 0.25, "reference": 0.5})])
    done = launch.finish(launch.start([*map(str, command), "--input", str(path)]))
    assert done.code == 0
    assert done.output == (
        "read 1 rows, selected 1 pairs by kiwi + xcomet\n"
        "  en-de: 1\n"
        "  chosen: a 100%\n"
        "  rejected: b 100%\n"
        "  translations without a score by kiwi + xcomet: 1\n"
        f"written to {tmp_path / 'o'}: pairs.jsonl, alma-r, summary.json\n"
    )
    done = launch.finish(launch.start([*map(str, command), "--input", "nowhere.jsonl"]))
    assert done.code == 2 and "nowhere.jsonl" in done.output and "Traceback" not in done.output


# The folder.


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_same_rows_give_the_same_bytes_and_nothing_stays_behind(tmp_path: Path) -> None:
    rows = [scored({"a": 0.9, "b": 0.1}, language_pair=way) for way in ("en-de", "nl-de", "cs-en")]
    run(tmp_path, rows)
    before = contents(tmp_path / "out")
    assert set(before) == {
        *("pairs.jsonl", "summary.json", "alma-r/README.md"),
        *("alma-r/cs-en.jsonl", "alma-r/de-en.jsonl", "alma-r/de-nl.jsonl"),
    }
    run(tmp_path, rows[:1])
    assert {name for name in contents(tmp_path / "out") if name.endswith("en.jsonl")} == {
        "alma-r/de-en.jsonl"
    }
    run(tmp_path, rows)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scored.jsonl"]


def test_a_folder_of_another_kind_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "scored.jsonl", [scored({"a": 0.9, "b": 0.1})])

    def said(output: Path) -> str:
        arguments = ["prepare", "select", "--input", str(path), "--output", str(output)]
        assert cli.main(arguments) == 2
        return capsys.readouterr().err

    write(tmp_path / "mine" / "pairs.jsonl", [{"prompt": "precious"}])
    assert "mine holds pairs.jsonl, which is not from this command" in said(tmp_path / "mine")
    run(tmp_path, [scored({"a": 0.9, "b": 0.1})])
    (tmp_path / "out" / "notes.txt").write_text("precious")
    assert "out holds notes.txt, which is not from" in said(tmp_path / "out")
    assert "scored.jsonl is a file; give a folder" in said(path)
    assert "cannot be written: Not a directory" in said(path / "below")
    assert (tmp_path / "out" / "notes.txt").exists() and "precious" in (
        tmp_path / "mine" / "pairs.jsonl"
    ).read_text()


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cpo_ds.prepare import select

    run(tmp_path, [scored({"a": 0.9, "b": 0.1})])
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(select, "write_alma_rows", full)
    arguments = ["prepare", "select", "--input", tmp_path / "scored.jsonl", "--output"]
    assert cli.main([*map(str, arguments), str(tmp_path / "out")]) == 2
    assert "out cannot be written: No space left on device; make room" in capsys.readouterr().err
    assert contents(tmp_path) == before


# ALMA's schema: its own rule, ours, and the datasets library read the pairs back.


def alma_rule(row: dict[str, Any], pairs: set[str], scorer: str) -> list[tuple[str, str, str]]:
    """What ALMA trains on: its `cpo_prompt_function` and `get_chosen_reject`, written anew."""
    found = []
    source, target = row["language_pair"].split("-")
    for direction, into, out_of in (
        (f"{source}-{target}", target, source),
        (f"{target}-{source}", source, target),
    ):
        assert isinstance(row[out_of], str) and isinstance(row[into], str)  # both make prompts
        required = row["required_directions"]
        if direction not in pairs or (required != "" and required.split("-")[1] != into):
            continue
        if row["Delta"] != 0:
            better, worse = ("gpt4", "alma") if row["Delta"] > 0 else ("alma", "gpt4")
            found.append((direction, row[f"{better}_{into}"], row[f"{worse}_{into}"]))
            continue
        sentences = [row[into], row[f"gpt4_{into}"], row[f"alma_{into}"]]
        scores = [row[f"{name}_{into}_{scorer}"] for name in ("ref", "gpt4", "alma")]
        best, worst = scores.index(max(scores)), scores.index(min(scores))
        found.append((direction, sentences[best], sentences[worst]))
    return found


SCORES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])  # few, so that they often tie
NAMES = ("gpt-4", "alma-13b", "a", "b", "c")


@st.composite
def scored_rows(draw: st.DrawFn) -> CandidateRow:
    systems = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    texts = {name: draw(st.sampled_from([f"{name} text", "same text"])) for name in systems}
    reference = draw(st.sampled_from([None, "the reference"]))
    there = [*systems, *(["reference"] if reference else [])]
    scores: Any = {
        metric: {name: draw(SCORES) for name in there if draw(st.integers(0, 9))}
        for metric in ("kiwi", "xcomet")
    }
    values: dict[str, Any] = {"scores": scores}
    if draw(st.booleans()):
        values["scorers"] = {"kiwi": {"uses_reference": draw(st.booleans())}}
    if len(there) > 1 and draw(st.booleans()):
        chosen, rejected = draw(st.permutations(there))[:2]
        values["preference"] = {"chosen": chosen, "rejected": rejected}
    direction = draw(st.sampled_from(["en-de", "de-en", "nl-de"]))
    return CandidateRow(direction, "the source", reference, texts, values, "x, line 1")


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
        if pair.margin == 0 and not pair.is_human:
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
    assert ours.pick(raw, pair.direction) == (pair.source, pair.chosen, pair.rejected)
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
    """The library guesses types from the first chunk; people's pairs have no scores there."""
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

    ours, report = read(
        tmp_path / "out" / "pairs.jsonl", "pairs", directions=list(summary["pairs"])
    )
    assert [(r.direction, r.chosen, r.rejected, r.prompt) for r in ours] == [
        (p["direction"], p["chosen"], p["rejected"], p["prompt"]) for p in pairs
    ]
    scorer = summary["scorer"]
    ours, report = read(tmp_path / "out" / "alma-r", "alma-r", scorer=scorer)
    assert {(r.direction, r.chosen, r.rejected, r.prompt) for r in ours} == expected
    assert len(ours) == len(pairs) and not report.dropped

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
    found = list(
        dict.fromkeys((row.direction, row.prompt, row.chosen, row.rejected) for row in ours)
    )
    assert found == [(p["direction"], p["prompt"], p["chosen"], p["rejected"]) for p in pairs]
    assert summary["references_left_out"] == (len(real_rows) if metric == "chrf" else 0)


def test_trl_reads_both_prompt_styles(tmp_path: Path, real_rows: list[dict[str, Any]]) -> None:
    _, summary = run(tmp_path, real_rows)
    file = str(tmp_path / "out" / "pairs.jsonl")
    rows = datasets.load_dataset(
        "json", data_files=file, split="train", cache_dir=str(tmp_path / "c")
    )
    assert len(rows) == sum(summary["pairs"].values())
    assert all(maybe_extract_prompt(row) == row for row in rows)
    assert all(maybe_apply_chat_template(row, tiny_tokenizer()) == row for row in rows)

    chat, _ = run(tmp_path / "chat", real_rows, "--prompt-style", "chat")
    assert [row["prompt"][0]["content"] for row in chat] == rows["prompt"][:]
    rendered = maybe_apply_chat_template(maybe_extract_prompt(chat[0]), tiny_tokenizer())
    assert rendered["prompt"] == f"<s>[user]{rows[0]['prompt']}[assistant]"
    assert rendered["chosen"] == rows[0]["chosen"] + "</s>"
    assert rendered["rejected"] == rows[0]["rejected"] + "</s>"
    ours, _ = read(tmp_path / "chat" / "out" / "pairs.jsonl", "pairs", render_chat)
    assert [row.direction for row in ours] == rows["direction"][:]
