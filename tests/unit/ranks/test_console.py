"""Text from outside on consoles of any kind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.doctor.checks.findings import Row
from cpo_ds.doctor.table import report
from cpo_ds.ranks.console import escaped, plain_console, print_colored


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    shown = escaped("x" + text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in shown)
    assert text.isprintable() is False or shown == "x" + text  # readable text stays as it is


def test_escapes_are_readable() -> None:
    assert escaped("a\x1b[2Jb\r\u202ec\n\td") == "a\\x1b[2Jb\\r\\u202ec\n\td"
    assert escaped("\r50% of 8") == "\r50% of 8"


def test_everything_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_console():
        print("out \x1b[31m")
        print("err \x07", file=sys.stderr)
        print_colored("\x1b[32mok\x1b[0m")
    print("\x1b[0m")
    captured = capsys.readouterr()
    assert captured.out == "out \\x1b[31m\n\x1b[32mok\x1b[0m\n\x1b[0m\n"
    assert captured.err == "err \\x07\n"


def test_colors_pass_a_console_inside_another(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_console(), plain_console(may_lose_text=True):
        print_colored("\x1b[32mok\x1b[0m")
    assert capsys.readouterr().out == "\x1b[32mok\x1b[0m\n"


def test_letters_that_a_console_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    with plain_console():
        print("é 中")
    stream.flush()
    assert stream.buffer.getvalue() == b"\xe9 \\u4e2d\n"


def test_the_table_of_hosts_escapes_their_answers() -> None:
    assert "\\x1b[5m" in report([Row("disk", "\x1b[5mfull", ())])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_commands_on_an_old_console(tmp_path: Path, encoding: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"language_pair": "中\\u001b[2J"}\n', encoding="utf-8")
    program = "import sys; from cpo_ds.cli import main; sys.exit(main())"
    arguments = ["prepare", "select", "--input", str(data), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert b"\x1b" not in done.stderr and b"Traceback" not in done.stderr


FULL = Path("/dev/full")  # each write to it fails, as on a disk without room
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def printed_to_a_full_disk(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    with FULL.open("w") as full:
        return subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)


@needs_full
def test_a_program_goes_on_without_its_console() -> None:
    program = (
        "import sys; from cpo_ds.ranks.console import plain_console\n"
        "with plain_console(may_lose_text=True):\n"
        "    print('x' * 10000, flush=True); print('still here', file=sys.stderr)"
    )
    done = printed_to_a_full_disk(program)
    assert done.returncode == 0 and done.stderr == "still here\n"


@needs_full
def test_a_command_says_that_its_output_has_no_room(tmp_path: Path) -> None:
    metrics = "".join(f'{{"step": {step}, "eval_loss": 1}}\n' for step in (1, 2))
    (tmp_path / "metrics.jsonl").write_text(metrics)
    done = printed_to_a_full_disk(
        "import sys; from cpo_ds import cli, run; from cpo_ds.report import command as report\n"
        "report.run = lambda arguments: print('a table') or 0\n"
        f"sys.exit(cli.main(['report', {str(tmp_path)!r}]))"
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("cpo_ds: error: standard output cannot be read or written: No")
    assert done.stderr.count("\n") == 1
