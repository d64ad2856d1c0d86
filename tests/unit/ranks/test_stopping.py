"""Requests to stop by signals, before a run listens for them and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from repository import ROOT

BEFORE = """
import time
from cpo_ds.ranks.stopping import interrupt_by_signals
interrupt_by_signals()
try:
    print("ready", flush=True)
    time.sleep(0.5)
except KeyboardInterrupt: print("interrupted")
else: print("went on")
"""
AFTER = """
import time
from cpo_ds.ranks.stopping import StopRequest
stop = StopRequest()
stop.listen()
print("ready", flush=True)
for _ in range(50):
    time.sleep(0.01 if stop.reason is None else 0)
print(stop.reason)
"""


def told(program: str, sent: signal.Signals, *, ignored: signal.Signals | None, **rank: str) -> str:
    """What a process prints that gets a signal, one of which it may have inherited as ignored."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # pytest's own parent may ignore it
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | rank,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=prepare,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize(
    ("sent", "ignored", "printed"),
    [
        (signal.SIGINT, None, "interrupted\n"),
        (signal.SIGUSR1, None, "interrupted\n"),
        (signal.SIGUSR1, signal.SIGUSR1, "interrupted\n"),  # as under scripts/supervise.sh
        (signal.SIGINT, signal.SIGINT, "went on\n"),  # a script's process in the background
    ],
)
def test_before_a_run_listens(
    sent: signal.Signals, ignored: signal.Signals | None, printed: str
) -> None:
    assert told(BEFORE, sent, ignored=ignored) == printed


@pytest.mark.parametrize(
    ("sent", "ignored", "rank", "reason", "says"),
    [
        (signal.SIGINT, None, "0", "Ctrl-C", True),
        (signal.SIGTERM, None, "0", "SIGTERM", True),
        (signal.SIGTERM, None, "1", "SIGTERM", False),  # rank 0 says it
        (signal.SIGINT, signal.SIGINT, "0", "None", False),
    ],
)
def test_a_request_is_told_at_once_by_rank_0(
    sent: signal.Signals, ignored: signal.Signals | None, rank: str, reason: str, says: bool
) -> None:
    output = told(AFTER, sent, ignored=ignored, RANK=rank)
    assert output.endswith(f"{reason}\n")
    assert (f"cpo_ds: {reason}: the step is finished and a checkpoint saved" in output) == says


def test_the_script_s_imports_end_without_a_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / "cpo_ds" / "train.py"), "--config", "demo"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while "pydantic_core" not in process.stderr.readline():  # imported by the recipe
        pass
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    _, printed = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 4) and "Traceback" not in printed
