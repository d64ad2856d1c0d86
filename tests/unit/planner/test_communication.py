"""Bytes that collectives send, for each way to split the states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.devices import DEVICES
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.planner.communication import (
    Cluster,
    Volume,
    all_reduce,
    gather,
    hierarchical_volume,
    zero_volume,
)

A100 = DEVICES["A100-80GB"]
KEEP_NONE = {"max_live_parameters": 0, "max_reuse_distance": 0}
clusters = st.builds(Cluster, st.just(A100), st.integers(1, 8), st.integers(1, 64))


@given(st.floats(1, 1e12), clusters)
def test_no_link_of_a_gather_carries_more_than_the_whole(size, cluster):
    volume = gather(size, cluster)
    assert 0 <= volume.node < size and 0 <= volume.network * cluster.gpus < size
    assert (volume.network > 0) == (cluster.nodes > 1)
    assert all_reduce(size, cluster).node == 2 * volume.node


def test_a_gather_by_hand():
    """Eight rings over 16 ranks, each of 2 bytes of 16: each link passes on 15 parts of 16."""
    assert gather(16.0, Cluster(A100, 8, 2)) == Volume(node=15.0, network=1.875)
    assert gather(16.0, Cluster(A100, 8)) == Volume(node=14.0, network=0.0)
    assert gather(16.0, Cluster(A100, 1, 4)) == Volume(node=0.0, network=12.0)


@pytest.mark.parametrize(
    ("trained", "micro_batches", "node", "network"),
    [
        # int8 once over all, 7/8 of 16 in the node; int4: 7/8 of 8 in the node, half over two nodes
        (16.0, 1, 15 + 14 + 7, 1.875 + 0.5),
        (16.0, 4, 15 + 7 * 14 + 4 * 7, 1.875 + 4 * 0.5),
        (0.0, 4, 8 * 14, 0.0),  # frozen weights stay in the node
    ],
)
def test_zero_plus_plus_by_hand(trained, micro_batches, node, network):
    plus = ZeroSettings(
        stage=3,
        secondary_partition=8,
        quantized_weights=True,
        quantized_gradients=True,
        **KEEP_NONE,
    )
    volume = zero_volume(
        plus, Cluster(A100, 8, 2), num_weights=16.0, num_trained=trained, number_bytes=2,
        micro_batches=micro_batches,
    )  # fmt: skip
    assert volume == Volume(pytest.approx(node), pytest.approx(network))


@pytest.mark.parametrize(
    ("live", "reuse", "prefetch", "network"),
    [
        (0, 0, 1, 12 + 12 + 12),  # of 16 bytes each: forward, backward, gradients
        (0, 4, 1, 12 + 9 + 12),  # two weights of eight stay, each passed twice
        (3, 0, 1, 12 + 7.5 + 12),
        (3, 0, 0, 12 + 12 + 12),  # nothing runs ahead
        (100, 100, 1, 12 + 12),  # all of them stay
    ],
)
def test_what_stays_whole_is_gathered_once(live, reuse, prefetch, network):
    zero = ZeroSettings(
        stage=3, max_live_parameters=live, max_reuse_distance=reuse, prefetch_bucket=prefetch
    )
    volume = zero_volume(
        zero, Cluster(A100, 1, 4), num_weights=8, num_trained=8, number_bytes=2, micro_batches=1
    )
    assert volume == Volume(0.0, pytest.approx(network))


@given(st.floats(1, 1e11), clusters, st.integers(1, 8))
def test_one_group_of_all_nodes_is_zero_3(size, cluster, micro_batches):
    options = {
        "num_weights": size,
        "num_trained": size,
        "number_bytes": 2,
        "micro_batches": micro_batches,
    }
    plain = zero_volume(ZeroSettings(stage=3, **KEEP_NONE), cluster, **options)
    one = hierarchical_volume(cluster, group_nodes=cluster.nodes, **options)
    assert one.node == pytest.approx(plain.node) and one.network == pytest.approx(plain.network)


def test_groups_must_fill_the_nodes():
    with pytest.raises(ValueError, match="no multiple"):
        hierarchical_volume(
            Cluster(A100, 8, 4),
            group_nodes=3,
            num_weights=1,
            num_trained=1,
            number_bytes=2,
            micro_batches=1,
        )
