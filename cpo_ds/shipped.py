"""Finds files that come with the package by their bare names, and how the package was installed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cpo_ds import __version__
from cpo_ds.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Shipped:
    """A folder of files that come with the package.

    It is inside the installed package, or beside the package in a checkout.
    """

    folder: str
    suffix: str
    kind: str  # of file, for messages

    def _path(self) -> Path:
        inside = _PACKAGE / self.folder
        return inside if inside.is_dir() else _PACKAGE.parent / self.folder

    def names(self) -> list[str]:
        """The bare names of all files, sorted."""
        return sorted(path.stem for path in self._path().glob(f"*{self.suffix}") if path.is_file())

    def find(self, named: str) -> Path:
        """The path of the file that a user named; a path that a user gave may not exist.

        A name without folder and suffix is that of a shipped file. Anything else is a path from the
        working directory. If no file exists at a path like `ds_configs/zero3.json`, the path stands
        for the shipped file too. Raises `UserError` for a bare name that no shipped file has.
        """
        path = Path(named)
        if "/" in named or path.suffix:
            shipped = self._path() / path.name
            is_shipped = not path.exists() and path == Path(self.folder, path.name)
            return shipped if is_shipped and shipped.is_file() else path
        names = self.names()
        if named not in names:
            raise UserError(
                f"there is no {self.kind} {named}{did_you_mean(named, names)}; shipped ones are "
                f"{', '.join(names)}. Name a file of your own with its suffix or folder, as in "
                f"mine{self.suffix}."
            )
        return self._path() / f"{named}{self.suffix}"


RECIPES = Shipped("recipes", ".yaml", "recipe")
HOSTFILES = Shipped("hostfiles", "", "host file")
DEEPSPEED_FILES = Shipped("ds_configs", ".json", "DeepSpeed configuration")


def find_hostfile(named: str) -> Path:
    """The path of a host file: one of the user's own, else the shipped one of that name."""
    path = Path(named)
    if "/" not in named and (path.exists() or named not in HOSTFILES.names()):
        return path
    return HOSTFILES.find(named)


def is_checkout() -> bool:
    """Whether the package is that of a checkout with its scripts, rather than of a wheel."""
    return (_PACKAGE.parent / "scripts" / "setup.sh").is_file()


def set_up() -> str:
    """The command that sets up the environment in the way that this package was installed."""
    return "bash scripts/setup.sh" if is_checkout() else f"pip install cpo-ds=={__version__}"
