"""The network interface towards the master: none is needed if all ranks run on this host."""

from __future__ import annotations

import pytest

from cpo_ds.ranks.interfaces import interface_towards


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "127.0.1.1", "::1"])
def test_ranks_of_one_host_need_no_interface(address: str) -> None:
    assert interface_towards(address) is None
