"""Sessions with hosts, which end in time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.doctor import sessions
from cpo_ds.doctor.hostfile import Host


@pytest.fixture
def no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that prints a greeting, as shells may, and runs the command on this host."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\necho "welcome to $1"\nexec sh -c "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_silent_host_is_given_up(no_ssh: Path) -> None:
    def look(session: sessions.Session) -> Any:
        is_slow = session.host.name == "slow"
        wait, limit = (60, 0.5) if is_slow else (0, 60)
        return session.ask("seen_tokens", limit, folder="/", tokens=["none"], wait=wait)

    with sessions.sessions(sessions.Ssh(Path("hosts")), [Host("h", 1), Host("slow", 1)]) as party:
        assert list(party.ask("clock")) == ["h", "slow"]
        assert party.each(look) == {"h": {"seen": []}} and party.names == ["h"]
        assert "nothing came back" in party.lost["slow"].problem
        assert party.ask("connect", targets=None, timeout=1) == {}
        assert "TypeError" in party.lost["h"].problem


def test_what_runs_on_a_host_ends_in_time(no_ssh: Path) -> None:
    wait = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
    fail = [sys.executable, "-c", "raise SystemExit(3)"]
    with sessions.sessions(sessions.Ssh(Path("hosts")), [Host("here", 1)]) as party:
        timed = party.ask("run", commands=[wait], environments=[{}], limit=1)["here"]
        assert timed == {"codes": [None], "outputs": ["on\n"]}
        failed = party.ask("run", commands=[wait, fail], environments=[{}, {}], limit=30)["here"]
        assert failed["codes"] == [None, 3]
