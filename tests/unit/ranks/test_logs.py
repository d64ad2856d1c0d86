"""Logs of ranks: a run goes on without its console."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from pathlib import Path
from cpo_ds.ranks.console import plain_console
from cpo_ds.ranks.logs import RankLog
with plain_console():
    log = RankLog(0, Path(sys.argv[1]))
    log.open()
    print("first", flush=True)
    sys.stdin.readline()  # until the console is gone
    for number in range(1000):
        print("line", number, flush=True)
        print("error", number, file=sys.stderr)
    log.close()
    print("last")
"""


def test_a_console_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    run = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    assert run.stdout is not None and run.stdin is not None
    assert run.stdout.readline() == "first\n"
    run.stdout.close()
    run.stdin.write("\n")
    run.stdin.close()
    assert run.wait(timeout=60) == 0
    written = (tmp_path / "logs" / "rank_0.txt").read_text()
    assert "line 999\n" in written and "error 999\n" in written
