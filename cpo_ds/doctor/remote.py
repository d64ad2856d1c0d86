"""The program that answers for a host: `cpo-ds doctor` sends its text there over ssh.

It runs in any Python from 3.8 on and imports the standard library alone, so it needs no checkout.
Each line of its standard input is a request, `{"request": "devices", ...}`. It answers each by one
line that starts with `MARK`. When the input ends, it ends the processes that it started and removes
the files that it made.
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

MARK = "cpo-ds doctor: "  # start-up files of a shell may print other lines
_GIB = 2**30

_listening: list[socket.socket] = []
_running: list[subprocess.Popen[str]] = []
_made: list[Path] = []  # files and folders, parents before their contents


def answer_requests() -> None:
    """Answers one request after the other until the input ends, then ends the process."""
    # Another thread reads, so that the end of the input also ends a request in progress.
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    while True:
        request = json.loads(requests.get())
        try:
            answer = REQUESTS[request.pop("request")](**request)
        except Exception as error:  # the one who asked reports it
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
    """Removes all files and folders made here; answers how many stay: others use them."""
    for path in reversed(_made[:]):
        with contextlib.suppress(OSError):
            path.unlink() if path.is_file() else path.rmdir()
            _made.remove(path)
    return {"left": len(_made)}


def clock() -> dict[str, Any]:
    """Answers this host's time, in seconds since 1970."""
    return {"time": time.time()}


def devices() -> dict[str, Any]:
    """Answers this host's name, Python, CPU cores and GPUs: all that is quick to find out."""
    return {
        "hostname": socket.gethostname(),
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "python": sys.executable,
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
    }


def _gpus() -> list[list[str]]:
    """Returns name, memory, memory in use (both MiB) and driver version of each NVIDIA GPU."""
    fields = "name,memory.total,memory.used,driver_version"
    text = _output("nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits")
    return [[value.strip() for value in line.split(",")] for line in text.splitlines() if line]


def facts(package: str, **names: list[str]) -> dict[str, Any]:
    """Answers software, files, memory and addresses; `package` is the folder of cpo_ds."""
    versions = {name: _version(name) for name in names["packages"]}
    return {
        "versions": {name: version for name, version in versions.items() if version},
        "programs": [name for name in names["programs"] if shutil.which(name)],
        "sources": {
            path.relative_to(package).as_posix(): _digest(path)
            for path in sorted(Path(package).rglob("*.py"))
        },
        "commit": _commit(Path(package).parent),
        "existing_paths": [path for path in names["paths"] if os.path.exists(path)],
        "files": {name: _digest(Path(name)) for name in names["files"]},
        "trees": {name: _tree(Path(name)) for name in names["trees"]},
        "memory": _available_memory(),
        "shm": _free("/dev/shm"),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "addresses": _output("hostname", "-I").split(),
        "resolved": _resolve(names["hosts"]),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _digest(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return None


def _commit(checkout: Path) -> str:
    """Reads the checked-out commit from git's files, as git may be missing; "" without one."""
    git = checkout / ".git"
    head = _read(git / "HEAD")
    reference = head.partition("ref: ")[2]
    if not reference:  # a commit is checked out, not a branch
        return head
    packed = re.search(rf"^(\w+) {re.escape(reference)}$", _read(git / "packed-refs"), re.M)
    return _read(git / reference) or (packed[1] if packed else "")


def _tree(path: Path) -> dict[str, int] | None:
    """Returns the bytes of each file in a folder, or of one file; None if the path is missing."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {f.relative_to(path).as_posix(): f.stat().st_size for f in files} or None


def _available_memory() -> float | None:
    """Returns the GiB of memory that processes can still get; None if the kernel does not say."""
    available = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    return int(available[1]) * 1024 / _GIB if available else None


def _free(path: str) -> float | None:
    """Returns the free GiB of the disk that a path is on; None if the path is missing."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path).free / _GIB
    return None


def _resolve(names: list[str]) -> dict[str, list[str]]:
    """Looks up the addresses of all names at once: a silent name server takes seconds for each."""

    def addresses(name: str) -> list[str]:
        with contextlib.suppress(OSError):
            infos = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)
            return sorted({str(info[4][0]) for info in infos})
        return []

    with ThreadPoolExecutor(max_workers=max(1, len(names))) as pool:
        return dict(zip(names, pool.map(addresses, names), strict=True))


def write_token(folder: str, token: str) -> dict[str, Any]:
    """Leaves the file `token` in a folder until `tidy`; makes the folder if it is missing."""
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
    """Answers which hosts' files are visible; network file systems may need `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        seen = [token for token in tokens if _read(Path(folder) / token) == token]
        if len(seen) == len(tokens) or time.monotonic() > deadline:
            return {"seen": seen}
        time.sleep(0.1)


def listen(port: int, towards: str) -> dict[str, Any]:
    """Opens a port (0: any free one); answers it and this host's own address `towards` another."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    address = ""
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((towards, 9))  # sends nothing: the kernel looks up the route
        address = probe.getsockname()[0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # torch sets it too
    _listening.append(listener)
    try:
        listener.bind(("", port))
        listener.listen(1024)
    except OSError as error:
        return {"problem": error.strerror or str(error), "by": _owner(port), "address": address}
    return {"problem": "", "port": listener.getsockname()[1], "address": address}


def _owner(port: int) -> str:
    """Names the process that holds a port; empty if `ss` is missing or may not see it."""
    owner = re.search(r'\("([^"]+)",pid=(\d+)', _output("ss", "-Hltnp", f"sport = :{port}"))
    return f"{owner[1]}, process {owner[2]}" if owner else ""


def connect(targets: list[list[Any]], timeout: float) -> dict[str, Any]:
    """Connects to each (address, port) at once; answers the problem of each, empty if none."""

    def problem(target: list[Any]) -> str:
        try:
            socket.create_connection((target[0], target[1]), timeout=timeout).close()
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return ""

    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        return {"problems": list(pool.map(problem, targets))}


def close_ports() -> dict[str, Any]:
    """Closes the ports that `listen` opened."""
    while _listening:
        _listening.pop().close()
    return {}


def run(
    commands: list[list[str]], environments: list[dict[str, str]], limit: float
) -> dict[str, Any]:
    """Runs commands at the same time; ends all if one fails or `limit` seconds are over."""
    # Start every command in a session of its own, so that its children can be ended with it.
    deadline = time.monotonic() + limit
    for command, environment in zip(commands, environments, strict=True):
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            start_new_session=True,
        )
        _running.append(process)

    # Wait for the end of all, or for the first failure. A thread for each reads its output.
    with ThreadPoolExecutor(max_workers=len(_running)) as pool:
        reading = [pool.submit(process.communicate) for process in _running]
        codes: list[int | None] = [None]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.05)
            codes = [process.poll() for process in _running]
        if any(codes):
            time.sleep(0.5)  # others may be about to print the cause
        for process in _running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        outputs = [done.result()[0] for done in reading]
    _running.clear()
    return {"codes": codes, "outputs": outputs}


def _output(*command: str) -> str:
    """Returns a program's output; empty if it is missing, fails or takes more than 20 s."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _read(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return ""


# All requests, by their names.
_FUNCTIONS = (clock, close_ports, connect, devices, facts, listen, run, seen_tokens, tidy)
REQUESTS = {function.__name__: function for function in (*_FUNCTIONS, write_token)}

if __name__ == "__main__":
    answer_requests()
