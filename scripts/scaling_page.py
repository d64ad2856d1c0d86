"""Writes docs/scaling.md: communication and computation on 8 to 512 GPUs, on paper.

    python scripts/scaling_page.py [--check]

The figures come from the functions that `cpo-ds plan` uses. With --check the script writes nothing,
and ends with exit code 1 if the page is not current.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from cpo_ds.devices import DEVICES
from cpo_ds.engine.zero import ZeroSettings
from cpo_ds.model.flops import MatrixWeights, recomputed_flops, step_flops
from cpo_ds.planner.communication import Cluster, Volume, hierarchical_volume, zero_volume
from cpo_ds.planner.outlines import Outlines
from cpo_ds.planner.row_shape import PAIR
from cpo_ds.planner.step_time import (
    COMPUTE_EFFICIENCY,
    LINK_EFFICIENCY,
    communication_seconds,
    compute_seconds,
)
from cpo_ds.recipe import parse_config

PAIR_TOKENS = round(PAIR.tokens)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
MODELS = {"7B": "llama-2-7b", "13B": "llama-2-13b"}  # names of cpo_ds/model/shapes.py
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 8  # of each node
BATCHES = (128, 256, 512, 1024, 2048, 4096)  # values of batch.pairs
TOKENS = (1024, 4096, 16384, 65536)  # of a micro-batch on each GPU
SCHEMES = ("ZeRO-3", "ZeRO++", "hierarchical")
GB = 1e9  # as data sheets count
A100, H100, RTX = (DEVICES[name] for name in ("A100-80GB", "H100", "RTX-4090"))


@functools.cache
def sizes_of(model: str) -> tuple[int, MatrixWeights]:
    """Returns the number of a model's weights, and of those in matrix products."""
    values = {"model": {"name_or_path": model}, "data": {"format": "sample"}}
    config = parse_config(values, "scaling_page")
    outlines = Outlines(MODELS[model])
    return outlines.weights(config).num_policy, outlines.matrices(config)


def volume(scheme: str, model: str, cluster: Cluster) -> Volume:
    """Returns the bytes that a micro-batch and its update move over each GPU's links.

    All parameters are trained, in bfloat16.
    """
    weights, _ = sizes_of(model)
    sizes = {
        "num_weights": weights,
        "num_trained": weights,
        "number_bytes": 2,
        "micro_batches": 1,
    }
    if scheme == "hierarchical":
        return hierarchical_volume(cluster, group_nodes=1, **sizes)
    plus = scheme == "ZeRO++"
    zero = ZeroSettings(
        stage=3,
        max_live_parameters=0,
        max_reuse_distance=0,
        secondary_partition=cluster.gpus if plus else 1,
        quantized_weights=plus,
        quantized_gradients=plus,
    )
    return zero_volume(zero, cluster, **sizes)


def compute(model: str, cluster: Cluster, tokens: int) -> float:
    """Returns the seconds that a micro-batch of `tokens` on each GPU computes.

    All parameters are trained, with gradient checkpointing.
    """
    _, weights = sizes_of(model)
    total = tokens * cluster.ranks
    scored = total * PAIR.scored_tokens / PAIR.tokens
    flops = step_flops(weights, total, scored, trains_adapter=False)
    flops += recomputed_flops(weights, total, scored, trains_adapter=False, recomputed_share=1.0)
    return compute_seconds(flops, cluster)


def tokens_to_hide(scheme: str, model: str, cluster: Cluster) -> float:
    """Returns the tokens of a micro-batch from which on it computes longer than it communicates."""
    seconds = communication_seconds(volume(scheme, model, cluster), cluster)
    return seconds / compute(model, cluster, 1)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a Markdown table, aligned to the right."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("--:" for _ in head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _volumes(model: str) -> list[str]:
    """The table of bytes on each GPU's links, for each number of nodes."""
    rows = []
    for nodes in NODES:
        cluster = Cluster(DEVICES["A100-80GB"], GPUS, nodes)
        volumes = [volume(scheme, model, cluster) for scheme in SCHEMES]
        rows.append(
            [str(cluster.ranks)]
            + [f"{v.node / GB:.1f}" for v in volumes]
            + [f"{v.network / GB:.2f}" for v in volumes]
        )
    head = ["GPUs", *(f"{s}, in node" for s in SCHEMES), *(f"{s}, network" for s in SCHEMES)]
    return _table(head, rows)


def _limits(model: str, device: str) -> list[str]:
    """The table of tokens that hide communication, for each number of nodes."""
    rows = []
    for nodes in NODES:
        cluster = Cluster(DEVICES[device], GPUS, nodes)
        rows.append(
            [str(cluster.ranks)]
            + [f"{tokens_to_hide(scheme, model, cluster):,.0f}" for scheme in SCHEMES]
        )
    return _table(["GPUs", *SCHEMES], rows)


def _shares(model: str, device: str) -> list[str]:
    """The table of communication over computation, for sizes of the micro-batch."""
    rows = []
    for nodes in (1, 8, 64):
        cluster = Cluster(DEVICES[device], GPUS, nodes)
        for scheme in SCHEMES:
            seconds = communication_seconds(volume(scheme, model, cluster), cluster)
            shares = [seconds / compute(model, cluster, tokens) for tokens in TOKENS]
            rows.append([str(cluster.ranks), scheme, *(f"{share:.2f}" for share in shares)])
    return _table(["GPUs", "scheme", *(f"{tokens:,} tokens" for tokens in TOKENS)], rows)


