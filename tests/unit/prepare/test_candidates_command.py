"""`cpo-ds prepare candidates`: translations from files, and commands that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from translation_runs import candidates, rows_of, write

# Translations from files.


def test_systems_are_added_to_plain_text_and_chained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "s.txt", "One.", "", "Three.", "Four.")
    reference = write(tmp_path / "r.txt", "Eins.", "x", "", "Vier.")
    first = write(tmp_path / "a.txt", " Ein.", "ignored", "Drei.", "")
    second = write(tmp_path / "b.txt", "Uno.", "ignored", "Tre.", "Quattro.\u2028!")
    plain = ["--input", source, "--language-pair", "en-de", "--references", reference]
    # One system, added to plain text.
    one = tmp_path / "one.jsonl"
    assert candidates(*plain, "--output", one, "--system", f"a={first}") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"read 3 rows of {source}",
        "  left out, empty source: 1",
        "  left out, empty reference: 1",
        f"{one}: 3 rows, 2 with a translation by a",
        "  cleaned, spaces around it removed: 1",
        "  no translation, empty line: 1",
    ]
    pair = {"language_pair": "en-de"}
    assert rows_of(one)[:2] == [
        pair | {"source": "One.", "reference": "Eins.", "candidates": {"a": "Ein."}},
        pair | {"source": "Three.", "candidates": {"a": "Drei."}},
    ]
    # A second system, added to these rows: the same as both at once.
    three = write(tmp_path / "c.txt", "Uno.", "Tre.", "Quattro.\u2028!")
    two = tmp_path / "two.jsonl"
    assert candidates("--input", one, "--output", two, "--system", f"b=x={three}") == 2
    assert candidates("--input", one, "--output", two, "--system", f"b={three}") == 0
    both = tmp_path / "both.jsonl"
    systems = ["--system", f"a={first}", "--system", f"b={second}"]
    assert candidates(*plain, "--output", both, *systems) == 0
    assert both.read_bytes() == two.read_bytes()
    last = json.loads(both.read_text(encoding="utf-8").split("\n")[2])
    assert last["candidates"] == {"b": "Quattro.\u2028!"}


def test_fields_and_candidates_of_rows_are_kept(tmp_path: Path) -> None:
    values = {"id": 7, "language_pair": "en-de", "source": "One.", "candidates": {"b": "Eins."}}
    source = write(tmp_path / "rows.jsonl", json.dumps(values), "")
    same = write(tmp_path / "b.txt", "Eins.")
    output = tmp_path / "new" / "out.jsonl"
    arguments = ["--input", source, "--output", output, "--system"]
    assert candidates(*arguments, f"a={write(tmp_path / 'a.txt', 'Ein.')}") == 0
    assert rows_of(output) == [values | {"candidates": {"b": "Eins.", "a": "Ein."}}]
    assert candidates(*arguments, f"b={same}") == 0
    assert rows_of(output) == [values]


@pytest.mark.parametrize(
    "lines, said",
    [
        ([b"Eins.\n"], "a.txt has 1 lines, but {s} has 2"),
        ([b"Eins.\n", b"\n", b"Zwei\n"], "a.txt has 3 lines, but {s} has 2"),
        ([b"Eins.\n", b"Zw\xe4i\n"], "a.txt, line 2: not valid UTF-8 at byte 3"),
        (None, "a.txt cannot be read (No such file or directory)"),
    ],
)
def test_files_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[bytes] | None, said: str
) -> None:
    source = write(tmp_path / "s.txt", "One.", "Two.")
    file = tmp_path / "a.txt"
    if lines is not None:
        file.write_bytes(b"".join(lines))
    output = tmp_path / "out.jsonl"
    arguments = ["--input", source, "--language-pair", "en-de", "--output", output]
    assert candidates(*arguments, "--system", f"a={file}") == 2
    assert said.format(s=source) in capsys.readouterr().err
    assert not output.exists()


ROW = json.dumps({"language_pair": "en-de", "source": "One.", "candidates": {"b": "Eins."}})
NO_SOURCE = json.dumps({"language_pair": "en-de", "source": " "})


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--input {rows} --output {out}", "say where translations come from"),
        ("--input {rows} --output {out} --system b={lines}", "another candidate of b already"),
        ("--input {rows} --output {out} --system {lines}", "write NAME=FILE"),
        ("--input {rows} --output {out} --system reference={lines}", "row's own reference"),
        ("--input {rows} --output {out} --system a={lines} --system a={lines}", "a system a alre"),
        ("--input {gap} --output {out} --system a={lines}", "not clear which line of"),
        ("--input {lines} --output {out} --system a={lines}", "give its --language-pair"),
        ("--input {lines} --language-pair en-x --output {out} --system a={lines}", "unknown"),
        ("--input {rows} --language-pair en-de --output {out} --system a={lines}", "each row of"),
        ("--input {rows} --references {lines} --output {out} --system a={lines}", "plain text"),
        ("--input {rows} --output {rows} --system a={lines}", "is the input"),
        ("--input {rows} --output out.txt --system a={lines}", "must end in .jsonl"),
        ("--input {rows} --output {out} --system a={lines} --model m", "not both"),
        ("--input {rows} --output {out} --system a={lines} --beams 2", "--beams has no effect"),
        ("--input {rows} --output {out} --system a={lines} --ranks 2", "--ranks has no effect"),
        ("--input {rows} --output {out} --model m --retries 2", "--retries has no effect without"),
        ("--input {rows} --output {out} --server --model m --beams 2", "no effect with --server"),
        ("--input {rows} --output {out} --server", "--server needs --model"),
        ("--input {rows} --output {out} --model m --seed 2", "--seed has no effect without"),
        ("--input {rows} --output {out} --model m --temperature 0", "is no sampling"),
        ("--input {rows} --output {out} --model m --beams 0", "of at least 1"),
        ("--input {rows} --output {out} --model m --top-p 0", "above 0"),
        ("--input {rows} --output {out} --model m --top-p 1.5", "up to 1"),
        ("--input {rows} --output {out} --model m --prompt few-shot", "needs --examples"),
        ("--input {rows} --output {out} --model m --shots 2", "belong to --prompt few-shot"),
        ("--input {rows} --output {out} --model m --name reference", "row's own reference"),
        ("--input {rows} --output {out} --model m --ranks 2 --hostfile h", "not both"),
        ("--input {rows} --output {out} --model m --hostfile no", "--hostfile no does not exist"),
    ],
)  # fmt: skip
def test_commands_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    places = {
        "rows": write(tmp_path / "rows.jsonl", ROW),
        "gap": write(tmp_path / "gap.jsonl", ROW, NO_SOURCE),
        "lines": write(tmp_path / "lines.txt", "Ein."),
        "out": tmp_path / "out.jsonl",
    }
    assert candidates(*arguments.format(**places).split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("cpo_ds: error: ") and said in error and error.count("\n") == 1
    assert not places["out"].exists() and places["rows"].read_text() == f"{ROW}\n"
