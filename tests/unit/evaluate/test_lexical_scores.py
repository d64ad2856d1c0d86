"""BLEU and chrF of whole test sets, against published numbers and the `sacrebleu` command."""

from __future__ import annotations

import gzip
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluated import evaluate, row, scores
from repository import WMT22

from cpo_ds.scoring import corpus

# BLEU of published outputs, computed by the `sacrebleu` command, in the order of DIRECTIONS.
DIRECTIONS = [f"en-{x}" for x in ("de", "cs", "is", "zh", "ru")]
DIRECTIONS += [f"{x}-en" for x in ("de", "cs", "is", "zh", "ru")]
PUBLISHED = {
    "alma-13b-lora": [31.49, 32.47, 26.72, 39.87, 29.03, 31.26, 45.36, 37.06, 25.48, 40.26],
    "gpt-4": [34.49, 33.66, 24.67, 42.78, 28.67, 32.46, 46.77, 41.24, 23.80, 40.98],
    "wmt-winner": [38.37, 45.80, 33.29, 44.80, 32.40, 33.45, 64.18, 41.66, 33.51, 45.06],
}
MEANS = {"alma-13b-lora": (31.92, 35.88), "gpt-4": (32.86, 37.05), "wmt-winner": (38.93, 43.57)}


def by_command(folder: Path, rows: list[Any], system: str, metric: str, tokenizer: str) -> float:
    """The score that the `sacrebleu` command prints, with 12 digits after the point."""
    texts = {
        "hypotheses": [row["candidates"][system] for row in rows],
        "references": [row["reference"] for row in rows],
    }
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [
        sys.executable, "-m", "sacrebleu", str(folder / "references"), "-i",
        str(folder / "hypotheses"), "-m", metric, "-b", "-w", "12", "-tok", tokenizer,
    ]  # fmt: skip
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def wmt22_rows() -> list[Any]:
    if not WMT22.exists():
        pytest.skip(f"no {WMT22.name} beside the checkout")
    with gzip.open(WMT22, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_bleu_of_published_outputs(tmp_path: Path) -> None:
    systems = [option for name in PUBLISHED for option in ("--system", name)]
    made = scores(evaluate(tmp_path, wmt22_rows(), "--metric", "bleu", *systems))
    for system, expected in PUBLISHED.items():
        assert [round(made["bleu", system, d], 2) for d in DIRECTIONS] == expected
        means = tuple(round(made["bleu", system, group], 2) for group in ("en-xx", "xx-en"))
        assert means == MEANS[system]
        everything = [made["bleu", system, d] for d in DIRECTIONS]
        assert made["bleu", system, "all"] == pytest.approx(statistics.fmean(everything))


@pytest.mark.parametrize(("pair", "tokenizer"), [("en-is", "13a"), ("en-zh", "zh")])
def test_both_metrics_equal_the_command(tmp_path: Path, pair: str, tokenizer: str) -> None:
    rows = [row for row in wmt22_rows() if row["language_pair"] == pair][:300]
    made = scores(evaluate(tmp_path, rows, "--metric", "bleu", "--metric", "chrf"))
    for metric in ("bleu", "chrf"):
        for system in ("gpt-4", "wmt-winner"):
            expected = by_command(tmp_path, rows, system, metric, tokenizer)
            assert round(made[metric, system, pair], 12) == expected


def test_an_empty_translation_counts(tmp_path: Path) -> None:
    rows = [row(number=number) for number in range(4)]
    rows[1]["candidates"]["one"] = " "
    rows[2]["candidates"]["one"] = ""
    made = scores(evaluate(tmp_path, rows, "--metric", "bleu", "--metric", "chrf"))
    rows[1]["candidates"]["one"] = ""
    for metric in ("bleu", "chrf"):
        assert round(made[metric, "one", "en-de"], 12) == by_command(
            tmp_path, rows, "one", metric, "13a"
        )


@pytest.mark.parametrize(
    ("target", "tokenizer"),
    [("de", "13a"), ("zh", "zh"), ("zho", "zh"), ("yue", "zh"), ("th", "char"), ("tha", "char")],
)
def test_tokenizers_of_targets(target: str, tokenizer: str) -> None:
    assert corpus.tokenizer_of(target) == (tokenizer, None)


def test_words_are_characters_without_their_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: None)
    report = evaluate(tmp_path, [row("en-ja"), row("en-ko")], "--metric", "bleu")
    signatures = {r["signature"] for r in report["results"] if r["language_pair"] == "en-ja"}
    assert all("|tok:char|" in signature for signature in signatures)
    assert "BLEU into ja is of characters, not to be compared with ja-mecab" in report["notes"][0]
    assert "install sacrebleu[ko]" in capsys.readouterr().err
    monkeypatch.setattr(corpus.importlib.util, "find_spec", lambda name: True)
    assert corpus.tokenizer_of("jpn") == ("ja-mecab", None)


def test_an_unknown_language_is_said(tmp_path: Path) -> None:
    report = evaluate(tmp_path, [row("en-sah")], "--metric", "bleu", "--metric", "chrf")
    (note,) = report["notes"]
    assert note.startswith("BLEU into sah takes words between spaces (13a)")


def test_means_need_all_directions(tmp_path: Path) -> None:
    rows = [row("en-de"), row("de-en"), row("de-fr")]
    del rows[0]["candidates"]["two"]
    report = evaluate(tmp_path, rows, "--metric", "chrf")
    made = scores(report)
    assert made["chrf", "one", "en-xx"] == made["chrf", "one", "en-de"]
    three = [made["chrf", "one", pair] for pair in ("en-de", "de-en", "de-fr")]
    assert made["chrf", "one", "all"] == pytest.approx(statistics.fmean(three))
    assert {pair for _, system, pair in made if system == "two"} == {"de-en", "de-fr", "xx-en"}
    assert "no mean all of two by chrf: it has no en-de" in report["notes"]
