"""Models that are split over the ranks to translate, beside whole ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import init_ranks
from cpo_ds.translate.local_model import LocalModel


def compare_adapters(base: str, adapters: dict[str, str], folder: str) -> None:
    """Translates by each adapter, split and whole; writes [equal, held, whole] to RANK.json.

    `held` is the number of weights that this rank keeps between two batches.
    """
    silence_libraries()
    warnings.simplefilter("ignore")
    ranks = init_ranks()
    tokenizer = load_tokenizer(base)
    # Each rank has prompts and limits of its own, so their searches end at different times.
    prompts = [[7 + n, 20 + ranks.rank, *range(30, 34 + n + ranks.rank)] for n in range(3)]
    search = {"do_sample": False, "max_new_tokens": 6 + 4 * ranks.rank}
    seen = {}
    for name, adapter in adapters.items():
        beams = 1 if name == "aLoRA" else 3  # which has no beam search
        loading = (base, adapter or None, "float32", tokenizer, ranks.device)
        whole = LocalModel(*loading)
        split = LocalModel(*loading, shards=ranks.world_size)
        alone, together = (
            m.translate(prompts, 0, num_beams=beams, **search) for m in (whole, split)
        )
        held = [p.numel() + p.ds_tensor.numel() for p in split._model.get_base_model().parameters()]
        count = sum(p.numel() for p in whole._model.get_base_model().parameters())
        seen[name] = [alone == together, sum(held), count]
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
