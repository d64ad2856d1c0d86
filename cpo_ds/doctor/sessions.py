"""One ssh session to each host, all at once, over which the program `remote.py` answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cpo_ds.doctor import remote
from cpo_ds.doctor.hostfile import Host
from cpo_ds.errors import UserError
from cpo_ds.shipped import set_up

CONNECT_SECONDS = 10
ANSWER_SECONDS = 30.0  # for an answer once ssh is logged in

Item = TypeVar("Item")
Result = TypeVar("Result")

# Part of ssh's message -> the problem and its remedy; the first entry that matches counts.
_SSH_ERRORS = (
    (
        "could not resolve hostname",
        "ssh does not know this name",
        "correct it in {file}, or add it to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        "identification has changed",
        "its host key is not the one that ssh knows",
        "if the host was set up again: ssh-keygen -R {name}, then ssh {name} once by hand",
    ),
    (
        "host key verification failed",
        "ssh does not know its host key",
        "log in once by hand (ssh {name}), or ssh-keyscan -H {name} >> ~/.ssh/known_hosts",
    ),
    (
        "permission denied",
        "it refuses the login without a password",
        "ssh-copy-id {name}; then `ssh {name} true` has to work without a question",
    ),
    (
        "connection refused",
        "no ssh server listens there",
        "start sshd on it, or give its port (--ssh-port, or Port in ~/.ssh/config)",
    ),
    (
        "timed out",
        "it does not answer",
        "check that it is up, and that no firewall drops ssh",
    ),
    ("no route to host", "there is no route to it", "check that it is up, and its network"),
    ("network is unreachable", "there is no route to it", "check the network of this host"),
    (
        "connection closed",
        "its ssh server closes the connection",
        "read its log: journalctl -u ssh (MaxStartups, AllowUsers, hosts.deny)",
    ),
)


class Unreachable(Exception):
    """A host does not answer; `problem` says why and `fix` is the remedy."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.fix = problem, fix


@dataclass(frozen=True)
class Ssh:
    """Options of every login, and the variables that DeepSpeed's launcher sets on each host."""

    hostfile: Path
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, host: str) -> list[str]:
        """Returns the command that starts `remote.py` on a host.

        The host uses the Python that runs here, or `python3` if that one does not work there. It
        reads the program from its standard input, so it needs no file.
        """
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        if self.port is not None:
            options += ["-p", str(self.port)]
        python = shlex.quote(sys.executable)
        exports = " ".join(f"{k}={shlex.quote(v)}" for k, v in self.environment.items())
        start = shlex.quote("import json, sys; exec(json.loads(sys.stdin.readline()))")
        script = (
            f"cd {shlex.quote(os.getcwd())} 2>/dev/null; "
            + (f"export {exports}; " if exports else "")
            + f'P={python}; "$P" -c \'\' 2>/dev/null || P=python3; exec "$P" -u -c {start}'
        )
        return ["ssh", *options, host, f"sh -c {shlex.quote(script)}"]


