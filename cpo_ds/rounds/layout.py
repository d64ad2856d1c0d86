"""Names of the files that rounds write, and the seeds and sources of a round."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo_ds.storage.results import content_key

SAMPLES = "policy"  # the system's name of sampled translations, which are policy-1, policy-2, ...
START = "start"  # the system's name of the policy before round 1


@dataclass(frozen=True)
class Layout:
    """The folder of all rounds. Round 0 is the policy before the first round."""

    folder: Path

    @property
    def record(self) -> Path:
        """The settings by which the folder was made."""
        return self.folder / "config.yaml"

    @property
    def results(self) -> Path:
        """Results of all rounds, without times: the same bytes after any interruption."""
        return self.folder / "rounds.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @property
    def best(self) -> Path:
        """A link to the run of the best round; missing if that is the start."""
        return self.folder / "best"

    @property
    def times(self) -> Path:
        """A line for each stage that was carried out."""
        return self.folder / "times.jsonl"

    @property
    def scores(self) -> Path:
        """The cache of watched and selecting metrics over the watched texts."""
        return self.folder / "scores.cache"

    def log(self, number: int, stage: str) -> Path:
        """The console output of a stage."""
        return self.folder / "logs" / f"round-{number}-{stage}.txt"

    def at(self, number: int, name: str) -> Path:
        """A file or folder of one round."""
        return self.folder / f"round-{number}" / name

    def watched(self, number: int) -> Path:
        """The watched texts with translations by the start and by all rounds up to this one."""
        return self.at(number, "watched.jsonl")

    def export(self, number: int) -> Path:
        """The adapter or model that a round trained."""
        return self.at(number, "run") / "export"


def system_of(number: int) -> str:
    """The name of a round's policy among the systems of the watched texts."""
    return f"round-{number}" if number else START


def sample_seed(seed: int, number: int) -> int:
    """The seed of a round's samples, from 0 to 2^31 - 1.

    `cpo-ds translate` derives the seed of each sample from it, the prompt and the sample's number.
    So a sample depends on (seed, round, source, number), and on no other sample.
    """
    return int(hashlib.sha256(f"rounds {seed} {number}".encode()).hexdigest()[:8], 16) % 2**31


def sources_of_round(
    rows: Sequence[dict[str, Any]], per_round: int | None, seed: int, number: int
) -> list[dict[str, Any]]:
    """The sources of round `number`, from 1, in the order of the file.

    Rounds take the next `per_round` rows of an order that the seed draws; when all rows are used, a
    new order begins. A round has no row twice.
    """
    if per_round is None or per_round >= len(rows):
        return list(rows)
    count = len(rows)
    taken: set[int] = set()
    first = (number - 1) * per_round
    # Two orders are enough: less than one is taken.
    for turn in (first // count, first // count + 1):
        keys = [content_key(f"{seed} {turn} {index}") for index in range(count)]
        order = sorted(range(count), key=keys.__getitem__)
        for row in order[max(0, first - turn * count) :]:
            if len(taken) < per_round:
                taken.add(row)
    return [rows[index] for index in sorted(taken)]
