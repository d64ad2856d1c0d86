"""The smallest recipe that is valid, written to a file or loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cpo_ds.config import Config
from cpo_ds.recipe import load_config

MINIMAL = {"model": {"name_or_path": "m"}, "data": {"format": "sample"}}


def recipe(folder: Path, values: Any = MINIMAL) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def load(folder: Path, *argv: str, values: Any = MINIMAL) -> Config:
    config, _ = load_config(["--config", str(recipe(folder, values)), *argv])
    return config
