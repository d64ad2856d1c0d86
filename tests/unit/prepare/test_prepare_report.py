"""`cpo-ds prepare report`: a page that stands alone, for any names."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from preference_data import write, write_parquet
from report_page import Page, report, report_of, row, rows
from repository import WMT22
from sacrebleu.metrics import CHRF

from cpo_ds import cli


def test_a_page_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def scored(direction: str, kiwi: list[float], xcomet: list[float]) -> dict[str, Any]:
        names = ("reference", "a", "b")
        scores = {"kiwi": dict(zip(names, kiwi)), "xcomet": dict(zip(names, xcomet))}  # noqa: B905
        return row(direction, ["a", "b"], ["kiwi", "xcomet"], 0, scores=scores)

    lines = [
        scored("en-de", [0.5, 0.75, 0.25], [0.5, 1.0, 0.0]),
        scored("en-de", [0.5, 0.5, 0.25], [0.5, 0.25, 0.75]),
        scored("zh-en", [0.5, 0.25, 0.75], [0.5, 0.0, 1.0]),
    ]
    page = report(tmp_path, lines)
    printed = capsys.readouterr().out
    assert "3 rows, 2 directions, 2 systems and the reference" in printed
    # a is above the reference by kiwi once, equal once, below once; b above once.
    assert "By kiwi, above the reference: a 33.3%, b 33.3%." in printed
    interval = "6.1 to 79.2%"
    assert page.line("all directions", "a", "3", "33.3%", interval, "33.3%")[6] == "33.3%"
    # Means of both: .5 .875 .125; .5 .375 .5 (the reference is first); .5 .125 .875.
    assert "Chosen by kiwi+xcomet: reference 33.3%, a 33.3%, b 33.3% of 3 pairs." in printed
    assert "Rejected by kiwi+xcomet: reference 0.0%, a 66.7%, b 33.3% of 3 pairs." in printed
    assert page.line("en-de\n2 pairs", "reference") == [
        "en-de\n2 pairs", "reference", "1", "50.0%", "0", "0.0%",
    ]  # fmt: skip
    # Pairs by kiwi, by xcomet in the second row: ref = a > b against b > ref > a.
    assert "kiwi and xcomet rank 75.0% of 8 pairs alike" in printed
    assert page.line("kiwi · xcomet", "8")[2:4] == ["75.0%", "1"]
    # Rows: the same; best reference or b, worst b or a; the same.
    assert "the same best translation in 66.7%, the same worst in 66.7% of 3 rows" in printed
    # Choosing by kiwi, xcomet gains .5, 0, .5 over means of .5; by its own choice .5, .25, .5.
    assert "Choosing by kiwi gives xcomet 80.0% of the gain" in printed
    assert page.line("xcomet", "Unbabel/xcomet") == [
        "xcomet", "Unbabel/xcomet", "bfloat16", "no", "3", "9", "0", "–",
    ]  # fmt: skip


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", '"><img src=http:x>', "_hidden", "$a_b$", "&amp;", "系统"]
    names += ["a very long name of a system, much too long for a chart\x07"]
    lines = rows(12, "<b>kiwi</b>", "x'\"&y", names=names)
    lines[0]["scorers"]["x'\"&y"]["model"] = "<i>model</i>"
    path = write(tmp_path / "<u>scored</u>.jsonl".replace("/", "_"), lines)
    arguments = ["--input", str(path), "--output", str(tmp_path / "r.html")]
    assert cli.main(["prepare", "report", *arguments]) == 0
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"script", "b", "i", "u"} & set(page.tags)
    assert page.tags["img"] == len(page.images) == 7
    for name in (*names, "<b>kiwi</b>", "x'\"&y", "<i>model</i>"):
        assert name in page.text
    for image in page.images:
        assert str(image["src"]).startswith("data:image/svg+xml;base64,")
    charts = [base64.b64decode(str(image["src"]).partition(",")[2]) for image in page.images]
    labels = {
        "".join(e.itertext()).strip() for c in charts for e in ElementTree.fromstring(c).iter()
    }
    assert {"_hidden", "$a_b$", "&amp;", "系统", "a very lon…r a chart"} <= labels


@pytest.mark.parametrize(
    "change, said, images",
    [
        ("one metric", "There is one metric: it takes two to compare", 3),
        ("no reference", "No row has a reference: there is nothing to show here", 5),
        ("one system", "No row has two translations that score differently", 2),
        ("only chrf", "Every metric compares with the reference and so cannot judge it", 2),
        ("equal scores", "No source has two translations that two metrics rank", 4),
        ("one constant metric", "Choosing by xcomet cannot be judged", 6),
        ("one row", "1 row, 1 direction, 3 systems and the reference", 7),
    ],
)
def test_little_to_compare_is_said(tmp_path: Path, change: str, said: str, images: int) -> None:
    lines = rows(6)
    if change in ("no reference", "one system"):
        lines = json.loads(json.dumps(lines).replace('"reference"', '"removed"'))
    for line in lines:
        scores = line["scores"]
        if change == "one metric":
            del scores["xcomet"]
        if change == "one system":
            line["candidates"] = {"a": "A"}
        if change == "only chrf":
            line["scores"], line["scorers"] = {"chrf": scores["kiwi"]}, {}
        if change == "one constant metric":
            scores["kiwi"] = dict.fromkeys(scores["kiwi"], 0.5)
        if change == "equal scores":
            line["scores"] = {metric: dict.fromkeys(scores[metric], 0.5) for metric in scores}
    page = report(tmp_path, lines[:1] if change == "one row" else lines)
    assert said in page.text
    assert len(page.images) == images


def test_what_compares_with_the_reference_does_not_judge_it(tmp_path: Path) -> None:
    lines = rows(9, "kiwi", "chrf")
    for line in lines:
        line["scorers"]["chrf"] = {"model": "chrf", "uses_reference": True}
        line["scores"]["chrf"]["reference"] = 100.0
        line["scores"]["chrf"]["a"] = 99.0
    page = report(tmp_path, lines)
    assert "chrf compares with the reference" in page.text
    assert "likeness to one reference, which is not a quality estimate" in page.text
    assert "By chrf, above" not in page.text and "Chosen by kiwi:" in page.text
    page = report(tmp_path, lines, "--metrics", "chrf")
    assert "Chosen by chrf: a 100.0%, b 0.0%, c 0.0% of 9 pairs." in page.text
    page = report(tmp_path, lines, "--metrics", "kiwi+chrf")
    assert "Chosen by kiwi+chrf: a 100.0%, b 0.0%, c 0.0% of 9 pairs." in page.text
    assert "The mean follows chrf most" in page.text


def test_many_directions_and_systems_stay_small(tmp_path: Path) -> None:
    languages = ("en", "de", "cs", "is", "ru", "zh", "fr", "es", "it", "pt", "nl", "da")
    directions = [f"{a}-{b}" for a in languages for b in languages if a != b]
    systems = [f"system-{number}" for number in range(40)]
    draw = random.Random(0)
    lines = [
        row(directions[seed % 132], draw.sample(systems, 4), ["kiwi", "xcomet"], seed)
        for seed in range(400)
    ]
    page = report(tmp_path, lines)
    assert (tmp_path / "report.html").stat().st_size < 4 * 2**20
    assert "Tables show 100 of 132 directions" in page.text
    assert "Tables show 20 of 41 systems (with the reference)" in page.text


def test_parquet_rows_give_the_same_page(tmp_path: Path) -> None:
    lines = rows(8)
    lines[0]["candidates"] = {"a": "A", "b": "B"}  # parquet makes c null here
    lines[0]["scores"] = {m: {"a": 0.5, "b": 0.25} for m in ("kiwi", "xcomet")}
    jsonl = report(tmp_path, lines)
    parquet = report_of(write_parquet(tmp_path / "x.parquet", lines), tmp_path / "x.html")
    assert parquet.lines == jsonl.lines


@pytest.mark.parametrize(
    "lines, options, said",
    [
        ([{"scores": {}}], [], "has no scores; make some with"),
        ([{"scores": {"kiwi": {"a": "high"}}}], [], "line 1: field scores.kiwi.a is not a finite"),
        ([{}, {"scores": [1]}], [], "line 2: field scores is not an object"),
        ([{}], ["--metrics", "kiwi+comet"], "no row has a score by 'comet' (did you mean xcomet?)"),
        ([{"language_pair": "en"}], [], "line 1: field language_pair"),
    ],
)
def test_errors_are_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: Any, options: list[str], said: str
) -> None:
    path = write(tmp_path / "scored.jsonl", [rows(1)[0] | line for line in lines])
    output = tmp_path / "report.html"
    arguments = ["--input", str(path), "--output", str(output), *options]
    assert cli.main(["prepare", "report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cpo_ds: error: ") and said in error and error.count("\n") == 1
    assert not output.exists()


def test_the_input_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "scored.jsonl", rows(1))
    before = path.read_bytes()
    for output in (path, tmp_path):
        arguments = ["--input", str(path), "--output", str(output)]
        assert cli.main(["prepare", "report", *arguments]) == 2
        assert "name a file to write the page to" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.skipif(not WMT22.exists(), reason="the WMT22 translations are not here")
def test_real_translations(tmp_path: Path) -> None:
    with gzip.open(WMT22, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for number, line in enumerate(file) if number % 100 == 0]
    chrf, draw = CHRF(), random.Random(0)
    for line in lines:
        texts = {"reference": line["reference"], **line["candidates"]}
        likeness = {
            name: chrf.sentence_score(text, [line["reference"]]).score
            for name, text in texts.items()
        }
        noisy = {name: score / 100 + draw.gauss(0, 0.2) for name, score in likeness.items()}
        line["scores"] = {"chrf": likeness, "invented": noisy}
    page = report(tmp_path, lines)
    assert "175 rows, 10 directions, 4 systems and the reference" in page.text
    # Rows whose translations are all the same text give no pair, whatever their scores.
    counted = re.compile(r"[a-z-]+\n(\d+) pairs?(?:\n(\d+) without)?")
    chosen = [match for line in page.lines if (match := counted.fullmatch(line[0]))]
    assert len(chosen) == 10
    assert sum(int(match[1]) + int(match[2] or 0) for match in chosen) == 175
