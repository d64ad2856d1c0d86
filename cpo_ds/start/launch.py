"""Starts DeepSpeed's launcher of a run, passes requests to stop on to the ranks, and waits."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from cpo_ds.doctor.hostfile import Host, hostfile_text
from cpo_ds.errors import EXIT_RANK_LOST, EXIT_STOPPED, UserError
from cpo_ds.ranks.relaunch import for_launcher, free_port
from cpo_ds.ranks.stopping import is_same_request, name_of, takes_interrupts
from cpo_ds.start.marked import MARK, Marked

_LAST_SECONDS = 60  # for ranks that a launcher left behind, which save and end by themselves


def run_alone(argv: list[str], gpus: Sequence[str]) -> None:
    """Replaces this process by one rank without a launcher; does not return.

    Raises `UserError` if it cannot be started.
    """
    os.environ.update(_environment(gpus))
    try:
        os.execv(sys.executable, [sys.executable, "-u", *argv])
    except OSError as error:
        raise UserError(f"{sys.executable} cannot be started: {error.strerror}.") from None


def launch_on_this_host(argv: list[str], ranks: int, gpus: Sequence[str], port: int | None) -> int:
    """Runs a script on several ranks of this host; returns their exit code."""
    devices = json.dumps({"localhost": list(gpus) or list(range(ranks))})
    options = ["--world_info=" + base64.urlsafe_b64encode(devices.encode()).decode()]
    options += ["--master_addr=127.0.0.1", f"--master_port={port or free_port()}"]
    command = _command("deepspeed.launcher.launch", options, argv)
    return Launch(command, _environment(gpus)).follow()


def launch_on_hosts(
    argv: list[str],
    hosts: Sequence[Host],
    *,
    ssh_port: int | None,
    master_addr: str | None,
    master_port: int | None,
) -> int:
    """Runs a script on the slots of several hosts by pdsh; returns the ranks' exit code."""
    with tempfile.NamedTemporaryFile("w", prefix="hostfile-") as file:
        file.write(hostfile_text(hosts))  # without marks and comments of the given one
        file.flush()
        # One host that is not this one needs --force_multi: else its ranks would start here.
        options = ["--hostfile", file.name, "--force_multi"]
        given = {"ssh_port": ssh_port, "master_addr": master_addr, "master_port": master_port}
        options += [f"--{name}={value}" for name, value in given.items() if value is not None]
        command = _command("deepspeed.launcher.runner", options, argv)
        names = [host.name for host in hosts]
        return Launch(command, _environment([]), names, ssh_port).follow()


def _command(module: str, options: list[str], argv: list[str]) -> list[str]:
    """The command line of one of DeepSpeed's launchers, silent unless the run is verbose."""
    level = "info" if "--verbose" in argv else "critical"
    quiet = ["--no_local_rank", f"--log_level={level}"]
    return [sys.executable, "-u", "-m", module, *options, *quiet, *argv]


def _environment(gpus: Sequence[str]) -> dict[str, str]:
    """Variables for the launcher, and for the ranks, which inherit them."""
    variables = for_launcher(sys.executable)
    variables["PYTHONSAFEPATH"] = "1"  # no file of the working directory hides a library
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return variables


class Launch:
    """A launcher in a session of its own, so that Ctrl-C reaches this process alone.

    DeepSpeed's launcher would kill the ranks 30 s after Ctrl-C. This process asks the ranks
    themselves, which may take as long as they need for their step and for saving.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        hosts: Sequence[str] = (),
        ssh_port: int | None = None,
    ) -> None:
        self._ranks = Marked(f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}", ssh_port)
        self._hosts = hosts
        self._command = command
        self._environment = os.environ | environment | {MARK: self._ranks.mark}
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None  # the first signal, and when it came
        self._asked_at = 0.0
        self._ended_by: int | None = None  # the signal that ended all at once
        self._is_early = False  # a signal came before there was any rank

    def follow(self) -> int:
        """Starts the launcher and waits for its end; returns the exit code of the ranks.

        Raises `UserError` if it cannot be started.
        """
        numbers = [signal.SIGTERM, signal.SIGUSR1, *([signal.SIGINT] * takes_interrupts())]
        with _handling(numbers, self._ask), _handling([signal.SIGTSTP], self._suspend):
            sys.stdout.flush()
            try:
                process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(
                    f"{self._command[0]} cannot be started: {error.strerror}."
                ) from None
            self._process = process
            if self._is_early:  # a signal came meanwhile
                self._end_all()
            code = process.wait()
            if self._ended_by is None:
                self._wait_for_ranks()
        return self._exit_code(code)

    def _ask(self, number: int, _: Any) -> None:
        """Passes a signal on to the ranks; ends them at once if it is the second one."""
        now = time.monotonic()
        if self._asked is not None:
            if not is_same_request(number, now - self._asked_at):
                self._end(number)
            return
        self._asked, self._asked_at = number, now
        # The ranks say what they do. Without any yet, there is nothing to save.
        sent = number if number == signal.SIGINT else signal.SIGUSR1
        self._is_early = not self._ranks.ask(sent, self._hosts)
        if self._is_early:
            self._end_all()

    def _suspend(self, number: int, _: Any) -> None:
        """Suspends the ranks of this host together with this process, until it goes on."""
        self._signal_session(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal_session(signal.SIGCONT)

    def _end(self, number: int) -> None:
        self._ended_by = number
        print(f"\ncpo_ds: a second {name_of(number)} arrived; ending now.", file=sys.stderr)
        self._end_all()

    def _end_all(self) -> None:
        """Kills the launcher, and then its processes on all hosts, so that nothing new starts."""
        self._signal_session(signal.SIGKILL)
        self._ranks.kill(self._hosts)

    def _signal_session(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _wait_for_ranks(self) -> None:
        """Waits for the ranks of this host that a killed launcher left behind; then kills them."""
        if not self._ranks.here():
            return
        print("\ncpo_ds: the launcher ended before its ranks; they save and end.", file=sys.stderr)
        deadline = time.monotonic() + _LAST_SECONDS
        while self._ranks.here() and time.monotonic() < deadline:
            time.sleep(0.5)
        self._ranks.kill([])

    def _exit_code(self, code: int) -> int:
        """The exit code for one of the launcher, which is 256 - N if signal N ended a rank."""
        if self._ended_by is not None:
            return 128 + self._ended_by
        ended_by = 256 - code if code > 192 else max(0, -code)
        if not ended_by:
            return code
        if self._is_early or ended_by in (self._asked, signal.SIGUSR1):
            text, code = "asked to before training began; nothing is lost.", EXIT_STOPPED
        else:
            who = "the launcher" if code < 0 else "a rank"
            text = (
                f"{who} was ended by signal {ended_by}, {signal.strsignal(ended_by)} (9 often "
                "means that the host ran out of memory). The same command goes on from the newest "
                "checkpoint."
            )
            code = EXIT_RANK_LOST
        print(f"\ncpo_ds: stopped: {text}", file=sys.stderr)
        return code


@contextlib.contextmanager
def _handling(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Any:
    """Handles signals by a function inside a `with` block."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
