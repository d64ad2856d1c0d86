"""What runs on each host while `cpo-ds doctor` looks at them. The standard library only.

This text is sent over ssh to whatever Python there is, so it needs nothing of the host's checkout.
It reads a request a line from standard input, `{"do": "devices", ...}`, and answers each by a line
that starts with `MARK`. Where the input ends, all that it started ends, and files that it made go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

MARK = "cpo-ds doctor: "  # a start-up file of the shell may print lines of its own
_GIB = 2**30

_listening: list[socket.socket] = []
_running: list[subprocess.Popen[str]] = []
_made: list[Path] = []  # files and folders


def answer_requests() -> None:
    """Answers until the input ends."""
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            answer = globals()[request.pop("do")](**request)
        except Exception as error:  # it has to reach the one who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(MARK + json.dumps(answer) + "\n")
        sys.stdout.flush()


def _read_requests(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    for process in _running:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    tidy()
    os._exit(0)


def tidy() -> dict[str, Any]:
    """Removes what was made here; how much is left, as others still have something in it."""
    for path in reversed(_made[:]):
        with contextlib.suppress(OSError):
            path.unlink() if path.is_file() else path.rmdir()
            _made.remove(path)
    return {"left": len(_made)}


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


def facts(package: str, **names: list[str]) -> dict[str, Any]:
    """What is installed, the checkout, files, memory, network addresses."""
    versions = {name: _version(name) for name in names["packages"]}
    return {
        "versions": {name: version for name, version in versions.items() if version},
        "programs": [name for name in names["programs"] if shutil.which(name)],
        "sources": {
            path.relative_to(package).as_posix(): _digest(path)
            for path in sorted(Path(package).rglob("*.py"))
        },
        "commit": _commit(Path(package).parent),
        "there": [path for path in names["paths"] if os.path.exists(path)],
        "files": {name: _digest(Path(name)) for name in names["files"]},
        "trees": {name: _tree(Path(name)) for name in names["trees"]},
        "memory": _available_memory(),
        "shm": _free("/dev/shm"),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "addresses": _output("hostname", "-I").split(),
        "resolved": _resolve(names["hosts"]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def _commit(checkout: Path) -> str:
    """The commit that git has checked out, without running git; nothing where there is none."""
    git = checkout / ".git"
    head = _read(git / "HEAD")
    reference = head.partition("ref: ")[2]
    if not reference:
        return head
    packed = re.search(rf"^(\w+) {re.escape(reference)}$", _read(git / "packed-refs"), re.M)
    return _read(git / reference) or (packed[1] if packed else "")


def _tree(path: Path) -> dict[str, int] | None:
    """The size of each file in a folder, or of the file; None where there is nothing."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {f.relative_to(path).as_posix(): f.stat().st_size for f in files} or None


def _available_memory() -> float | None:
    """GiB that processes can still take."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    return int(found[1]) * 1024 / _GIB if found else None


def _free(path: str) -> float | None:
    """GiB that are free on a disk."""
    try:
        return shutil.disk_usage(path).free / _GIB
    except OSError:
        return None


def _resolve(names: list[str]) -> dict[str, list[str]]:
    """The addresses of each name, at once: a name server that is silent takes seconds for each."""

    def addresses(name: str) -> list[str]:
        try:
            return sorted(
                {str(i[4][0]) for i in socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)}
            )
        except OSError:
            return []

    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        return dict(zip(names, pool.map(addresses, names), strict=True))


def write_token(folder: str, token: str) -> dict[str, Any]:
    """Makes a folder where it is missing, and leaves a file in it, until `tidy`."""
    path = Path(folder)
    try:
        for missing in reversed([p for p in [path, *path.parents] if not p.exists()]):
            with contextlib.suppress(FileExistsError):  # another host was faster
                missing.mkdir()
                _made.append(missing)
        file = path / token
        _made.append(file)
        file.write_text(token, encoding="utf-8")
    except OSError as error:
        return {"problem": error.strerror or str(error), "disk": None}
    return {"problem": "", "disk": _free(folder)}


def seen_tokens(folder: str, tokens: list[str], wait: float) -> dict[str, Any]:
    """Which files of other hosts show here; network file systems may take a moment."""
    deadline = time.monotonic() + wait
    while True:
        seen = [token for token in tokens if _read(Path(folder) / token) == token]
        if len(seen) == len(tokens) or time.monotonic() > deadline:
            return {"seen": seen}
        time.sleep(0.1)


def listen(port: int, towards: str) -> dict[str, Any]:
    """Takes a port (0: any) until `close_ports`; this host's address on the way to another."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    address = ""
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((towards, 9))  # sends nothing; asks the kernel for the route
        address = probe.getsockname()[0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch does
    _listening.append(listener)
    try:
        listener.bind(("", port))
        listener.listen(1024)
    except OSError as error:
        return {"problem": error.strerror or str(error), "by": _owner(port), "address": address}
    return {"problem": "", "port": listener.getsockname()[1], "address": address}


def _owner(port: int) -> str:
    found = re.search(r'\("([^"]+)",pid=(\d+)', _output("ss", "-Hltnp", f"sport = :{port}"))
    return f"{found[1]}, process {found[2]}" if found else ""


def connect(targets: list[list[Any]], timeout: float) -> dict[str, Any]:
    """Connects to each (address, port), all at once; what went wrong with each, or nothing."""

    def problem(target: list[Any]) -> str:
        try:
            socket.create_connection((target[0], target[1]), timeout=timeout).close()
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return ""

    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        return {"problems": list(pool.map(problem, targets))}


def close_ports() -> dict[str, Any]:
    """Gives the ports back."""
    while _listening:
        _listening.pop().close()
    return {}


def run(
    commands: list[list[str]], environments: list[dict[str, str]], limit: float
) -> dict[str, Any]:
    """Runs commands beside each other; ends all where one fails or the time is up."""
    deadline = time.monotonic() + limit
    for command, environment in zip(commands, environments, strict=True):
        _running.append(
            subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
                start_new_session=True,
            )
        )
    with ThreadPoolExecutor(max_workers=len(_running)) as pool:
        reading = [pool.submit(process.communicate) for process in _running]
        codes: list[int | None] = [None]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.poll() for process in _running]
        if any(codes):
            time.sleep(0.5)  # others may be about to say why
        for process in _running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        outputs = [done.result()[0] for done in reading]
    _running.clear()
    return {"codes": codes, "outputs": outputs}


def _output(*command: str) -> str:
    """What a program prints; nothing where it is missing, fails or takes long."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    answer_requests()
