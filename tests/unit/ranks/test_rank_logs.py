"""Log files of ranks on a disk without room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")  # each write to it fails, as on a disk without room
PROGRAM = """
import os, sys
from pathlib import Path
from cpo_ds.ranks.logs import RankLog

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
log = RankLog(rank, folder)
log.open()
full = os.open("/dev/full", os.O_WRONLY)
for descriptor in (log._file.fileno(), *((1, 2) if rank else ())):
    os.dup2(full, descriptor)
print("a" * 10000, flush=True)
print("b", file=sys.stderr)
sys.stdout.flush()
log.close()
print("closed")
"""


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_text_is_lost_and_the_rank_goes_on(tmp_path: Path, rank: str) -> None:
    command = [sys.executable, "-c", PROGRAM, rank, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    assert done.stdout.endswith("closed\n")
