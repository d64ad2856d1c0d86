"""Base folders that are loaded as a run does, at one ZeRO stage, and scored."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers import joined, random_pairs
from model_files import settings

from cpo_ds.data.pack import pack
from cpo_ds.engine.engine import Engine, gather_parameters, sharded_loading
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.model.adapter import gather_nothing
from cpo_ds.model.load import load_policy
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config

PAIRS = 2


def score_folders(folders: dict[str, str], stage: int, output: str) -> None:
    """Writes {name: log-probs of some pairs, or the refusal} of each folder to OUTPUT-RANK.json."""
    silence_libraries()
    ranks = init_ranks()
    silence_after_import()
    results = {name: _score(Path(folder), stage, ranks) for name, folder in folders.items()}
    Path(f"{output}-{ranks.rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def _score(folder: Path, stage: int, ranks: Ranks) -> list[float] | str:
    config = parse_config(settings(folder, deepspeed=f"ds_configs/zero{stage}.json"), "test")
    zero = read_deepspeed_settings(config)
    gather = gather_parameters if stage == 3 else gather_nothing
    try:
        load_tokenizer(str(folder))
        with sharded_loading(zero, ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=gather)
            engine = Engine(policy, config, zero)
    except UserError as error:
        return str(error)
    pairs = random_pairs(PAIRS)
    with engine.evaluating():
        logps = engine.score(pack(pairs, tuple(range(PAIRS))))
    engine._deepspeed.destroy()
    return joined((logps.chosen, logps.rejected)).tolist()
