"""Reads `.deepspeed_env`: environment variables that DeepSpeed's launcher sets on every host."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cpo_ds.errors import UserError

ENVIRONMENT_FILE = ".deepspeed_env"


def apply_environment_files() -> None:
    """Sets the variables of `.deepspeed_env` in this process, except those that are set already.

    DeepSpeed's launcher reads the file itself; torchrun, mpirun and srun do not. Raises `UserError`
    if a file has a line that DeepSpeed's launcher would refuse.
    """
    for variable, value in read_environment_files().items():
        os.environ.setdefault(variable, value)


def read_environment_files() -> dict[str, str]:
    """The variables of `.deepspeed_env` in the home and the working directory; the latter wins.

    The variable `DS_ENV_FILE` gives the files another name. Raises `UserError` if a file has a
    line that DeepSpeed's launcher would refuse.
    """
    name = os.environ.get("DS_ENV_FILE", ENVIRONMENT_FILE)
    values: dict[str, str] = {}
    for folder in (Path.home(), Path.cwd()):
        path = folder / name
        if path.is_file():
            try:
                values |= parse_environment_file(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{path}: {error}.") from None
    return values


def parse_environment_file(text: str) -> dict[str, str]:
    """The variables in the text of a `.deepspeed_env` file: one NAME=VALUE a line.

    Values are used exactly as written: quotes are part of them. Raises `ValueError` for any other
    line, since DeepSpeed's launcher fails on comments and empty lines.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("\ufeff"):
            raise ValueError(
                "it begins with a byte order mark, which DeepSpeed's launcher takes for a part of "
                "the first name; save it as UTF-8 without one"
            )
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise ValueError(
                f"line {number} is {line!r} instead of NAME=VALUE; remove comments and empty lines"
            )
        values[name.strip()] = value.strip()
    return values
