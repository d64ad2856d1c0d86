"""Languages besides the fifty known ones: taken by codes, and named if a prompt is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from preference_data import PAIR, TRIPLET, X_ALMA, read, write
from scored_rows import refused, run, scored

from cpo_ds import cli
from cpo_ds.data.held_out import split_held_out
from cpo_ds.data.prompts import alma_prompt, parse_direction, source_of
from cpo_ds.errors import UserError
from cpo_ds.prepare.noise import is_unspaced
from cpo_ds.scoring import lexical
from cpo_ds.scoring.plan import Item

BENGALI = {"bn": "Bengali"}
PROMPT = "Translate this from English to Bengali:\nEnglish: {}\nBengali:"


@pytest.mark.parametrize(
    ("direction", "codes"),
    [
        ("en-bn", ("en", "bn")),
        ("ben-eng", ("ben", "eng")),
        ("en-pt-BR", ("en", "pt-BR")),
        ("pt_BR-en", ("pt_BR", "en")),
        ("zh-Hans-zh-Hant", ("zh-Hans", "zh-Hant")),
        ("eng_Latn-ben_Beng", ("eng_Latn", "ben_Beng")),
        ("es-419-en", ("es-419", "en")),
    ],
)
def test_codes_of_any_language(direction: str, codes: tuple[str, str]) -> None:
    assert parse_direction(direction) == codes


def test_a_prompt_by_a_name_that_was_given() -> None:
    names = {"en": "English", **BENGALI}
    prompt = alma_prompt("Hi.", "en", "bn", names)
    assert prompt == PROMPT.format("Hi.")
    assert source_of(prompt, "en-bn", names) == "Hi." and source_of(prompt, "en-bn") is None


# Training data.


def test_pairs_need_no_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", [PAIR | {"direction": "en-bn"}, PAIR | {"direction": "en-de"}]
    )
    rows, report = read(path, "pairs", directions=["en-bn"])
    assert [row.direction for row in rows] == ["en-bn"]
    assert report.kept == {"en-bn": 1} and report.dropped == {"direction not selected": 1}


BN = {
    "triplets": TRIPLET | {"language_pair": "en-bn"},
    "x-alma": X_ALMA | {"directions": "en_bn"},
    "alma-r": {
        "translation": {
            "language_pair": "bn-en", "required_directions": "en-bn", "Delta": 1.0,
            "en": "Hi", "bn": "Hallo", "gpt4_bn": "Hallo", "alma_bn": "He",
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("format", BN)
def test_a_prompt_needs_the_name(tmp_path: Path, format: str) -> None:
    path = write(tmp_path / "rows.jsonl", [BN[format]])
    scorer = {"scorer": "kiwi"} if format == "triplets" else {}
    rows, _ = read(path, format, languages=BENGALI, **scorer)
    assert [(row.prompt, row.direction) for row in rows] == [(PROMPT.format("Hi"), "en-bn")]
    message = r"rows\.jsonl, line 1: .*'bn' of en-bn, .*data\.languages: \{bn: Name\}"
    with pytest.raises(UserError, match=message):
        read(path, format, **scorer)


def test_rows_of_other_directions_need_no_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [BN["triplets"], TRIPLET])
    rows, _ = read(path, "triplets", scorer="kiwi", directions=["en-de"])
    assert [row.direction for row in rows] == ["en-de"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"Bengali": "bn"}, "data.languages: 'Bengali' is no code of a language"),
        ({"bn": " "}, "data.languages: the name of bn is ' '"),
        ({"bn": "Ben\ngali"}, "data.languages: the name of bn is"),
    ],
)
def test_names_that_no_prompt_can_hold(tmp_path: Path, names: Any, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", [PAIR])
    with pytest.raises(UserError, match=message):
        read(path, "pairs", languages=names)


def test_a_likely_slip_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [TRIPLET | {"language_pair": "en-dee"}])
    with pytest.raises(UserError, match=r"'dee' of en-dee, .*\(did you mean de\?\)"):
        read(path, "triplets", scorer="kiwi")


def test_held_out_pairs_share_no_source_with_a_named_direction(tmp_path: Path) -> None:
    """The source is found in prompts of a language that the recipe names."""
    rows = [
        TRIPLET | {"language_pair": pair, "source": f"Sentence {n}"}
        for n in range(6)
        for pair in ("en-de", "en-bn")
    ]
    kept, _ = read(write(tmp_path / "t.jsonl", rows), "triplets", scorer="kiwi", languages=BENGALI)
    names = {"en": "English", "de": "German", **BENGALI}
    for seed in range(4):
        train, held = split_held_out(kept, 0.34, seed, names)
        sources = [
            {source_of(r.prompt, r.direction, names) for r in part} for part in (train, held)
        ]
        assert len(held) == 4 and not sources[0] & sources[1]


# Commands.

SCORED = scored({"a": 0.9, "b": 0.5}, language_pair="en-bn")


def test_select_leaves_prompts_without_a_name_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    german = scored({"a": 0.9, "b": 0.5})
    pairs, summary = run(tmp_path, [SCORED, german])
    assert [pair["direction"] for pair in pairs] == ["en-de"]
    assert summary["pairs"] == {"en-bn": 1, "en-de": 1}
    assert summary["without_prompt"] == {"en-bn": 1}
    assert (
        "  left out of pairs.jsonl, en-bn: 1; a prompt needs the language's name: --language bn="
        in (capsys.readouterr().out)
    )
    # The other format holds the pair, to be read by a recipe with the name.
    folder = str(tmp_path / "out" / "alma-r")
    rows, _ = read(folder, "alma-r", languages=BENGALI)
    assert sorted(row.direction for row in rows) == ["en-bn", "en-de"]
    # With the name nothing is left out.
    pairs, summary = run(tmp_path, [SCORED, german], "--language", "bn=Bengali")
    assert pairs[0]["prompt"] == PROMPT.format("Good morning.")
    assert len(pairs) == 2 and summary["without_prompt"] == {}
    assert "left out of pairs" not in capsys.readouterr().out


@pytest.mark.parametrize("direction", ["en-zh_Hans", "pt-BR-en", "eng_Latn-ben_Beng"])
def test_alma_rows_with_long_codes(tmp_path: Path, direction: str) -> None:
    """Scores and texts are told apart although a code has underscores of its own."""
    import datasets

    run(tmp_path, [scored({"a": 0.9, "b": 0.5}, language_pair=direction)])
    folder = tmp_path / "out" / "alma-r"
    (file,) = folder.glob("*.jsonl")
    (row,) = datasets.load_dataset(str(folder), file.stem, split="train")["translation"]
    target = parse_direction(direction)[1]
    assert row[f"gpt4_{target}"] == "Guten Morgen!" and row[f"gpt4_{target}_kiwi"] == 0.9
    names = {code: code.upper() for code in parse_direction(direction)}
    (read_again,), _ = read(str(folder), "alma-r", languages=names)
    assert (read_again.chosen, *read_again.rejected) == ("Guten Morgen!", "Gute Morgen.")


def test_the_language_of_a_text_is_judged_if_it_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bengali = "আবহাওয়া আজ খুব সুন্দর এবং আগামীকালও ভালো থাকবে।"
    english = "The weather is very fine today and will be so tomorrow."
    source = "The weather is fine, and it will stay so for the whole week."
    rows = [
        scored({"a": 1, "b": 0}, language_pair="en-bn", source=source, candidates=texts)
        for texts in ({"a": bengali, "b": f"{bengali} {bengali}"}, {"a": bengali, "b": english})
    ]
    _, summary = run(tmp_path, rows, "--check-language")
    assert summary["pairs"] == {"en-bn": 1}
    assert summary["dropped"] == {"not in the target language": 1}
    rows = [row | {"language_pair": "en-xx"} for row in rows]
    said = refused(capsys, tmp_path / "2", rows, "--check-language")
    assert "cannot judge en-xx: py3langid does not know the language 'xx'" in said


def test_scores_and_the_report(tmp_path: Path) -> None:
    items = [Item("One.", "Ek ek.", "Ek.", "en-bn"), Item("One.", "一个", "一个", "en-zh_Hans")]
    assert lexical.score("chrf", items)[1] == pytest.approx(100)
    assert 0 < lexical.score("bleu", items)[0] < lexical.score("bleu", items)[1]
    rows, page = write(tmp_path / "rows.jsonl", [SCORED]), tmp_path / "page.html"
    report = ["prepare", "report", "--input", rows, "--output", page]
    assert cli.main([str(part) for part in report]) == 0
    assert "en-bn" in page.read_text(encoding="utf-8")


def test_noise_by_the_target_language() -> None:
    assert is_unspaced("abc", "en-km") and is_unspaced("abc", "en-zh_Hans")
    assert not is_unspaced("abc", "km-en")


def candidates(*arguments: object) -> int:
    return cli.main(["prepare", "candidates", *map(str, arguments)])


def test_translations_from_files_need_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = tmp_path / "s.txt", tmp_path / "a.txt"
    source.write_text("One.\nTwo.\n")
    file.write_text("Ek.\n\u200b\n")
    output = tmp_path / "out.jsonl"
    plain = ["--input", source, "--language-pair", "en-bn", "--output", output]
    assert candidates(*plain, "--system", f"a={file}") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["candidates"] for row in rows] == [{"a": "Ek."}, {}]
    assert "no translation, empty line: 1" in capsys.readouterr().out
    assert candidates(*plain, "--system", f"a={file}", "--language", "bn=Bengali") == 2
    assert "--language has no effect with --system" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["bn"], "--language bn: write CODE=NAME"),
        (["Bengali=bn"], "--language: 'Bengali' is no code"),
        (["bn="], "--language: the name of bn is ''"),
        (["bn=Bengali", "bn=Bangla"], "--language bn=Bangla: bn has a name already"),
    ],
)
def test_options_that_name_no_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    options = [part for name in given for part in ("--language", name)]
    assert message in refused(capsys, tmp_path, [SCORED], *options)
    source = tmp_path / "s.txt"
    source.write_text("One.\n")
    plain = ["--input", source, "--language-pair", "en-bn", "--output", tmp_path / "o.jsonl"]
    server = ["--server", "http://127.0.0.1:1/v1", "--model", "m"]
    assert candidates(*plain, *server, *options) == 2
    assert message in capsys.readouterr().err


def test_a_name_on_the_command_line_of_a_run() -> None:
    from cpo_ds.recipe import load_config

    config, _ = load_config(["--config", "demo", "--data.languages", "{bn: Bengali}"])
    assert config.data.languages == BENGALI == yaml.safe_load("{bn: Bengali}")
