"""The paper model's arithmetic, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import paper_model
import pytest
from models.paper_model import Sizes, estimate, read_budgets, sizes_of, whole_work
from pages.results import RESULTS

from cpo_ds.devices import DEVICES
from cpo_ds.model.flops import MatrixWeights

# 10^12 FLOP/s and 10^9 bytes/s.
DEVICE = replace(DEVICES["H100"], peak_bf16_tflops=1.0, memory_bandwidth=1.0)
SIZES = Sizes(
    layers=3, heads=2, head_size=64, weights=MatrixWeights(1000, 100), pair=(100, 20, 40), pairs=5
)
NOTHING = {"kernels": 0, "bytes": 0, "product_flops": 0, "product_bytes": 0}


def stages(**counts: int) -> dict[str, dict[str, int]]:
    return {"layer forward": NOTHING | counts, "head forward": NOTHING | counts}


def test_a_layer_counts_once_for_each_layer() -> None:
    assert whole_work(stages(kernels=10, bytes=7), layers=3) == NOTHING | {
        "kernels": 40,
        "bytes": 28,
    }


@pytest.mark.parametrize(("training", "operations"), [("lora", 4), ("full", 6)])
def test_each_part_takes_its_share(training: str, operations: int) -> None:
    counts = stages(kernels=100, bytes=85 * 10**6, product_flops=72 * 10**9)
    budget = {"stages": counts, "training": training, "recomputes": False}
    time = estimate(budget, SIZES, DEVICE)
    assert time.products == pytest.approx(4 * 0.1)
    assert time.memory == pytest.approx(4 * 0.1)
    assert time.launches == pytest.approx(400 * 3e-6)
    # 120 x 120 tokens fit a tile; 40 queries and 140 keys take two.
    tiles = 1 + 2
    forward = 5 * 2 * tiles * 128 * 128 * 4 * 64
    assert time.attention == pytest.approx(3 * 4.2 * forward / 0.354e12)
    assert time.seconds == pytest.approx(
        time.products + time.memory + time.launches + time.attention
    )
    assert time.tokens == 800 and time.tokens_per_second == pytest.approx(800 / time.seconds)
    useful = operations * (1000 * 800 + 100 * 300)
    assert time.share_of_peak == pytest.approx(useful / time.seconds / 1e12)
    again = estimate(budget | {"recomputes": True}, SIZES, DEVICE)
    assert again.attention == pytest.approx(3 * 5.2 * forward / 0.354e12)


def test_the_shape_of_a_budget_is_at_full_depth() -> None:
    contents = read_budgets()
    sizes = sizes_of(contents["budgets"]["llama-2-7b, lora"], tuple(contents["pair"]))
    assert (sizes.layers, sizes.heads, sizes.head_size) == (32, 32, 128)
    assert sizes.weights.body == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert sizes.tokens == 16240 and sizes.scored_tokens == 10080


def test_the_page_is_that_of_the_budgets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["paper_model.py", "--out", str(tmp_path / "page.md")])
    paper_model.main()
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert written == (RESULTS / "paper_model.md").read_text(encoding="utf-8"), (
        "python benchmarks/paper_model.py"
    )
