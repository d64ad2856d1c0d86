"""Names on the Hugging Face hub: told from paths, and why the hub does not provide one."""

from __future__ import annotations

import os
from pathlib import Path

from cpo_ds.errors import UserError

# Errors of the HTTP libraries that the hub's clients use, and of these clients themselves.
_UNREACHABLE = (
    "ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "ConnectionError",
    "LocalEntryNotFoundError", "OfflineModeIsEnabled",
)  # fmt: skip


def looks_like_path(name: str) -> bool:
    """Whether a text can only be a path, since no name on the hub looks like it."""
    begins = name.startswith(("/", "./", "../", "~")) or name in (".", "..")
    return begins or name.endswith("/") or name.count("/") > 1


def check_folder_or_name(kind: str, name: str) -> None:
    """Raises `UserError` for a path without a folder; a name on the hub is not looked up.

    `kind` says in the message what the folder should hold, such as a model.
    """
    path = Path(name)
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"{name} is a file; give the folder that holds the {kind}.")
    if looks_like_path(name):
        written_out = path.expanduser()
        fix = f"write {written_out}" if written_out.is_dir() else "correct the path"
        raise UserError(f"there is no {kind} {name}: there is no such folder; {fix}.")


def offline_variable(*more: str) -> str | None:
    """The environment variable that keeps libraries from asking the hub; None if there is none.

    `more` are variables that only some libraries read.
    """
    names = (*more, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    true = ("1", "ON", "YES", "TRUE")
    return next((name for name in names if os.environ.get(name, "").upper() in true), None)


def why_not_provided(error: BaseException, *more_variables: str) -> str:
    """Why the hub did not provide a name, with the way out: a clause that follows "and"."""
    if not is_unreachable(error):
        return (
            "the Hugging Face hub does not provide it (check the name, log in with `hf auth login` "
            "if it is gated, or download it and give its folder)"
        )
    if (variable := offline_variable(*more_variables)) is not None:
        return (
            f"{variable} is set, so the Hugging Face hub is not asked, and its cache on this "
            f"machine lacks it (unset {variable}, or download it and give its folder)"
        )
    return (
        "the Hugging Face hub does not answer (check the network and HF_ENDPOINT, or download it "
        "elsewhere and give its folder)"
    )


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the hub could not be asked."""
    while error is not None:
        if type(error).__name__ in _UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False
