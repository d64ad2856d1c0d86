"""Programs of cpo_ds on another day, each in a process of its own."""

from __future__ import annotations

import datetime

from cpo_ds import cli
from cpo_ds.data import chat
from cpo_ds.ranks.quiet import silence_after_import
from cpo_ds.run import pairs
from cpo_ds.run.main import main
from cpo_ds.translate import tokens


def _be_on(day: str) -> None:
    """Sets the calendar of this process."""

    class Calendar(datetime.date):
        @classmethod
        def today(cls) -> Calendar:
            return cls.fromisoformat(day)

    for module in (chat, tokens, pairs):
        module.date = Calendar  # type: ignore[misc,assignment]


def train_on(day: str, *arguments: str) -> int:
    """Trains on a day."""
    _be_on(day)
    return main(list(arguments))


def run_cli_on(day: str, *arguments: str) -> int:
    """Runs `cpo-ds` on a day."""
    _be_on(day)
    silence_after_import()
    return cli.main(list(arguments))
