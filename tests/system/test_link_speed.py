"""The benchmarks over a slow link and over several ranks: predictions, counted bytes, pages."""

import argparse

import pytest
from hosts.link_model import (
    CONFIGURATIONS,
    Link,
    deepspeed_settings,
    delay_seconds,
    link_seconds,
    parse_link,
    predict,
)
from hosts.simulated import reason_against, simulated_hosts
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.errors import UserError


def test_links_are_read():
    assert parse_link("none") == Link() and Link().name == "no limit"
    assert parse_link("200") == Link(200.0)
    assert parse_link("200/2.5") == Link(200.0, 2.5)
    assert parse_link("200/2.5").name == "200 Mbit/s, 2.5 ms"


@pytest.mark.parametrize("text", ["", "fast", "0", "-5", "nan", "200/", "200/-1", "1e9", "100/nan"])
def test_what_is_no_link_is_refused(text):
    with pytest.raises(UserError, match="--links"):
        parse_link(text)


@pytest.mark.parametrize(
    ("configuration", "planner", "gloo"),
    [  # of 4 MB; 3/4 of it cross in a gather over four ranks
        ("zero2", 2 * 6 + 3, 2 * 6 + 3),  # two all-reduces, one gather of new weights
        ("zero3-kept", 2 * 3 + 2 * 3, 2 * 3 + 2 * 6),
        ("zero3", 2 * 3 * (2 - 1 / 7) + 2 * 3, 2 * 3 * (2 - 1 / 7) + 2 * 6),  # a 7th stays
        ("hierarchical", 3 + 2 * 3, 3 + 2 * 6),  # gathered once between the hosts
    ],
)
def test_bytes_of_two_micro_batches_by_hand(configuration, planner, gloo):
    settings = deepspeed_settings(configuration, 10**6, 2)
    expected = predict(settings, 2, 2, 10**6, 2)
    assert expected.planner == pytest.approx(planner * 1e6)
    assert expected.gloo == pytest.approx(gloo * 1e6)


@given(st.integers(10**4, 10**8), st.integers(1, 4), st.integers(2, 4), st.integers(1, 4))
def test_groups_and_kept_weights_save_bytes(num_weights, micro_batches, ranks, hosts):
    sent = {
        name: predict(
            deepspeed_settings(name, num_weights, ranks), hosts, ranks, num_weights, micro_batches
        ).gloo
        for name in CONFIGURATIONS
    }
    assert sent["hierarchical"] <= sent["zero3-kept"] <= sent["zero3"]
    assert (sent["zero2"] > 0) == (hosts > 1)


def test_seconds_of_a_link():
    assert link_seconds(25e6, Link(200)) == pytest.approx(1)
    assert link_seconds(25e6, Link()) == 0
    seen = {
        "allgather_base, between hosts": {"count": 10, "bytes": 1},
        "reduce_scatter_base, between hosts": {"count": 1, "bytes": 1},
        "broadcast, between hosts": {"count": 4, "bytes": 1},
        "allgather_base, inside a host": {"count": 99, "bytes": 1},
    }
    assert delay_seconds(seen, 4, Link(200, 2)) == pytest.approx(0.002 * (10 * 3 + 6 + 4))
    assert delay_seconds(seen, 4, Link(200)) == 0


def test_headers_are_not_counted():
    from jobs.link_worker import HEADER_BYTES, Traffic

    before = Traffic(1000, 2000, 10, 20)
    after = Traffic(1000 + 5000 + 3 * HEADER_BYTES, 2000 + 7 * HEADER_BYTES, 13, 27)
    assert after.since(before) == {"sent": 5000, "received": 0, "frames": 10}


def link_line(**values):
    return {
        "benchmark": "link", "model": "m", "device": "a CPU", "weights": "random", "repeat": 0,
        "num_weights": 10**6, "hosts": 2, "ranks_per_host": 2, "pairs_per_step": 8,
        "configuration": "zero3", "micro_batches": 1, "rate_mbit": None, "delay_ms": None,
        "predicted_planner_bytes": 8e6, "predicted_gloo_bytes": 10e6,
        "collectives": {"allgather_base, between hosts": {"count": 100, "bytes": 8}},
        "losses": [2.0, 1.0], "step_seconds": [0.5, 0.5], "step_sent": [10e6, 10e6],
        "step_received": [10e6, 10e6],
    } | values  # fmt: skip