class Session:
    """A connection to one host. Each question ends in time: by an answer or by `Unreachable`."""

    def __init__(self, ssh: Ssh, host: Host) -> None:
        self.host = host
        self._ssh = ssh
        self._logged_in = False
        self._errors: list[str] = []  # lines that ssh and the host wrote to stderr
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()  # None: the session ended
        try:
            self._process = subprocess.Popen(
                ssh.command(host.name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches this program alone, which then ends ssh
            )
        except OSError as error:
            raise UserError(
                f"the program ssh cannot be started ({error.strerror}); install it, on Debian and "
                "Ubuntu by: apt-get install openssh-client."
            ) from None

        # Two threads read both pipes, so that neither fills up and blocks the host.
        self._threads = [
            threading.Thread(target=read, daemon=True)
            for read in (self._read_answers, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        self._send(Path(remote.__file__).read_text(encoding="utf-8"))

    def ask(self, request: str, seconds: float = ANSWER_SECONDS, **details: Any) -> dict[str, Any]:
        """Returns the host's answer to one of `remote.REQUESTS`. Raises `Unreachable`."""
        self._send({"request": request, **details})
        if not self._logged_in:
            seconds += CONNECT_SECONDS
        answer = self._receive(seconds)
        self._logged_in = True
        return answer

    def close(self) -> None:
        """Ends the session, and with it everything that it started on the host."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(2 if self._logged_in else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, value: Any) -> None:
        with contextlib.suppress(OSError):  # `_receive` raises the error, with what ssh wrote
            self._process.stdin.write(json.dumps(value) + "\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise Unreachable(
                f"nothing came back for {seconds:.0f} s",
                f"find out why `ssh {self.host.name} true` waits: perhaps a start-up file of the "
                "shell, or a file system that hangs",
            ) from None
        if answer is None:
            self._answers.put(None)  # the next question gets the same error
            self._threads[1].join(1)  # for the last lines of stderr
            raise Unreachable(
                *explain(self.host, "\n".join(self._errors), self._ssh.hostfile)
            ) from None
        if "error" in answer:
            raise Unreachable(
                f"a check on it failed: {answer['error']}", f"try `ssh {self.host.name}` by hand"
            )
        return answer

    def _read_answers(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            if line.startswith(remote.MARK):
                self._answers.put(json.loads(line[len(remote.MARK) :]))
        self._answers.put(None)

    def _read_errors(self) -> None:
        for line in self._process.stderr:  # type: ignore[union-attr]
            self._errors.append(line.strip())


def explain(host: Host, errors: str, hostfile: Path) -> tuple[str, str]:
    """Returns the problem and its remedy for a session that ended with these errors of ssh."""
    lowered = errors.lower()
    for sign, problem, fix in _SSH_ERRORS:
        if sign in lowered:
            return problem, fix.format(name=host.name, file=f"{hostfile}:{host.line}")
    if ("python3" in lowered and "not found" in lowered) or "syntaxerror" in lowered:
        return (
            f"it has neither {sys.executable} nor a python3 that is new enough",
            f"set up the same environment there, at the same path ({set_up()})",
        )
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "nothing")
    return f"the session ended; its last line was: {last}", f"try `ssh {host.name} true` by hand"


@contextlib.contextmanager
def sessions(ssh: Ssh, hosts: Sequence[Host]) -> Iterator[HostGroup]:
    """Logs in to all hosts at once; closes all sessions at the end."""
    opened: list[Session] = []
    try:
        for host in hosts:
            opened.append(Session(ssh, host))
        yield HostGroup(opened)
    finally:
        at_once(Session.close, opened)


class HostGroup:
    """Hosts that are asked all at once. A host that stops answering is in `lost` from then on."""

    def __init__(self, opened: Sequence[Session]) -> None:
        self._sessions = {session.host.name: session for session in opened}
        self.lost: dict[str, Unreachable] = {}

    def ask(
        self, request: str, seconds: float = ANSWER_SECONDS, **details: Any
    ) -> dict[str, dict[str, Any]]:
        """Returns each host's answer by its name. A `PerHost` detail has a value for each host."""

        def ask_one(session: Session) -> dict[str, Any]:
            name = session.host.name
            own = {k: v[name] if isinstance(v, PerHost) else v for k, v in details.items()}
            return session.ask(request, seconds, **own)

        return self.each(ask_one)

    def each(self, question: Callable[[Session], Result]) -> dict[str, Result]:
        """Calls `question` with every session at once; returns the results by the hosts' names."""

        def ask_one(session: Session) -> Result | Unreachable:
            try:
                return question(session)
            except Unreachable as error:
                return error

        answers: dict[str, Result] = {}
        sessions = list(self._sessions.values())
        for session, answer in zip(sessions, at_once(ask_one, sessions), strict=True):
            name = session.host.name
            if isinstance(answer, Unreachable):
                self.lost[name] = answer
                del self._sessions[name]
            else:
                answers[name] = answer
        return answers

    @property
    def names(self) -> list[str]:
        """Names of the hosts that are still asked."""
        return list(self._sessions)

    def leave_out(self, name: str) -> None:
        """Asks this host nothing more."""
        del self._sessions[name]


class PerHost(dict[str, Any]):
    """A detail of a question that differs between hosts: its values by the hosts' names."""


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Calls `function` with every item at the same time; returns the results in their order."""
    if not items:
        return []
    pool = ThreadPoolExecutor(max_workers=len(items))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C, the threads end with the sessions they wait for
