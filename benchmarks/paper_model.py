"""Writes what the budgets of kernels and bytes come to on GPUs: milliseconds, tokens a second.

    python benchmarks/paper_model.py

Nothing is measured. The counts are those of `tests/fakecuda/budgets.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import paper_model
from pages.results import RESULTS
from pages.text import bullets, table, write_page

from cpo_ds.devices import device_by_name

DEVICES = ("H100", "H200", "A100-80GB")
HEAD = (
    "budget", "device", "ms", "products", "bytes", "launches", "attention", "tokens/s",
    "of the peak",
)  # fmt: skip


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "paper_model.md", help="the page (%(default)s)"
    )
    arguments = parser.parse_args()
    contents = paper_model.read_budgets()
    prefix, chosen, rejected = contents["pair"]
    rows: list[tuple[str, ...]] = [HEAD]
    for name, budget in contents["budgets"].items():
        sizes = paper_model.sizes_of(budget, (prefix, chosen, rejected))
        for device in map(device_by_name, DEVICES):
            rows.append(_row(f"{name}, {sizes.tokens:,} tokens", device.name, budget, sizes))
    assumptions = {
        "matrix products": f"{paper_model.PRODUCT_SHARE:.0%} of the data sheet's peak",
        "memory": f"{paper_model.BANDWIDTH_SHARE:.0%} of the data sheet's bandwidth",
        "attention": f"{paper_model.ATTENTION_SHARE:.1%} of the peak, whole tiles",
        "launch": f"{paper_model.LAUNCH_SECONDS * 1e6:.0f} µs a kernel",
        "left out": "the optimizer's step, communication, a host slower than the GPU, and whether "
        "the activations fit",
        "share of the peak": "operations that the training needs, 4 (LoRA) or 6 for each weight "
        "and token, without those done twice",
        "pairs": f"{prefix} shared tokens, {chosen} chosen and {rejected} rejected",
        "command": "python benchmarks/paper_model.py",
    }
    title = "# On paper: a micro-batch by its kernels and bytes"
    note = "No GPU was used. Times in milliseconds, forward and backward, on one GPU at ZeRO-0."
    parts = [title, note, table(rows, text_columns=2), bullets(assumptions)]
    write_page(arguments.out.with_suffix(""), parts)


def _row(
    name: str, device: str, budget: dict[str, object], sizes: paper_model.Sizes
) -> tuple[str, ...]:
    time = paper_model.estimate(budget, sizes, device_by_name(device))
    parts = (time.seconds, time.products, time.memory, time.launches, time.attention)
    return (
        name,
        device,
        *(f"{seconds * 1e3:,.0f}" for seconds in parts),
        f"{time.tokens_per_second:,.0f}",
        f"{time.share_of_peak:.1%}",
    )


if __name__ == "__main__":
    main()