def test_the_page_sets_predictions_beside_what_was_measured(tmp_path):
    from pages.link import render

    slow = {"rate_mbit": 100.0, "step_seconds": [1.3, 1.3], "losses": [2.0, 1.1]}
    delayed = slow | {"delay_ms": 2.0, "step_seconds": [1.9, 1.9]}
    render([link_line(), link_line(**slow), link_line(**delayed)], tmp_path / "page")
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| ZeRO-3 | 1 | 8.00 | 10.00 | 10.00 | 10.00 | +0.0% |" in text
    # 0.5 s without limit, 80 of 100 Mbit/s by the planner's bytes, 100 by Gloo's
    assert "| 100 Mbit/s | ZeRO-3 | 1 | 1.30 [1.30 - 1.30] | 1.14 | 1.30 | +0% |" in text
    assert "| 100 Mbit/s, 2 ms | ZeRO-3 | 1 | 1.90 [1.90 - 1.90] | 1.14 | 1.90 | +0% |" in text
    assert "equal to 1.0e-01" in text


def rank_line(**values):
    return {
        "ranks": 1, "scaling": "strong", "deepspeed": "ds_configs/zero3.json", "GPU": "none",
        "cores": 2, "pairs_per_step": 12, "pairs_per_second": 4.0, "dtype": "float32",
        "losses": [2.0, 1.0], "waiting": [0.1], "peak_memory_gib": 1.0, "weights_gib": 0.1,
        "gradients_whole_gib": 0.1, "optimizer_gib": 0.2, "model": "m", "device": "a CPU",
        "weights": "random", "tokens_per_rank": 480, "warmup_steps": 1, "timed_steps": 3,
        "repeat": 0, "threads": 1,
    } | values  # fmt: skip


def test_efficiency_and_equal_losses(tmp_path):
    from pages.ranks import different_losses, render, scaling_table

    lines = [
        rank_line(),
        rank_line(ranks=2, pairs_per_second=6.0, waiting=[0.2, 0.4]),
        rank_line(ranks=4, pairs_per_second=4.0, waiting=[0.5] * 4, losses=[2.0, 1.0000001]),
        rank_line(ranks=3, error="not done", scaling="weak", pairs_per_step=9),
    ]
    text = scaling_table(lines, "strong")
    assert "| zero3 | 2 | 12 | 6.00 | 75% | 100% | 30% | 1.00 | 0.40 |" in text
    assert "| zero3 | 4 | 12 | 4.00 | 25% | 50% | 50% |" in text
    assert different_losses(lines) == []
    wrong = [*lines, rank_line(losses=[2.0, 1.001])]
    assert ["1.0e-03" in said for said in different_losses(wrong)] == [True]
    assert different_losses([rank_line(), rank_line(losses=[2.0, float("nan")])])
    render(wrong, tmp_path / "page")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "differ by 1.0e-03" in page and "not done" in page and "2 cores serve all ranks" in page


@pytest.mark.multinode
@pytest.mark.skipif(reason_against() is not None, reason=str(reason_against()))
def test_bytes_between_hosts_are_those_predicted(tmp_path):
    """The adapters of two hosts count the predicted bytes, within 3%: ZeRO-3 over pdsh."""
    from link_speed import Case, run_case
    from models.synthetic import save_random_model

    arguments = argparse.Namespace(
        shape="llama-5m", seed=1, steps=1, micro_batches=[1], ranks_per_host=1, timeout=200.0
    )
    save_random_model(arguments.shape, tmp_path / "model", "float32", arguments.seed)
    (work := tmp_path / "run").mkdir()
    with simulated_hosts(tmp_path / "hosts") as hosts:
        (line,) = run_case(arguments, Case("zero3", 1, (Link(),)), hosts, work)
    for name in ("sent", "received"):
        (seen,) = line[f"step_{name}"]
        assert seen == pytest.approx(line["predicted_gloo_bytes"], rel=0.03), line
    assert seen > 1.2 * line["predicted_planner_bytes"]  # Gloo's reduce-scatter sends twice as much
    assert line["collectives"]["allgather_base, between hosts"]["bytes"] > 4 * line["num_weights"]
