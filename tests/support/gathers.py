"""Trains as one of several ranks and counts the numbers that ZeRO-3 gathers, by group size."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed
from deepspeed.runtime.zero import partition_parameters

from cpo_ds.run.main import main


def main_counting_gathers(report: str, *arguments: str) -> int:
    """Runs a recipe and writes {ranks that took part: numbers gathered} to `report`."""
    gather = partition_parameters._dist_allgather_fn
    gathered: Counter[int] = Counter()

    def count(part: Any, whole: Any, group: Any = None) -> Any:
        gathered[torch.distributed.get_world_size(group)] += whole.numel()
        return gather(part, whole, group)

    with mock.patch.object(partition_parameters, "_dist_allgather_fn", count):
        code = main(list(arguments))
    if os.environ["RANK"] == "0":
        Path(report).write_text(json.dumps(gathered))
    return code
