"""Values made one ahead in a thread: the same ones in order, errors raised, the thread ended."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import random_pairs
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.data.pack import pack
from cpo_ds.run import ahead
from cpo_ds.run.ahead import made_ahead, planned_steps_on
from cpo_ds.schema import PackedBatch, StepTotals

TOTALS = StepTotals(1, 1, 1, 1, 1, 1)


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ahead")]


@given(keys=st.lists(st.integers(), max_size=6), used=st.integers(0, 6))
def test_values_come_in_order_and_the_thread_ends_with_the_block(keys, used):
    with made_ahead(lambda key: (key, threading.current_thread().name), keys) as values:
        taken = [next(values) for _ in keys[:used]]
        rest = list(values) if used >= len(keys) else []
    assert [key for key, _ in taken + rest] == keys[: max(used, len(taken))]
    assert all(name.startswith("ahead") for _, name in taken)
    assert not own_threads()


def test_each_is_made_while_the_one_before_is_in_use_and_no_earlier():
    begun = {key: threading.Event() for key in range(5)}
    with made_ahead(lambda key: begun[key].set() or key, range(5)) as values:
        for key in values:
            assert key == 4 or begun[key + 1].wait(timeout=30)
            assert not any(begun[later].is_set() for later in range(key + 2, 5))


def test_an_error_is_raised_where_its_value_is_asked_for():
    def fail_at_two(key: int) -> int:
        if key == 2:
            raise ValueError("a pair that fails")
        return key

    with made_ahead(fail_at_two, range(5)) as values:
        assert [next(values), next(values)] == [0, 1]
        with pytest.raises(ValueError, match="a pair that fails"):
            next(values)
    assert not own_threads()


def test_the_thread_ends_with_an_error_of_the_loop():
    with pytest.raises(KeyError), made_ahead(abs, range(5)) as values:
        for _ in values:
            raise KeyError
    assert not own_threads()


def test_a_cpu_plans_in_its_own_thread_when_asked():
    planned = []

    def plan(step: int) -> tuple[list[PackedBatch], StepTotals]:
        planned.append((step, threading.current_thread()))
        return [], TOTALS

    with planned_steps_on(torch.device("cpu"), plan, range(3)) as steps:
        next(steps)
    assert planned == [(0, threading.current_thread())]


class Gpu:
    """Stands in for `torch.cuda`: writes down, by thread, what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.memory: list[int] = []  # tensors that a stream holds
        self.Stream = lambda device: "stream of copies"
        self.Event = lambda: SimpleNamespace(record=lambda on: self.write("copied", on))
        main = SimpleNamespace(wait_event=lambda event: self.write("wait"))
        self.current_stream = lambda: main
        self.stream = lambda name: torch.profiler.record_function(name)
        monkeypatch.setattr(ahead.torch, "cuda", self)
        monkeypatch.setattr(PackedBatch, "to", lambda *of: self.copy(*of))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *of: self.hold(*of))

    def write(self, *event: Any) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.log.append(("main" if is_main else "ahead", *event))

    def copy(self, batch: PackedBatch, device: torch.device) -> PackedBatch:
        self.write("copy", batch.pair_indices, device.type)
        return batch

    def hold(self, tensor: torch.Tensor, stream: Any) -> None:
        assert stream is self.current_stream()
        self.memory.append(tensor.data_ptr())


def test_a_gpu_gets_batches_on_a_stream_of_copies_and_waits_for_them(monkeypatch):
    pairs = random_pairs(4)
    batches = [[pack(pairs, (0, 1)), pack(pairs, (2,))], [pack(pairs, (3,))]]
    gpu = Gpu(monkeypatch)
    device = torch.device("cuda", 1)
    with planned_steps_on(device, lambda step: (batches[step], TOTALS), range(2)) as steps:
        for step, (received, totals) in enumerate(steps):
            assert received == batches[step] and totals is TOTALS
            gpu.write("use", step)
            held = {t.data_ptr() for batch in received for t in batch.tensors().values()}
            assert held <= set(gpu.memory)
    assert [event[1:] for event in gpu.log if event[0] == "ahead"] == [
        ("copy", (0, 1), "cuda"),
        ("copy", (2,), "cuda"),
        ("copied", "stream of copies"),
        ("copy", (3,), "cuda"),
        ("copied", "stream of copies"),
    ]
    assert [event[1:] for event in gpu.log if event[0] == "main"] == [
        ("wait",), ("use", 0), ("wait",), ("use", 1),
    ]  # fmt: skip
    # A step is used only after its copies have been ordered.
    copied = [n for n, event in enumerate(gpu.log) if event[1] == "copied"]
    waits = [n for n, event in enumerate(gpu.log) if event[1] == "wait"]
    assert all(before < after for before, after in zip(copied, waits, strict=True))
