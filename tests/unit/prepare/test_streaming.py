"""Select, report and noise read rows one by one: the same bytes as before, in little memory."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from many_rows import write_many
from preference_data import write_parquet
from report_page import report_of
from scored_rows import contents

from cpo_ds import cli
from cpo_ds.data.candidates import CandidateRows, row_line
from cpo_ds.data.json_text import UNPAIRED
from cpo_ds.prepare.analyses import agreement, scored
from cpo_ds.prepare.analyses.view import make_view, selecting_metrics
from cpo_ds.prepare.pairs import alma_rows


def prepare(command: str, path: Path, output: Path, *options: str) -> int:
    arguments = ["--input", str(path), "--output", str(output), *options]
    return cli.main(["prepare", command, *arguments])


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


# The bytes. These were written when the commands held all rows in memory.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "8ca364e39c0bec08"),
        ("--pairs best-each", "888720134c7f39a5"),
        ("--metrics kiwi+chrf --min-margin 5", "a6c8c068b2171558"),
        ("--directions de-en,en-de --max-length-ratio 1.2", "5b3622f026721e40"),
        ("--metrics xcomet --prompt-style chat", "e7c66c693f298eed"),
        ("--language xx=Xish --metrics chrf --pairs best-each", "ae978db1518837a4"),
    ],
)
def test_selected_pairs_are_the_same_bytes(tmp_path: Path, options: str, expected: str) -> None:
    path = write_many(tmp_path / "scored.jsonl", 400)
    assert prepare("select", path, tmp_path / "out", *options.split()) == 0
    files = contents(tmp_path / "out")
    summary = json.loads(files.pop("summary.json"))
    del files["alma-r/README.md"], summary["input"], summary["options"]
    rows = [json.loads(line) for line in files["pairs.jsonl"].splitlines()]
    for row in rows:  # fields that rows did not have then
        del row["chosen_score"], row["rejected_score"]
    files["pairs.jsonl"] = "".join(map(row_line, rows)).encode(errors=UNPAIRED)
    names = "\n".join(files).encode()
    assert digest(names, *files.values(), json.dumps(summary).encode()) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [("", "7fcb0b26d8aaff1b"), ("--metrics kiwi+xcomet", "a2211b1813c23cd7")],
)
def test_tables_of_the_report_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, expected: str
) -> None:
    path = write_many(tmp_path / "scored.jsonl", 400)
    page = report_of(path, tmp_path / "report.html", *options.split())
    printed = capsys.readouterr().out.splitlines()[:-1]  # the last line names the output
    assert digest(json.dumps([page.lines, printed]).encode()) == expected


def test_noised_pairs_are_the_same_bytes(tmp_path: Path) -> None:
    path = write_many(tmp_path / "scored.jsonl", 400)
    assert prepare("select", path, tmp_path / "out") == 0
    assert prepare("noise", tmp_path / "out" / "pairs.jsonl", tmp_path / "noise.jsonl") == 0
    assert digest((tmp_path / "noise.jsonl").read_bytes()) == "985c32e3c895b259"


# Pieces of any size.


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(3, 40), held=st.integers(0, 3000))
def test_rows_written_in_pieces_of_any_size_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, held: int
) -> None:
    path = write_many(tmp_path / "scored.jsonl", count)
    options = ("--metrics", "kiwi", "--pairs", "best-each")
    assert prepare("select", path, tmp_path / "out", *options) == 0
    whole = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(alma_rows, "_MOST_HELD", held)
        assert prepare("select", path, tmp_path / "out", *options) == 0
    assert contents(tmp_path / "out") == whole


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(count=st.integers(1, 40), size=st.integers(1, 40))
def test_scores_compared_in_pieces_of_any_size_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    rows = scored.read_scored(str(write_many(tmp_path / "scored.jsonl", count)))

    def compared() -> object:
        kiwi, chrf = rows.scores["kiwi"], rows.scores["chrf"]
        return (
            agreement.rank_pairs(rows.table("kiwi"), rows.table("chrf")),
            agreement.same_choices(rows.row_scores(kiwi), rows.row_scores(chrf)),
            agreement.gain(rows.row_scores(kiwi), rows.row_scores(chrf)),
        )

    whole = compared()
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "_ROWS", size)
        patch.setattr(scored, "_BLOCK", size)
        assert compared() == whole


# Memory.


def peak(run: Callable[[], object]) -> int:
    """The most bytes that Python and numpy held at a time."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def select(folder: Path) -> None:
    assert prepare("select", folder / "scored.jsonl", folder / "out") == 0


def noise(folder: Path) -> None:
    assert prepare("noise", folder / "out" / "pairs.jsonl", folder / "noise.jsonl") == 0


def read_for_report(folder: Path) -> None:
    """Reads all that the report's sections and charts are made of."""
    rows = scored.read_scored(str(folder / "scored.jsonl"))
    make_view(rows, selecting_metrics(rows, None))


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """Four times the rows, of 40 KB each, take as much; 500 bytes a row are for numbers."""
    peaks: dict[str, list[int]] = {}
    for count in (40, 80, 320):  # the first one fills caches
        write_many(tmp_path / "scored.jsonl", count, words=1000)
        for run in (select, noise, read_for_report):
            peaks.setdefault(run.__name__, []).append(peak(partial(run, tmp_path)))
    for _, few, many in peaks.values():
        assert many - 320 * 500 < 1.3 * few, peaks


def test_parquet_is_read_in_pieces_too(tmp_path: Path) -> None:
    """One group of rows of 48 MB in all, whose texts do not compress; pyarrow counts its own."""
    draw = random.Random(0)
    rows = [
        {"language_pair": "en-de", "source": draw.randbytes(6000).hex(), "candidates": {"a": "A"}}
        for _ in range(4000)
    ]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    held = pyarrow.total_allocated_bytes()
    most = 0
    for number, row in enumerate(CandidateRows(str(path))):
        assert row.source == rows[number]["source"]
        most = max(most, pyarrow.total_allocated_bytes() - held)
    assert most < 2**25 < path.stat().st_size
