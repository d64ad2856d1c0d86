"""Simulates how int8 gathers of weights (ZeRO++'s qwZ) change CPO's loss and margins.

    python scripts/make_demo_model.py runs/smollm2
    python benchmarks/quantized_weights.py --model runs/smollm2

The weights that ZeRO-3 gathers pass through blocks of int8 as in DeepSpeed's CUDA kernel, which
does not run on a CPU: cut over the ranks, rounded to float16, blocks of the kernel's size, one
scale each. Everything else is exact. Writes a page of benchmarks/results and prints it.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence

import torch
from measures.environment import ROOT, describe_environment
from pages.text import table
from torch import nn

from cpo_ds.config import Config
from cpo_ds.data.pack import pack
from cpo_ds.model.load import load_policy
from cpo_ds.model.policy import PolicyModel
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.schema import TokenizedPair

PERSISTENT = 100_000  # smaller weights are whole on every rank, and exact
TARGET_BLOCK = 8000  # of CUDAQuantizer, which `num_blocks` follows


def num_blocks(size: int) -> int:
    """Blocks of a flat tensor of a multiple of 8, as `CUDAQuantizer.quantize` finds them."""
    blocks = math.ceil(size / TARGET_BLOCK)
    while size % (8 * blocks):
        blocks += 1
    while size % (16 * blocks) == 0 and size / blocks > TARGET_BLOCK:
        blocks *= 2
    return blocks


def through_int8(weight: torch.Tensor, ranks: int) -> torch.Tensor:
    """A weight as the ranks get it: each rank's part in float16, in symmetric blocks of int8."""
    parts = weight.flatten().half().float().view(ranks, -1)
    blocks = parts.view(ranks * num_blocks(parts.shape[1]), -1)
    scale = 128 / blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    whole = (blocks * scale).round().clamp(-128, 127)
    return (whole / scale).half().view(weight.shape).to(weight.dtype)


@torch.no_grad()
def logps(
    policy: PolicyModel, config: Config, pairs: Sequence[TokenizedPair]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of chosen and rejected of each pair, [P] each."""
    outputs = [policy(pack(pairs, (number,))) for number in range(len(pairs))]
    return torch.cat([c for c, _ in outputs]).double(), torch.cat([r for _, r in outputs]).double()


def main() -> None:
    """Computes the log-probs both ways, writes the page and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model's folder or name")
    parser.add_argument("--ranks", type=int, default=8, help="ranks that each weight is cut over")
    arguments = parser.parse_args()
    # Pairs and policy as training reads them.
    values = {
        "model": {"name_or_path": arguments.model, "dtype": "float32"},
        "data": {
            "format": "sample",
            "directions": ["en-de", "zh-en", "cs-en", "en-ru"],
            "add_bos": "always",
        },
    }
    config = parse_config(values, "quantized_weights")
    pairs = prepare_pairs(config, prints_counts=False).train
    policy, _ = load_policy(config, device=torch.device("cpu"))
    policy.eval()
    # Exact log-probs, then those of rounded weights.
    ways = {
        "bfloat16": lambda weight: weight.bfloat16().float(),
        "int8": lambda weight: through_int8(weight, arguments.ranks),
    }
    exact = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    results = {"float32": logps(policy, config, pairs)}
    for way, rounded in ways.items():
        restore(policy, exact)
        for parameter in policy.parameters():
            if parameter.numel() > PERSISTENT:
                parameter.data = rounded(parameter.data)
        results[way] = logps(policy, config, pairs)
    # The page.
    page = as_page(results, config, pairs, arguments.ranks)
    (ROOT / "benchmarks" / "results" / "quantized_weights_smollm2-135m_cpu.md").write_text(page)
    print(page)


def restore(policy: nn.Module, exact: dict[str, torch.Tensor]) -> None:
    """Sets all parameters to their exact values again."""
    for name, parameter in policy.named_parameters():
        parameter.data = exact[name].clone()


def as_page(
    results: dict[str, tuple[torch.Tensor, torch.Tensor]],
    config: Config,
    pairs: Sequence[TokenizedPair],
    ranks: int,
) -> str:
    """The page of results."""
    beta, tokens = config.loss.beta, torch.tensor([len(pair.tokens) for pair in pairs]).double()
    chosen, rejected = results["float32"]
    margin = beta * (chosen - rejected)
    # A row for each kind of weights, compared with float32.
    rows = [
        ["weights", "preference loss", "mean margin", "its change",
         "change of a pair's margin (s.d.)", "pairs that turn", "change of a log-prob"],
    ]  # fmt: skip
    for way, (own_chosen, own_rejected) in results.items():
        own = beta * (own_chosen - own_rejected)
        change = own - margin
        turned = ((own > 0) != (margin > 0)).sum().item()
        rows.append([
            way, f"{-nn.functional.logsigmoid(own).mean():.4f}", f"{own.mean():+.4f}",
            f"{change.mean():+.4f}", f"{change.std():.4f}", f"{turned} of {len(pairs)}",
            f"{(own_chosen - chosen).abs().mean():.3f}",
        ])  # fmt: skip
    # The text around the table.
    facts = describe_environment()
    explained = f"""{len(pairs)} pairs of the built-in sample, {tokens.mean():.0f} tokens each, no
        training. All weights above {PERSISTENT:,} numbers pass through blocks of int8 as with
        `zero_quantized_weights` on {ranks} ranks: a simulation on a CPU in plain torch, since
        DeepSpeed's kernel needs a GPU. `bfloat16` rounds the same weights to bfloat16, as training
        holds them. The margin is beta (log-prob of chosen - log-prob of rejected), beta {beta}; its
        standard deviation over pairs is {margin.std():.3f} in float32. This model's weights come
        out of a 4-bit file, so those of others may be rounded more, or less."""
    written = ("command", "processor", "versions", "commit", "date")
    return "\n\n".join([
        "# Int8 gathers of weights, simulated: SmolLM2-135M",
        " ".join(textwrap.dedent(explained).split()),
        table(rows, text_columns=1),
        "; ".join(f"`{facts[key]}`" if key == "command" else facts[key] for key in written),
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