def _most_gpus(device: str) -> list[str]:
    """The table of the most GPUs that a step of `batch.pairs` pairs keeps computing."""
    rows = []
    for model in MODELS:
        for scheme in SCHEMES:
            row = [model, scheme]
            for pairs in BATCHES:
                fitting = [
                    cluster.ranks
                    for cluster in (Cluster(DEVICES[device], GPUS, nodes) for nodes in NODES)
                    if tokens_to_hide(scheme, model, cluster) <= pairs * PAIR_TOKENS / cluster.ranks
                ]
                row.append(str(max(fitting, default=0) or "fewer than 8"))
            rows.append(row)
    return _table(["model", "scheme", *(f"{pairs:,} pairs" for pairs in BATCHES)], rows)


def page() -> str:
    """Returns the text of the whole page."""
    lines = [INTRODUCTION, *_bytes(), *_hidden(), *_batches(), *_ratio()]
    return "\n".join(lines) + "\n"


HARDWARE = _table(
    ["GPU", "peak, TFLOP/s", "link in a node", "GB/s", "network", "GB/s a GPU"],
    [
        [d.name, f"{d.peak_bf16_tflops:.0f}", d.node_link, f"{d.node_bandwidth:.0f}", d.network,
         f"{d.network_bandwidth:.2f}"]
        for d in (A100, H100, RTX)
    ],
)  # fmt: skip
INTRODUCTION = f"""\
# Scale on paper: from 8 to 512 GPUs

`python scripts/scaling_page.py` writes this page with the functions that `cpo-ds plan` uses.
Nothing on it was measured on GPUs.

## The model

All GPUs compute a micro-batch of `batch.tokens_per_rank` tokens at the same time. Under ZeRO-3 each
micro-batch gathers all weights twice (forward, backward) and reduces all gradients once. So fewer
tokens do not mean less communication. Computation hides the communication only if micro-batches are
large enough.

With N weights of e = 2 bytes, a GPU sends and receives in each micro-batch:

- **ZeRO-3** ([1910.02054](https://arxiv.org/abs/1910.02054), section 7): e N forward, e N backward
  and e N of gradients, over all GPUs. With LoRA the gradients are negligible. DeepSpeed keeps some
  weights whole between forward and backward pass (up to `stage3_max_live_parameters`, a billion).
  This page leaves that out; `cpo-ds plan` counts it.
- **ZeRO++** ([2306.10209](https://arxiv.org/abs/2306.10209)): weights travel as int8 (qwZ) and
  gradients as int4 (qgZ). Weights cross all GPUs once after each update. Otherwise they come from a
  second copy inside the node (hpZ), which costs e N / 8 of memory on each GPU.
- **hierarchical** (MiCS, [2205.00119](https://arxiv.org/abs/2205.00119)): each node holds its own
  copy of the weights, so a micro-batch stays inside the node. Once a step, each GPU's part of the
  gradients, e N / 8, is summed over the nodes. Optimizer states are split over 8 GPUs only.

A collective of M bytes over n nodes of g GPUs runs as g rings over all GPUs, one for each network
adapter of a node. It moves M (n g - 1) / (n g) over each GPU's link inside its node. With several
nodes it also moves a g-th of that over each network adapter. The int4 exchange goes from all to all
instead: M (n - 1) / (n g) over an adapter. Both kinds of link work at the same time, and the slower
one counts.

Links reach {LINK_EFFICIENCY:.0%} of the data sheet's bandwidth, and matrix products
{COMPUTE_EFFICIENCY:.0%} of its peak. Latencies are left out. At hundreds of GPUs this makes the
figures lower bounds. The data sheets' values, in bfloat16, are those of `cpo_ds/devices.py`:

{chr(10).join(HARDWARE)}

DeepSpeed 0.19 has ZeRO-3 and ZeRO++ (`zero_hpz_partition_size`, `zero_quantized_weights`,
`zero_quantized_gradients` in the DeepSpeed file). It no longer has MiCS, which is shown for
comparison. The quantized parts of ZeRO++ change the numbers, so with them losses are not the same
on any number of GPUs.
"""


def _bytes() -> list[str]:
    lines = ["## Bytes of a micro-batch, all parameters trained"]
    for model in MODELS:
        lines += ["", f"GB on each GPU's links, {model}, 8 GPUs a node:", "", *_volumes(model)]
    return lines


HIDDEN = """
## The smallest micro-batch that hides communication

The tables show the smallest `batch.tokens_per_rank` with which a micro-batch computes longer than
it communicates. All parameters are trained, with gradient checkpointing. Below this number, faster
GPUs or more of them gain nothing. The hierarchical column counts the sum over nodes in every
micro-batch. With several micro-batches a step it is less."""


def _hidden() -> list[str]:
    lines = [HIDDEN]
    for model in MODELS:
        for device in (A100, H100, RTX):
            lines += ["", f"{model} on {device.name}:", "", *_limits(model, device.name)]
    last = "The number hardly depends on the model's size, because both sides grow with it."
    return [*lines, "", last]


BATCH = f"""
## How many GPUs a batch feeds

A pair has {PAIR_TOKENS} tokens (the mean of WMT22 with a shared prefix). So a step of 128 pairs has
{128 * PAIR_TOKENS:,}, which on 64 GPUs is {128 * PAIR_TOKENS // 64} each. That is far less than the
tables above ask for. The next tables show, for values of `batch.pairs`, the most GPUs on which
computation takes longer than communication, with 8 GPUs a node."""


def _batches() -> list[str]:
    lines = [BATCH]
    for device in (A100, H100):
        lines += ["", f"On {device.name}:", "", *_most_gpus(device.name)]
    return lines


RATIO = """
## Communication over computation

A value above 1 means that a step waits for communication. 13B on A100-80GB, for different sizes of
the micro-batch:
"""


def _ratio() -> list[str]:
    return [RATIO, *_shares("13B", "A100-80GB")]


def main() -> int:
    """Writes the page; with --check returns 1 if it is not current."""
    text = page()
    if "--check" in sys.argv:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
