"""DeepSpeed's hostfile: one line for each host, `name slots=N`."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.errors import UserError


@dataclass(frozen=True)
class Host:
    """One line of a hostfile: a name that ssh connects to, and the number of ranks it gets."""

    name: str
    slots: int
    line: int = 0  # its number in the hostfile, for messages


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Returns the hosts of a hostfile, in its order.

    Raises `UserError` for a file that DeepSpeed's launcher would fail on.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"hostfile {path} cannot be read: {reason}.") from None
    try:
        return parse_hostfile(text)
    except ValueError as error:
        raise UserError(f"{path}{error}") from None


def has_byte_order_mark(path: Path) -> bool:
    """Whether a file begins with the mark that some editors add.

    `read_hostfile` skips it. DeepSpeed's launcher takes it for a part of the first host's name.
    """
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def parse_hostfile(text: str) -> tuple[Host, ...]:
    """Returns the hosts in the text of a hostfile.

    Raises `ValueError` with a message to append to the file's name, such as `:3: ...`.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue

        # The launcher's own pattern: slots=N comes second, and anything after it is ignored. A name
        # that starts with "-" would reach ssh as an option.
        name, *settings = line.split()
        slots = re.match(r"\S+\s+slots=(\d+)(?=\s|$)", line)
        if slots is None or int(slots[1]) == 0 or name.startswith("-"):
            problem = (
                f"slots has to follow the name, not {settings[0]!r}" if settings else "no slots"
            )
            if slots is not None:
                problem = "a host needs a name" if name.startswith("-") else "a host needs a slot"
            raise ValueError(
                f":{number}: {line!r}: {problem}; write a line for each host as `name slots=N`, "
                "where N is its number of GPUs."
            )

        if name in hosts:
            raise ValueError(
                f":{number}: {name} is on line {hosts[name].line} already; give each host one "
                "line, with all of its slots."
            )
        hosts[name] = Host(name, int(slots[1]), number)
    if not hosts:
        raise ValueError(" names no host; write a line for each host as `name slots=N`.")
    return tuple(hosts.values())


def hostfile_text(hosts: Iterable[Host]) -> str:
    """Returns the text of a hostfile with these hosts, which `parse_hostfile` reads back."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def fold(names: Iterable[str]) -> str:
    """Shortens a list of names by their numbers: gpu01, gpu02, gpu03, x -> `gpu[01-03], x`."""
    runs: list[tuple[str, str, str, str]] = []  # stem, first and last number, rest
    for name in names:
        numbered = re.fullmatch(r"(.*?)(\d+)(\D*)", name)
        stem, number, rest = numbered.groups() if numbered else (name, "", "")
        if runs and number and runs[-1][0] == stem and runs[-1][3] == rest:
            first, last = runs[-1][1:3]
            if last and len(last) == len(number) and int(number) == int(last) + 1:
                runs[-1] = (stem, first, number, rest)
                continue
        runs.append((stem, number, number, rest))
    return ", ".join(
        f"{stem}{first}{rest}" if first == last else f"{stem}[{first}-{last}]{rest}"
        for stem, first, last, rest in runs
    )
