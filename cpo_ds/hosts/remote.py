"""What runs on each host while `cpo-ds doctor` looks at them. The standard library only.

This text is sent over ssh to whatever Python there is, so it needs nothing of the host's checkout.
It reads a request a line from standard input, `{"do": "facts", ...}`, and answers each by a line
that starts with `MARK`; where the input ends, all that it started ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MARK = "cpo-ds doctor: "  # a start-up file of the shell may print lines of its own

_listening: list[socket.socket] = []
_running: list[subprocess.Popen[str]] = []


def answer_requests() -> None:
    """Answers until the input ends."""
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    _say({"time": time.time()})
    while True:
        request = json.loads(requests.get())
        try:
            _say(globals()[request.pop("do")](**request))
        except Exception as error:  # it has to reach the one who asked
            _say({"error": f"{type(error).__name__}: {error}"})


def _read_requests(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    _end_running()
    os._exit(0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


def clock() -> dict[str, Any]:
    """Seconds since 1970."""
    return {"time": time.time()}


def devices() -> dict[str, Any]:
    """Who this host is, what runs this script, and its GPUs; quickly."""
    return {
        "hostname": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "python": sys.executable,
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def _gpus() -> list[list[str]]:
    """Name, memory, memory in use (MiB) and driver of each GPU."""
    fields = "name,memory.total,memory.used,driver_version"
    text = _output("nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits")
    return [[value.strip() for value in line.split(",")] for line in text.splitlines() if line]


def _output(*command: str) -> str:
    """What a program prints; nothing where it is missing, fails or takes long."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _end_running() -> None:
    for process in _running:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    answer_requests()
