"""Writes docs/scaling.md from the planner's own functions. `--check` only compares."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cpo_ds.devices import DEVICES  # noqa: E402
from cpo_ds.engine.zero import ZeroSettings  # noqa: E402
from cpo_ds.model.flops import MatrixWeights, recomputed_flops, step_flops  # noqa: E402
from cpo_ds.planner.communication import (  # noqa: E402
    Cluster,
    Volume,
    hierarchical_volume,
    zero_volume,
)
from cpo_ds.planner.estimate import PAIR_TOKENS, SCORED_TOKENS  # noqa: E402
from cpo_ds.planner.outlines import Outlines  # noqa: E402
from cpo_ds.planner.step_time import (  # noqa: E402
    COMPUTE_EFFICIENCY,
    LINK_EFFICIENCY,
    communication_seconds,
    compute_seconds,
)
from cpo_ds.recipe import parse_config  # noqa: E402

PAGE = ROOT / "docs" / "scaling.md"
MODELS = {"7B": "llama-2-7b", "13B": "llama-2-13b"}  # names of cpo_ds/model/shapes.py
NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 8
BATCHES = (128, 256, 512, 1024, 2048, 4096)  # batch.pairs
TOKENS = (1024, 4096, 16384, 65536)
SCHEMES = ("ZeRO-3", "ZeRO++", "hierarchical")
GB = 1e9
A100, H100, RTX = (DEVICES[name] for name in ("A100-80GB", "H100", "RTX-4090"))


@functools.cache
def sizes_of(model: str) -> tuple[int, MatrixWeights]:
    """Weights in all, and those in matrix products."""
    values = {"model": {"name_or_path": model}, "data": {"format": "sample"}}
    config = parse_config(values, "scaling_page")
    outlines = Outlines(MODELS[model])
    return outlines.weights(config).num_policy, outlines.matrices(config)


def volume(scheme: str, model: str, cluster: Cluster) -> Volume:
    """Bytes of one micro-batch and its update on each GPU, bfloat16, all parameters trained."""
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
    """Seconds of a micro-batch of `tokens` on each GPU, all parameters, checkpointing on."""
    _, weights = sizes_of(model)
    total = tokens * cluster.ranks
    scored = total * SCORED_TOKENS / PAIR_TOKENS
    flops = step_flops(weights, total, scored, trains_adapter=False)
    flops += recomputed_flops(weights, total, scored, trains_adapter=False, checkpoints_body=True)
    return compute_seconds(flops, cluster)


def tokens_to_hide(scheme: str, model: str, cluster: Cluster) -> float:
    """Tokens of a micro-batch from which on computation takes longer than communication."""
    needed = communication_seconds(volume(scheme, model, cluster), cluster)
    return needed / compute(model, cluster, 1)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|" + "|".join("--:" for _ in head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _volumes(model: str) -> list[str]:
    rows = []
    for nodes in NODES:
        cluster = Cluster(DEVICES["A100-80GB"], GPUS, nodes)
        found = [volume(scheme, model, cluster) for scheme in SCHEMES]
        rows.append(
            [str(cluster.ranks)]
            + [f"{v.node / GB:.1f}" for v in found]
            + [f"{v.network / GB:.2f}" for v in found]
        )
    head = ["GPUs", *(f"{s}, in node" for s in SCHEMES), *(f"{s}, network" for s in SCHEMES)]
    return _table(head, rows)


def _limits(model: str, device: str) -> list[str]:
    rows = []
    for nodes in NODES:
        cluster = Cluster(DEVICES[device], GPUS, nodes)
        rows.append(
            [str(cluster.ranks)]
            + [f"{tokens_to_hide(scheme, model, cluster):,.0f}" for scheme in SCHEMES]
        )
    return _table(["GPUs", *SCHEMES], rows)


def _shares(model: str, device: str) -> list[str]:
    rows = []
    for nodes in (1, 8, 64):
        cluster = Cluster(DEVICES[device], GPUS, nodes)
        for scheme in SCHEMES:
            needed = communication_seconds(volume(scheme, model, cluster), cluster)
            shares = [needed / compute(model, cluster, tokens) for tokens in TOKENS]
            rows.append([str(cluster.ranks), scheme, *(f"{share:.2f}" for share in shares)])
    return _table(["GPUs", "scheme", *(f"{tokens:,} tokens" for tokens in TOKENS)], rows)


def _most_gpus(device: str) -> list[str]:
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
    """The whole page."""
    lines = [*_model(), *_bytes(), *_hidden(), *_batches(), *_ratio()]
    return "\n".join(lines) + "\n"


def _model() -> list[str]:
    return [
        "# Scale on paper: from 8 to 512 GPUs",
        "",
        "Written by `python scripts/scaling_page.py` from the functions that `cpo-ds plan` uses; "
        "nothing on this page was measured on GPUs.",
        "",
        "## The model",
        "",
        "A micro-batch of `batch.tokens_per_rank` tokens is computed by every GPU at once. Under "
        "ZeRO-3 each micro-batch gathers all weights twice (forward, backward) and reduces all "
        "gradients once, so the communication does not shrink with fewer tokens, and the time it "
        "takes hides behind computation only where micro-batches are large enough.",
        "",
        "With N weights of e = 2 bytes, a GPU sends and receives in each micro-batch:",
        "",
        "- **ZeRO-3** ([1910.02054](https://arxiv.org/abs/1910.02054), section 7): e N forward, "
        "e N backward, e N of gradients, over all GPUs. With LoRA the gradients hardly count. What "
        "DeepSpeed keeps whole from forward to backward pass (up to `stage3_max_live_parameters`, "
        "a billion weights) is left out here; `cpo-ds plan` counts it.",
        "- **ZeRO++** ([2306.10209](https://arxiv.org/abs/2306.10209)): weights travel as int8 "
        "(qwZ), over all GPUs once after each update and else inside the node, from a second copy "
        "there (hpZ); gradients as int4 (qgZ). The second copy costs e N / 8 of memory on each "
        "GPU.",
        "- **hierarchical** (MiCS, [2205.00119](https://arxiv.org/abs/2205.00119)): each node "
        "holds a copy of its own, so a micro-batch stays inside it; once a step each GPU's part "
        "of the gradients, e N / 8, is summed over the nodes. Optimizer states are split over 8 "
        "GPUs only.",
        "",
        "A collective of M bytes over n nodes of g GPUs is g rings over all of them, one for each "
        "adapter of a node: it moves M (n g - 1) / (n g) over each GPU's link inside its node and, "
        "where n > 1, a g-th of that over each network adapter. The int4 exchange goes from all to "
        "all instead: M (n - 1) / (n g) over an adapter. Both work at the same time; the slower "
        "one counts, at "
        f"{LINK_EFFICIENCY:.0%} of the data sheet's bandwidth. Matrix products reach "
        f"{COMPUTE_EFFICIENCY:.0%} of the data sheet's peak. Latencies are left out, which at "
        "hundreds of GPUs makes these figures lower bounds. Bandwidths and peaks are those of the "
        "data sheets, in `cpo_ds/devices.py`: "
        + "; ".join(
            f"{d.name}: {d.peak_bf16_tflops:.0f} TFLOP/s, {d.node_link} {d.node_bandwidth:.0f} "
            f"GB/s, {d.network} ({d.network_bandwidth:.2f} GB/s a GPU)"
            for d in (A100, H100, RTX)
        )
        + ".",
        "",
        "DeepSpeed 0.19 runs ZeRO-3 and ZeRO++ (`zero_hpz_partition_size`, "
        "`zero_quantized_weights`, `zero_quantized_gradients` in the DeepSpeed file); MiCS "
        "was removed from DeepSpeed before, and is here for comparison. The quantized parts of "
        "ZeRO++ change the numbers, so the contract of equal losses on any number of GPUs does "
        "not hold with them.",
        "",
    ]


def _bytes() -> list[str]:
    lines = ["## Bytes of a micro-batch, all parameters trained"]
    for model in MODELS:
        lines += ["", f"GB on each GPU's links, {model}, 8 GPUs a node:", "", *_volumes(model)]
    return lines


def _hidden() -> list[str]:
    lines = [
        "",
        "## Where computation no longer hides it",
        "",
        "The smallest `batch.tokens_per_rank` at which a micro-batch computes longer than it "
        "communicates, with all parameters trained and gradient checkpointing. Below it, more "
        "GPUs or faster ones gain nothing. The hierarchical column counts the sum over nodes in "
        "every micro-batch; with k micro-batches a step it is less.",
    ]
    for model in MODELS:
        for device in (A100, H100, RTX):
            lines += ["", f"{model} on {device.name}:", "", *_limits(model, device.name)]
    last = "The number depends on the size of the model hardly at all: both sides grow with it."
    return [*lines, "", last]


def _batches() -> list[str]:
    return [
        "",
        "## How many GPUs a batch feeds",
        "",
        f"A pair has {PAIR_TOKENS} tokens (the mean of WMT22 with a shared prefix), so a step of "
        f"128 pairs has {128 * PAIR_TOKENS:,}: on 64 GPUs {128 * PAIR_TOKENS // 64} each, far "
        "below what the tables above ask for. The most GPUs, 8 a node, on which computation "
        "still takes longer than communication, by `batch.pairs`:",
        *(
            line
            for device in (A100, H100)
            for line in ("", f"on {device.name}:", "", *_most_gpus(device.name))
        ),
    ]


def _ratio() -> list[str]:
    return [
        "",
        "## Communication over computation",
        "",
        "Above 1 a step is bound by communication. 13B on A100-80GB, by tokens of a micro-batch:",
        "",
        *_shares("13B", "A100-80GB"),
    ]


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    text = page()
    if "--check" in sys.argv:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
