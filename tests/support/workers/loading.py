"""Models that are loaded, split and exported, and the memory that this takes."""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import threading
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.initialization import no_init_weights

from cpo_ds.engine import engine
from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.export.from_checkpoint import export
from cpo_ds.model.load import load_policy
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import init_ranks
from cpo_ds.recipe import parse_config

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def export_watched(
    run: str, output: str, merge: bool, shard_bytes: int, largest_file: int | None
) -> int:
    """Exports a run and writes the growth of this process's memory to OUTPUT.json.

    Files cannot grow beyond `largest_file` bytes, as if the disk were full.
    """
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    silence_libraries()
    try:
        with MemoryWatch() as memory:
            export(Path(run), output=Path(output), merge=merge, shard_bytes=shard_bytes)
    except UserError as error:
        print(error)
        return 2
    Path(f"{output}.json").write_text(json.dumps({"grown_bytes": memory.peak - memory.start}))
    return 0


def load_sharded(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Loads each recipe's policy and writes this rank's share of it to NAME-RANK.json."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        config = parse_config(values, "test")
        settings = read_deepspeed_settings(config)
        with MemoryWatch() as memory, engine.sharded_loading(settings, ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=engine.gather_parameters)
        named = list(policy.named_parameters())
        base = [parameter for name, parameter in named if "lora_" not in name]
        record = {
            "whole": sum(parameter.ds_numel for parameter in base),
            "here": sum(parameter.ds_tensor.numel() for parameter in base),
            "gathered": sum(parameter.numel() for parameter in base),
            "grown_bytes": memory.peak - memory.start,
        }
        Path(folder, f"{name}-{ranks.rank}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def print_fingerprints(recipes: dict[str, dict[str, Any]]) -> None:
    """Prints `fingerprint NAME HEX` of each recipe's policy as it is loaded."""
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        config = parse_config(values, "test")
        with engine.sharded_loading(read_deepspeed_settings(config), ranks):
            policy, _ = load_policy(config, device=ranks.device, gather=engine.gather_parameters)
        print(f"fingerprint {name} {policy.fingerprint}", flush=True)
    torch.distributed.destroy_process_group()


class MemoryWatch:
    """Peak of this process's own memory, files mapped into it aside, in bytes."""

    def __enter__(self) -> MemoryWatch:
        # Freed memory goes back to the system at once: what is there is what is held.
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**18)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**20)
        libc.malloc_trim(0)
        self.start = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024


def split_encoder(folder: str) -> None:
    """Splits an XLM-R encoder over the ranks; compares outputs and memory with the whole one."""
    from cpo_ds.engine.frozen import shard_frozen

    ranks = init_ranks()
    settings = transformers.XLMRobertaConfig(
        vocab_size=2000, hidden_size=512, intermediate_size=2048, num_hidden_layers=14,
        num_attention_heads=8, max_position_embeddings=66,
    )  # fmt: skip
    with torch.device("meta"):
        layout = transformers.XLMRobertaModel(settings, add_pooling_layer=False).state_dict()

    def weight(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        return 0.05 * torch.randn(layout[name].shape, generator=generator)

    inputs = {"input_ids": torch.arange(4 + ranks.rank, 34 + ranks.rank).view(2, 15)}
    with torch.no_grad(), MemoryWatch() as memory:
        with no_init_weights():
            model = transformers.XLMRobertaModel(settings, add_pooling_layer=False)

        def fill(name: str, part: torch.nn.Module) -> None:
            for own, parameter in part.named_parameters(recurse=False):
                parameter.data = weight(f"{name}.{own}")

        engine = shard_frozen(model, fill, ranks.world_size)
        output = model(**inputs).last_hidden_state.clone()
    held = sum(parameter.ds_tensor.numel() for parameter in model.parameters())
    whole = transformers.XLMRobertaModel(settings, add_pooling_layer=False).eval()
    whole.load_state_dict({name: weight(name) for name in layout}, strict=False)
    with torch.no_grad():
        expected = whole(**inputs).last_hidden_state
    seen = {
        "equal": torch.equal(output, expected),
        "whole_bytes": 4 * sum(parameter.numel() for parameter in whole.parameters()),
        "held_bytes": 4 * held,
        "grown_bytes": memory.peak - memory.start,
    }
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(seen))
    del engine
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
