"""Links between hosts: which are measured, and which is the slowest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.doctor import links
from cpo_ds.doctor.bandwidth import bus_bandwidth, groups_of

SLOTS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@given(SLOTS)
def test_all_links_of_the_ring_are_measured(slots: list[int]) -> None:
    first = [sum(slots[:host]) for host in range(len(slots))]
    groups = groups_of(slots)
    within = {hosts[0]: ranks for kind, hosts, ranks in groups if kind == "within"}
    assert within == {h: tuple(range(first[h], first[h] + n)) for h, n in enumerate(slots) if n > 1}
    ring = {frozenset({h, (h + 1) % len(slots)}) for h in range(len(slots))} if slots[1:] else set()
    measured = [frozenset(hosts) for kind, hosts, _ in groups if kind == "link"]
    assert set(measured) == ring and len(measured) == len(ring)
    assert all(ranks == tuple(first[h] for h in hosts) for k, hosts, ranks in groups if k == "link")
    whole = [ranks for kind, _, ranks in groups if kind == "all"]
    assert whole == ([tuple(range(sum(slots)))] if slots[1:] else [])


@given(st.floats(1, 1e12), st.floats(1e-6, 1e3), st.integers(2, 512))
def test_bus_bandwidth_is_what_a_ring_sends(size: float, seconds: float, ranks: int) -> None:
    # Reduce-scatter and all-gather: ranks - 1 steps each, a rank sending 1/ranks of it in each.
    sent = 2 * (ranks - 1) * size / ranks
    assert bus_bandwidth(size, seconds, ranks) == pytest.approx(sent / seconds)


def test_the_slowest_link_is_named() -> None:
    results = [
        links.Result("link", ("a", "b"), 10.0),
        links.Result("link", ("b", "c"), 0.01),
        links.Result("link", ("c", "a"), 9.0),
        links.Result("all", ("a", "b", "c"), 0.01),
    ]
    row = links.judge(results, [], {}, 60)
    assert "10.2 MiB/s (b to c, the slowest) to 10 GiB/s" in row.seen and row.state == "warn"
    assert row.findings[0].hosts == ("b", "c") and "1e+03 times less" in row.findings[0].problem
    assert links.judge(results[::2], [], {}, 60).state == "ok"
    failed = links.judge(results[:1], ["b to c"], {"b": "reset by peer"}, 60)
    assert failed.state == "fix" and "(b: reset by peer): b to c" in failed.findings[0].problem
    assert "within 60 s: b to c" in links.judge([], ["b to c"], {}, 60).findings[0].problem
