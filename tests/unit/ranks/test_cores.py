"""Each rank's share of the cores of its host."""

from __future__ import annotations

import os

import pytest
import torch

from cpo_ds.ranks import ranks


class _JoinsNow(Exception):
    """Raised when a rank would join the others."""


@pytest.fixture
def threads_of_a_rank(monkeypatch):
    """A function that chooses devices for one of four ranks and returns its number of threads."""

    def stop(*_):
        raise _JoinsNow

    def choose(*, on_gpu: bool) -> int:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
        with pytest.raises(_JoinsNow):
            ranks.join_ranks(ranks.find_place())
        return torch.get_num_threads()

    before = torch.get_num_threads()
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(ranks, "_join_after_restart", stop)
    torch.set_num_threads(7)
    yield choose
    torch.set_num_threads(before)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_ranks_share_the_cores_of_their_host(threads_of_a_rank, on_gpu):
    assert threads_of_a_rank(on_gpu=on_gpu) == 3


def test_the_users_number_of_threads_is_kept(threads_of_a_rank, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_of_a_rank(on_gpu=True) == 7
