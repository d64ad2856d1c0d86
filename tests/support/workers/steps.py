"""Real steps of the trainer whose waits for the device and exchanges between ranks are counted."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cpo_ds.engine.engine import Update
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import init_ranks
from cpo_ds.run import trainer
from workers.training import build

# Operations whose result the host has to read, so that on a GPU it would wait for the device.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
_EXCHANGES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "reduce",
    "broadcast", "barrier",
)  # fmt: skip


class Waits(TorchDispatchMode):
    """Counts operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func._schema.name.removeprefix("aten::") in _WAITS
        return func(*args, **(kwargs or {}))


class Exchanges:
    """Counts calls and bytes of the exchanges between ranks, by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def take(self) -> dict[str, list[int]]:
        """Counts since the last call: {name: [calls, bytes]}."""
        counts = {name: [self.calls[name], self.bytes[name]] for name in sorted(self.calls)}
        self.calls.clear()
        self.bytes.clear()
        return counts

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in _EXCHANGES:
                counting = self._counting(name, getattr(dist, name))
                stack.enter_context(mock.patch.object(dist, name, counting))
            yield

    def _counting(self, name: str, exchange: Callable[..., Any]) -> Callable[..., Any]:
        def count_and_exchange(*arguments: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.bytes[name] += _largest([*arguments, *options.values()])
            return exchange(*arguments, **options)

        return count_and_exchange


def _largest(values: list[Any]) -> int:
    """Bytes of the larger of input and output, the whole of what is gathered or scattered."""
    sizes = [0]
    for value in values:
        tensors = value if isinstance(value, list | tuple) else [value]
        sizes.append(sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor)))
    return max(sizes)


def count_steps(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Trains each recipe and writes the counts of its last step to NAME.json."""
    silence_libraries()
    exchanges = Exchanges()
    with exchanges.counted():  # from the start on, since DeepSpeed keeps torch's functions
        ranks = init_ranks()
        for name, values in recipes.items():
            run = build(values | {"output_dir": f"{folder}/{name}"}, ranks)
            counts = _count_last_step(run, exchanges)
            run.monitor.close()
            run.engine._deepspeed.destroy()
            if ranks.rank == 0:
                Path(folder, f"{name}.json").write_text(json.dumps(counts))
    dist.destroy_process_group()


def _count_last_step(run: trainer.Run, exchanges: Exchanges) -> dict[str, Any]:
    """Trains, and returns the counts of the last step."""
    waits = Waits()
    counts: dict[str, Any] = {"micro_batches": [], "waits": {}}
    engine = run.engine
    update, accumulate = engine.update, engine.accumulate

    def accumulate_and_count(share: torch.Tensor) -> None:
        accumulate(share)
        counts["micro_batches"].append(exchanges.take())

    def update_and_count(rate: float) -> Update:
        counts["waits"]["before the update"] = waits.count
        done = update(rate)
        counts["waits"]["after the update"] = waits.count
        counts["update"] = exchanges.take()
        return done

    counted = mock.patch.multiple(engine, accumulate=accumulate_and_count, update=update_and_count)
    train_step = trainer._train_step

    def count_if_last(run: trainer.Run, step: int, *others: Any) -> Any:
        if step < run.total_steps:
            return train_step(run, step, *others)
        exchanges.take()
        with counted, waits:
            return train_step(run, step, *others)

    with mock.patch.object(trainer, "_train_step", count_if_last):
        trainer.train(run)
    counts["weights"] = _bytes_of_weights(run)
    return counts


def _bytes_of_weights(run: trainer.Run) -> dict[str, int]:
    policy = run.engine.policy
    first_layer = policy.causal_lm.get_decoder().layers[0]
    return {
        "all": _bytes(policy.parameters()),
        "trained": _bytes(p for p in policy.parameters() if p.requires_grad),
        "first layer": _bytes(first_layer.parameters()),
    }


def _bytes(parameters: Iterable[Any]) -> int:
    return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters)
