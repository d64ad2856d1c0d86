"""Recipes and DeepSpeed files that come with the package, found by their bare names anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cpo_ds.errors import UserError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Shipped:
    """A folder of files that people name: in the installed package, beside it in a checkout."""

    folder: str
    suffix: str
    what: str  # for messages

    def _path(self) -> Path:
        inside = _PACKAGE / self.folder
        return inside if inside.is_dir() else _PACKAGE.parent / self.folder

    def names(self) -> list[str]:
        """The bare names, sorted."""
        return sorted(path.stem for path in self._path().glob(f"*{self.suffix}"))

    def find(self, named: str) -> Path:
        """The file that is meant; one that is named by a path may not be there.

        A name without folder and suffix is a shipped one's. A path counts from the working
        directory; where nothing is there, `ds_configs/zero3.json`, say, is the shipped one all the
        same. Raises `UserError` for a name that is none.
        """
        path = Path(named)
        if "/" in named or path.suffix:
            shipped = self._path() / path.name
            is_shipped = not path.exists() and path == Path(self.folder, path.name)
            return shipped if is_shipped and shipped.is_file() else path
        names = self.names()
        if named not in names:
            raise UserError(
                f"there is no {self.what} {named}{did_you_mean(named, names)}; shipped are "
                f"{', '.join(names)}, and a file of yours is named with its suffix or folder, as "
                f"in mine{self.suffix}."
            )
        return self._path() / f"{named}{self.suffix}"


RECIPES = Shipped("recipes", ".yaml", "recipe")
DEEPSPEED_FILES = Shipped("ds_configs", ".json", "DeepSpeed configuration")
