"""Rows of each format with everything that a report counts, and recipes that read them."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from doors import tokenizers as kinds
from preference_data import alma, write

from cpo_ds.config import Config
from cpo_ds.recipe import parse_config
from cpo_ds.run.pair_cache import Kept, keep_pairs
from cpo_ds.run.pairs import open_inputs

OLD = time.time_ns() - 3600 * 10**9
WORDS = ["the", "old", "house", "by", "sea", "das", "alte", "Haus", "</s>", "stará", "voda", "日本"]
DIRECTIONS = ("en-de", "de-en", "cs-en", "en-zh")


def text(rng: random.Random, longest: int = 12) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, longest)))


def row_of(kind: str, rng: random.Random) -> dict[str, Any]:
    """A random row; sources repeat, some texts are equal, and some are long."""
    source = text(rng, 3)
    chosen, rejected = text(rng), text(rng, 60 if rng.random() < 0.1 else 12)
    if rng.random() < 0.1:
        rejected = chosen
    direction = rng.choice(DIRECTIONS)
    if kind == "x-alma":
        return {"source": source, "chosen": chosen, "reject": rejected, "directions": direction}
    if kind == "alma-r":
        scores = {f"{name}_en_kiwi_xcomet": rng.random() for name in ("ref", "gpt4", "alma")}
        return alma(de=source, en=text(rng), gpt4_en=chosen, alma_en=rejected, **scores)
    if kind == "triplets":
        candidates = {"a": chosen, "b": rejected}
        scores = {"kiwi": {name: round(rng.random(), 1) for name in candidates}}
        row = {"language_pair": direction, "source": source}
        return row | {"candidates": candidates, "scores": scores}
    several = _several(rejected, rng) if kind.startswith("lists") else []
    if kind in ("chats", "lists of chats"):
        turns = [
            [{"role": "assistant", "content": answer}] for answer in (chosen, rejected, *several)
        ]
        user = {"role": "user", "content": source}
        of_row = turns[1] if kind == "chats" else turns[2:]
        row = {"prompt": [user], "chosen": turns[0], "rejected": of_row}
        return row | ({"direction": direction} if rng.random() < 0.7 else {})
    if kind == "lists":
        texts = [f" {one}" for one in several]
        return {"prompt": source, "chosen": f" {chosen}", "rejected": texts}
    return {"prompt": source, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def _several(first: str, rng: random.Random) -> list[str]:
    """None to nine texts, some of them equal, long, or twice in the list."""
    texts = [first, *(text(rng, 60 if rng.random() < 0.1 else 3) for _ in range(7)), first]
    return texts[: rng.choice([0, 1, 2, 3, 9])]


def write_rows(path: Path, kind: str, count: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    rows = [row_of(kind, rng) for _ in range(count)]
    write(path, rows)
    with path.open("ab") as file:
        file.write(b"\n")  # a blank line is counted
    return path


def make(folder: Path, path: Path | None, **sections: Any) -> Config:
    """A recipe for rows at a path, with a small model in `folder`."""
    model = folder / "model"
    if not model.exists():
        kinds.save_folder(model, kinds.byte_level(kinds.GEMMA, puts_bos=True), stops=["</s>"])
    values: dict[str, Any] = {
        "model": {"name_or_path": str(model)},
        "data": {"format": "x-alma", "path": path and str(path), "special_tokens": None},
        "output_dir": str(folder / "run"),
    }
    for name, settings in sections.items():
        values[name] = values.get(name, {}) | settings
    return parse_config(values, "test")


class Starts:
    """Starts of a recipe, one after the other, and what they print."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, config: Config) -> Kept:
        self.said = []
        return keep_pairs(open_inputs(config, self.said.append), self.said.append)


def changed(config: Config, section: str, **values: Any) -> Config:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def settle(path: Path) -> None:
    """Lets a file look as if it had been written an hour ago; its inode's time stays."""
    os.utime(path, ns=(OLD, OLD))


def edit(path: Path, old: bytes, new: bytes, config: Config) -> Config:
    text = path.read_bytes()
    path.write_bytes(text.replace(old, new, 1))
    os.utime(path, ns=(OLD, OLD))  # same size, same time of the last change
    return config


def append(path: Path, config: Config) -> Config:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[0]]))
    return config
