"""`cpo-ds prepare from-tm`: drafts to pairs, the held-out share, noise, and the folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from memories import dropped, from_tm, many, put, rows_of, texts, tmx, written
from preference_data import read, write

from cpo_ds import cli
from cpo_ds.prepare.memory import folder


def row(source: str, target: str, **drafts: str) -> dict[str, Any]:
    values = {"language_pair": "en-de", "source": source, "reference": target}
    return values | ({"candidates": drafts} if drafts else {})


ROWS = [
    row("Good morning to all of you.", "Guten Morgen euch allen.", base="Gute Morgen an alle."),
    row("The house is old.", "Das Haus ist alt.", base="Das  Haus ist alt. "),
    row("It is a very long sentence.", "Es ist ein sehr langer Satz, so wie er hier nun steht.",
        base="Es ist ein sehr langer Satz, so wie er hier nun steht!"),
    row("Nothing yet.", "Noch nichts."),
    row("Tea, please.", "Tee, bitte.", base="Tea bitte.", mt="Bitte Tees."),
]  # fmt: skip


def test_drafts_become_rejected_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "drafts.jsonl", ROWS)
    assert from_tm(path, tmp_path / "out", pair=None) == 0
    first, second = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert first == {
        "prompt": "Translate this from English to German:\nEnglish: Good morning to all of you.\n"
        "German:",
        "chosen": "Guten Morgen euch allen.",
        "rejected": "Gute Morgen an alle.",
        "direction": "en-de",
        "chosen_system": "reference",
        "rejected_system": "base",
        "selected_by": [],
    }
    assert second["rejected"] == ["Tea bitte.", "Bitte Tees."]
    assert second["rejected_system"] == ["base", "mt"]
    assert dropped(tmp_path / "out", "without_pair") == {
        "draft equals the target": 1,
        "draft near the target (chrF above 95)": 1,
        "no draft": 1,
    }
    # Rows keep all of it, for translations before and after.
    assert len(rows_of(tmp_path / "out" / "rows.jsonl")) == 5
    said = capsys.readouterr().out
    assert "pairs: 2, and 0 held out" in said and "no pair, draft equals the target: 1" in said
    picked, _ = read(tmp_path / "out" / "pairs.jsonl", "pairs")
    assert [len(one.rejected) for one in picked] == [1, 2]


def test_options_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write(tmp_path / "drafts.jsonl", ROWS), tmp_path / "out"
    assert from_tm(path, output, "--max-chrf", 100, "--drafts", "base", pair=None) == 0
    assert [pair["rejected_system"] for pair in rows_of(output / "pairs.jsonl")] == ["base"] * 3
    assert from_tm(path, output, "--noise", "--prompt-style", "chat", pair=None) == 0
    pairs = rows_of(output / "pairs.jsonl")
    assert [pair["rejected_system"] for pair in pairs] == ["base", "noise", ["base", "mt"]]
    noised = pairs[1]["rejected"][0]["content"]
    assert noised != "Noch nichts." and set(noised.split()) <= {"Noch", "nichts."}
    for options, said in (
        (("--drafts", "bass"), "no row has a draft of 'bass' (did you mean base?)"),
        (("--held-out", "1"), "--held-out is 1.0"),
        (("--held-out", "nan"), "--held-out is nan"),
        (("--max-chrf", "0"), "--max-chrf is 0.0"),
        (("--limit", "0"), "--limit is 0"),
        (("--check-language", "2"), "--check-language is 2.0"),
        (("--language-pair", "german"), "unknown direction 'german'"),
        (("--language-pair", "fr-de"), "another direction than fr-de: 5"),
    ):
        capsys.readouterr()
        assert from_tm(path, tmp_path / "other", *options, pair=None) == 2
        assert said in capsys.readouterr().err
    equal = write(tmp_path / "equal.jsonl", [row("Tea.", "Tee.", base="Tee.")])
    assert from_tm(equal, tmp_path / "other", pair=None) == 2
    assert "no pair is left of 1 rows (no pair, draft equals the target: 1" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()


def test_a_label_tells_sets_apart_and_changes_no_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "drafts.jsonl", ROWS)
    assert from_tm(path, tmp_path / "plain", "--noise", pair=None) == 0
    assert from_tm(path, tmp_path / "out", "--noise", "--label", "general", pair=None) == 0
    pairs = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert {pair.pop("direction") for pair in pairs} == {"en-de_general"}
    plain = rows_of(tmp_path / "plain" / "pairs.jsonl")
    assert {pair.pop("direction") for pair in plain} == {"en-de"} and pairs == plain
    picked, _ = read(tmp_path / "out" / "pairs.jsonl", "pairs")
    assert {one.direction for one in picked} == {"en-de_general"}
    assert from_tm(path, tmp_path / "other", "--label", "all text", pair=None) == 2
    assert "--label is 'all text'" in capsys.readouterr().err


def test_no_source_is_on_both_sides(tmp_path: Path) -> None:
    units = [
        texts(source, f"Ziel {n} von {target}")
        for n in range(80)
        for source, target in ((f"Word {n}", "eins"), (f"word {n}:", "zwei"))
    ]
    path = put(tmp_path / "m.tmx", tmx(*units))
    assert from_tm(path, tmp_path / "out", "--held-out", 0.25, "--noise") == 0

    def words(texts_of: list[str]) -> set[str]:
        return {re.sub(r"\W+", " ", text).lower().strip() for text in texts_of}

    held = words([source for source, _ in written(tmp_path / "out", "held_out.jsonl")])
    all_sources = words([source for source, _ in written(tmp_path / "out")])
    assert len(all_sources) == 80 and 10 <= len(held) <= 30

    def sources(name: str) -> set[str]:
        pairs = rows_of(tmp_path / "out" / name)
        return words([pair["prompt"].split("English: ")[1].split("\n")[0] for pair in pairs])

    trained = sources("pairs.jsonl")
    assert not trained & held and trained | held == all_sources
    assert sources("held_out_pairs.jsonl") == held
    # Rows with drafts of one memory are split like it, and a larger memory keeps its sides.
    again = tmp_path / "again"
    assert from_tm(tmp_path / "out" / "rows.jsonl", again, "--held-out", 0.25, pair=None) == 0
    assert written(again, "held_out.jsonl") == written(tmp_path / "out", "held_out.jsonl")
    put(tmp_path / "m.tmx", tmx(*many(30), *units))
    assert from_tm(path, again, "--held-out", 0.25) == 0
    assert set(written(tmp_path / "out", "held_out.jsonl")) < set(written(again, "held_out.jsonl"))


def test_a_share_that_holds_out_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "m.tmx", tmx(*many(3)))
    assert from_tm(path, tmp_path / "out", "--held-out", 1e-6) == 2
    assert "no row is held out of 3" in capsys.readouterr().err


def test_a_limit_draws_at_random_and_keeps_the_order(tmp_path: Path) -> None:
    path = put(tmp_path / "m.tmx", tmx(*many(100)))
    assert from_tm(path, tmp_path / "out", "--limit", 20) == 0
    drawn = [int(re.findall(r"\d+", source)[0]) for source, _ in written(tmp_path / "out")]
    assert len(drawn) == 20 and drawn == sorted(drawn) and drawn[-1] > 50
    assert dropped(tmp_path / "out") == {"beyond --limit": 80}


def test_languages_are_checked(tmp_path: Path) -> None:
    units = [
        texts("The old house stands on the hill.", "Das alte Haus steht auf dem Hügel."),
        texts("He reads a newspaper every morning.", "Il lit un journal tous les matins."),
        texts("Il lit un journal tous les matins.", "Er liest jeden Morgen eine Zeitung."),
        texts("OK {name}", "Oui {name}"),
    ]
    path = put(tmp_path / "m.tmx", tmx(*units))
    assert from_tm(path, tmp_path / "out", "--check-language") == 0
    assert dropped(tmp_path / "out") == {"target not in German": 1, "source not in English": 1}


def test_the_first_run_says_how_to_get_drafts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "m.tmx", tmx(*many(3)))
    assert from_tm(path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "no segment has a draft" in said
    assert "from-tm --input drafts.jsonl --output pairs --held-out 0\n" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"rows.jsonl", "summary.json"}
    # What it says is carried out: another step adds drafts, here those of a file.
    rows, drafts = tmp_path / "out" / "rows.jsonl", tmp_path / "drafts.jsonl"
    lines = put(tmp_path / "base.de", "Haus eins.\nHaus zwei.\n\n")
    arguments = ["--input", rows, "--output", drafts, "--system", f"base={lines}"]
    assert cli.main(["prepare", "candidates", *map(str, arguments)]) == 0
    assert from_tm(drafts, tmp_path / "pairs", pair=None) == 0
    pairs = rows_of(tmp_path / "pairs" / "pairs.jsonl")
    assert [pair["rejected"] for pair in pairs] == ["Haus eins.", "Haus zwei."]
    assert dropped(tmp_path / "pairs", "without_pair") == {"no draft": 1}


def test_the_same_bytes_again_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "m.tmx", tmx(*many(40)))
    options = ("--held-out", 0.2, "--noise", "--limit", 30)

    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    assert from_tm(path, tmp_path / "out", *options) == 0
    before = contents()
    assert sorted(before) == [
        "held_out.jsonl", "held_out_pairs.jsonl", "pairs.jsonl", "rows.jsonl", "summary.json"
    ]  # fmt: skip

    # Killed before any of its files is there, it leaves the earlier folder as it was.
    replacing = folder.replacing
    for at in range(len(before)):
        counted = iter(range(10))

        def kill(path: Path, at: int = at, counted: Any = counted) -> Any:
            if next(counted) == at:
                raise KeyboardInterrupt
            return replacing(path)

        monkeypatch.setattr(folder, "replacing", kill)
        assert from_tm(path, tmp_path / "out", *options, "--seed", 7) == 130
        assert contents() == before
    monkeypatch.setattr(folder, "replacing", replacing)
    put(tmp_path / ".out.unfinished" / "rows.jsonl", "of a killed run")
    assert from_tm(path, tmp_path / "out", *options) == 0
    assert contents() == before and not (tmp_path / ".out.unfinished").exists()
    summary = json.loads(before["summary.json"])
    assert summary["pairs"] + summary["held_out_pairs"] == 30 and summary["rows"] == {"en-de": 30}

    # Another's folder is refused.
    put(tmp_path / "mine" / "notes.txt", "mine")
    capsys.readouterr()
    assert from_tm(path, tmp_path / "mine") == 2
    assert "holds notes.txt, which is not from this command" in capsys.readouterr().err


def test_a_language_without_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "m.tmx", tmx(texts("The house", "ঘর", ("en", "bn"))))
    assert from_tm(path, tmp_path / "out", "--noise", pair="en-bn") == 2
    assert "--language bn=NAME" in capsys.readouterr().err
    named = ("--noise", "--language", "bn=Bengali")
    bengali = texts("The old house here", "এখানে পুরানো বাড়ি", ("en", "bn"))
    put(path, tmx(bengali))
    assert from_tm(path, tmp_path / "out", *named, pair="en-bn") == 0
    assert "to Bengali:" in rows_of(tmp_path / "out" / "pairs.jsonl")[0]["prompt"]
