"""Runs that end in an export, some with a fault planted in it."""

from __future__ import annotations

import gc
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from export_faults import planted

from cpo_ds.errors import UserError
from cpo_ds.model.policy import PolicyModel
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import final_export
from cpo_ds.run.session import run_recipe


def export_each(runs: dict[str, tuple[dict[str, Any], str | None]], report: str) -> None:
    """Runs each recipe with its fault; writes what the run said, or was refused with, to `report`.

    Runs "on one host" export as if other hosts did not have the folder. Nothing of the trained
    policy may be in memory when its export is loaded.
    """
    silence_libraries()
    ranks = init_ranks()
    said: dict[str, str] = {}
    score = final_export._score

    def score_alone(*arguments: Any) -> Any:
        # Without isinstance, which would touch lazy modules of other libraries.
        assert not [value for value in gc.get_objects() if type(value) is PolicyModel]
        return score(*arguments)

    with (
        mock.patch.object(torch.distributed, "destroy_process_group"),
        mock.patch.object(final_export, "_score", score_alone),
    ):
        for name, (values, fault) in runs.items():
            with planted(fault), _on_one_host() if "on one host" in name else nullcontext():
                try:
                    run_recipe(parse_config(values, "test"))
                    said[name] = "exported"
                except UserError as error:
                    said[name] = str(error)
    everyone = ranks.gather(said)
    assert all(of_rank == everyone[0] for of_rank in everyone)
    if ranks.rank == 0:
        Path(report).write_text(json.dumps(said), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _on_one_host() -> Any:
    return mock.patch.object(final_export, "_why_not_scored", lambda *_: "not every host has it")
