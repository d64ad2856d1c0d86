"""Connections to other ranks that broke, as NCCL reports them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

from cpo_ds.ranks.connections import a_connection_broke


def groups_with(errors: dict[str, list[str]]) -> dict[Any, Any]:
    """torch's map of process groups, whose backends report the errors of these names."""
    groups = {}
    for backend, names in errors.items():
        for name in names:
            group = mock.MagicMock(spec=dist.ProcessGroup)
            group._get_backend.return_value.get_error.return_value = getattr(ErrorType, name)
            groups[group] = (backend, None)
    return groups


@pytest.mark.parametrize(
    ("errors", "broke"),
    [
        ({}, False),
        ({"nccl": ["SUCCESS", "SUCCESS"]}, False),
        ({"nccl": ["SUCCESS", "TIMEOUT"]}, False),
        ({"nccl": ["SUCCESS", "COMM_ERROR"]}, True),
        ({"cpu:gloo,cuda:nccl": ["REMOTE_ERROR"]}, True),
        ({"gloo": ["COMM_ERROR"]}, False),  # it has no such question; its errors are raised
    ],
)
def test_only_nccl_is_asked_and_only_errors_of_connections_count(errors: Any, broke: bool) -> None:
    with mock.patch.object(dist.distributed_c10d, "_pg_map", groups_with(errors)):
        assert a_connection_broke() == broke
