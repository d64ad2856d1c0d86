"""Ranks of hosts with folders of their own, which get the pairs from rank 0."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cpo_ds.data.pair_columns import pairs_fingerprint
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import pair_sharing
from cpo_ds.run.pair_sharing import load_pairs


def load_on_hosts(values: dict[str, Any], folder: str) -> None:
    """Loads pairs three times as a host for each rank; the last copy was damaged before.

    Writes the pairs' fingerprints and the bytes that were sent to N.json.
    """
    silence_libraries()
    ranks = init_ranks()
    own = Path(folder) / f"host-{ranks.rank}"
    own.mkdir()
    os.chdir(own)  # output_dir is a relative path
    hosts = dataclasses.replace(ranks, hosts=tuple(map(str, range(ranks.world_size))))
    send, sent, seen = Ranks.send_from_first, [], []

    def send_and_count(self: Ranks, data: bytes | None, size: int) -> bytes:
        sent[-1] += size
        return send(self, data, size)

    with (
        mock.patch.object(Ranks, "send_from_first", send_and_count),
        mock.patch.object(pair_sharing, "_PIECE", 10_000),
    ):
        for start in range(3):
            if start == 2 and ranks.rank == 1:
                (file,) = Path("out", "pairs").glob("*.arrow")
                content = bytearray(file.read_bytes())
                content[500] ^= 1
                file.write_bytes(content)
            sent.append(0)
            _, train, held_out, _ = load_pairs(parse_config(values, "test"), hosts, is_local=True)
            tokens = [pair.tokens.sum() for pair in (*train, *held_out)]
            seen.append([pairs_fingerprint(list(train)), len(held_out), int(sum(tokens))])
    files = sorted(path.name for path in Path("out", "pairs").iterdir())
    (Path(folder) / f"{ranks.rank}.json").write_text(json.dumps([sent, seen, files]))
    torch.distributed.destroy_process_group()
