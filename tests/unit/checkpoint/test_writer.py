"""Copies of a state in host memory, which training cannot change while they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cpo_ds.checkpoint import writer


def test_a_copy_shares_no_memory_with_the_state():
    state = {"weights": [torch.arange(4.0), torch.arange(6).view(2, 3).t()], "step": [3, {"a": 1}]}
    copied = writer._on_host(state)
    state["weights"][0].zero_()
    state["weights"][1].zero_()
    state["step"][1]["a"] = 2
    assert torch.equal(copied["weights"][0], torch.arange(4.0))
    assert torch.equal(copied["weights"][1], torch.arange(6).view(2, 3).t())
    assert copied["step"] == [3, {"a": 1}]


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def events(monkeypatch) -> list[Any]:
    """What is asked of the GPU, in order: sizes of copies, and waiting."""
    events: list[Any] = []
    copy = torch.Tensor.copy_

    def copy_later(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
        events.append(("copy", source.numel(), non_blocking))
        return copy(self, source.as_subclass(torch.Tensor))

    empty_like = torch.empty_like

    def pinned_like(tensor: torch.Tensor, *, device: str, pin_memory: bool = False) -> torch.Tensor:
        assert device == "cpu"
        if pin_memory:
            events.append("pin")
        return empty_like(tensor.as_subclass(torch.Tensor))

    monkeypatch.setattr(writer.torch.Tensor, "copy_", copy_later)
    monkeypatch.setattr(writer.torch, "empty_like", pinned_like)
    monkeypatch.setattr(writer.torch.cuda, "synchronize", lambda: events.append("wait"))
    return events


def test_copies_from_a_gpu_are_all_begun_before_the_first_is_waited_for(events):
    state = {"a": torch.arange(3.0).as_subclass(OnGpu), "b": [torch.ones(5).as_subclass(OnGpu)]}
    copied = writer._on_host(state | {"c": torch.ones(7)})
    assert [event for event in events if event != ("copy", 7, False)] == [
        "pin", ("copy", 3, True), "pin", ("copy", 5, True), "wait",
    ]  # fmt: skip
    assert torch.equal(copied["a"], torch.arange(3.0)) and type(copied["a"]) is torch.Tensor
    assert torch.equal(copied["b"][0], torch.ones(5)) and torch.equal(copied["c"], torch.ones(7))


def test_a_host_that_limits_pinned_memory_saves_all_the_same(events, monkeypatch, capsys):
    pinned_like = torch.empty_like

    def refuse(tensor: torch.Tensor, *, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nmore of it")
        return pinned_like(tensor, **options)

    monkeypatch.setattr(writer.torch, "empty_like", refuse)
    copied = writer._on_host([torch.arange(3.0).as_subclass(OnGpu)])
    assert torch.equal(copied[0], torch.arange(3.0)) and events[-1] == "wait"
    said = capsys.readouterr().out
    assert said == "warning: saving with memory that is not pinned: CUDA error: out of memory\n"
