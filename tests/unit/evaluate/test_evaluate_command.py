"""The command: its messages, and the files that it writes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from candidate_rows import rows_file
from evaluated import evaluate, refused, row
from PIL import Image

from cpo_ds.cli import main

CHRF = ("--metric", "chrf")
NO_REFERENCE = {key: value for key, value in row().items() if key != "reference"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([row()], ["--metric", "chfr"], "there is no metric 'chfr' (did you mean chrf?)"),
        ([row()], ["--metric", "blue"], "there is no metric 'blue' (did you mean bleu?)"),
        ([row(), NO_REFERENCE], CHRF, 'line 2 has none; add "reference"'),
        ([row(), row(reference=" ")], ["--metric", "bleu"], "line 2 has none"),
        (
            [row(), row(candidates={"one": "x", "two": None})],
            CHRF,
            "line 2: field candidates.two is missing; two has translations of 1 of the 2 rows",
        ),
        ([row("en-de"), row("en_de")], CHRF, "line 2: field language_pair has an unknown"),
        ([row("English-German")], CHRF, "did you mean en-de?"),
        ([row("en-jp")], CHRF, "jp is the code of a country; did you mean ja?"),
        (
            [row(), row("en-xx")],
            CHRF,
            "line 2: field language_pair is 'en-xx', but xx",
        ),
        ([row(candidates={})], CHRF, "has no translations"),
        ([row(candidates={"one": 5})], CHRF, "field candidates.one is not a string but 5"),
        ([row(source="")], CHRF, "field source is empty"),
        ([row()], [*CHRF, "--system", "ona"], "no translations by it (did you mean one?)"),
        ([], CHRF, "rows.jsonl is empty"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, options: Any, message: str
) -> None:
    path = rows_file(tmp_path, *rows)
    assert message in refused(capsys, "--input", str(path), *options)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_outputs_are_checked_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(rows_file(tmp_path, row()))
    start = ["--input", path, *CHRF]
    assert "is a folder" in refused(capsys, *start, "--csv", str(tmp_path))
    assert "is the file of --input too" in refused(capsys, *start, "--json", path)
    twice = ["--json", str(tmp_path / "x"), "--csv", str(tmp_path / "x")]
    assert "is the file of --json too" in refused(capsys, *start, *twice)
    assert "does not exist" in refused(capsys, "--input", str(tmp_path / "no.jsonl"), *CHRF)
    assert "does not end in .png" in refused(capsys, *start, "--picture", str(tmp_path / "x.pdf"))
    assert "at least one --metric" in refused(capsys, "--input", path)
    assert "leave them out" in refused(capsys, "--verify", path, *CHRF)


def test_all_files_hold_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "markdown", "latex")}
    files["picture"] = tmp_path / "out.png"
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    rows = [row(pair, number) for pair in ("en-de", "de-en") for number in range(3)]
    for values in rows:
        values["candidates"]["a|b_\x1b[31m$"] = values["candidates"].pop("two")
    report = evaluate(tmp_path, rows, "--metric", "bleu", *CHRF, *options)

    lines = list(csv.DictReader(io.StringIO(files["csv"].read_text(encoding="utf-8"))))
    assert [float(line["score"]) for line in lines] == [r["score"] for r in report["results"]]
    assert [line["signature"] for line in lines] == [r["signature"] for r in report["results"]]
    assert set(report["results"][0]) == {
        "system", "language_pair", "metric", "score", "segments", "signature", "interferes",
    }  # fmt: skip
    printed = capsys.readouterr().out
    texts = [printed, files["markdown"].read_text("utf-8"), files["latex"].read_text("utf-8")]
    for result in report["results"]:
        assert all(f"{result['score']:.2f}" in text for text in texts)
    assert "\x1b" not in printed and r"a|b_\x1b[31m$" in printed
    assert r"a\|b\_" in texts[1] and r"a|b\_" in texts[2] and r"\$" in texts[2]
    assert Image.open(files["picture"]).size[0] > 500


def test_systems_that_are_not_chosen_leave_no_trace(tmp_path: Path) -> None:
    rows = [row("en-de"), row("en-cs", candidates={"two": "x"}), row("de-en")]
    report = evaluate(tmp_path, rows, *CHRF, "--system", "one")
    pairs = {r["language_pair"] for r in report["results"]}
    assert pairs == {"en-de", "de-en", "en-xx", "xx-en", "all"} and report["systems"] == ["one"]


def test_the_test_set_is_a_part_of_the_signature(tmp_path: Path) -> None:
    rows = [row("en-de", number, test_set="wmt22") for number in range(2)] + [row("de-en")]
    signatures = {
        r["language_pair"]: r["signature"] for r in evaluate(tmp_path, rows, *CHRF)["results"]
    }
    assert "|test:wmt22|" in signatures["en-de"] and "|test:" not in signatures["de-en"]


def test_a_full_disk_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows_file(tmp_path, row())
    blocked = tmp_path / "rows.jsonl" / "out.json"
    assert "cannot be written" in refused(
        capsys, "--input", str(path), *CHRF, "--json", str(blocked)
    )


def test_help_needs_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--help"])
    assert ended.value.code == 0 and "--metric NAME" in capsys.readouterr().out
