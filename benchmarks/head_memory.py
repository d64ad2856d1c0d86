"""Memory and time of the head and the loss alone, against the number of scored tokens.

    python benchmarks/head_memory.py             # vocabularies 32000 and 128256
    python benchmarks/head_memory.py --quick     # a small vocabulary, a minute, to try it out

Measures one forward and backward pass of CPO from given hidden states and a given weight of the
head. Compares the plain head (all logits at once, autograd), this project's, and Liger's fused one,
each with a trained and with a frozen weight. Each run is a fresh process. Writes a line per run to
OUT.jsonl, then OUT.md and a chart beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from jobs.command import add_dtype, at_least_one, run_and_render, set_threads
from jobs.job import BETA
from jobs.processes import run_fresh
from measures.probe import GIB, memory_now, memory_peak, reset_peak, return_freed_memory
from models.plain_head import plain_logps
from pages.results import Results, results_file
from pages.text import Line

from cpo_ds.errors import UserError
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.logprobs import HeadTransform, token_logps
from cpo_ds.schema import PairLogps, StepTotals
from cpo_ds.settings.objective import LossConfig

BENCHMARK = "head"
HEADS = ("plain", "chunked", "liger")


@dataclass(frozen=True)
class HeadJob:
    """One run: a head, its sizes and the scored tokens of both completions, all of one length."""

    head: str
    trained: bool  # whether the head's weight is trained
    repeat: int
    tokens: int
    vocabulary: int
    hidden_size: int
    completion_tokens: int
    dtype: str
    chunk_tokens: int
    passes: int  # on the clock
    threads: int

    @property
    def pairs(self) -> int:
        """Number of pairs that have this many scored tokens."""
        return self.tokens // (2 * self.completion_tokens)


Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def loss_of(job: HeadJob) -> Loss:
    """CPO as a function of hidden states [S, E], weight [V, E] and targets [S].

    The chosen completions come first, one after the other.
    """
    if job.head == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearCPOLoss

        # Liger computes head and loss in one call.
        fused = LigerFusedLinearCPOLoss(beta=BETA, alpha=1.0, compiled=False)
        shape = (2 * job.pairs, job.completion_tokens)
        return lambda hidden, weight, targets: fused(
            weight, hidden.unflatten(0, shape), targets.unflatten(0, shape)
        )[0]
    # The plain and the chunked head give log-probs; this project's loss takes them.
    transform = HeadTransform(chunk_tokens=job.chunk_tokens)
    head = {"plain": plain_logps, "chunked": token_logps}[job.head]
    tokens = torch.full((job.pairs, 1), float(job.completion_tokens), device=_device())
    counts = (tokens[:, 0], tokens, torch.ones_like(tokens))
    half = job.tokens // 2
    totals = StepTotals(job.pairs, job.pairs, half, job.tokens, job.tokens, job.tokens)
    loss = LossConfig(name="cpo", beta=BETA)

    def cpo(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logps = head(hidden, weight, targets, transform)
        chosen, rejected = logps.view(2, job.pairs, -1).sum(-1)
        terms = pair_terms(PairLogps(chosen, rejected[:, None], *counts), loss)
        return step_share(terms, totals, loss)

    return cpo


def run_head(job: HeadJob) -> Line:
    """Times forward and backward passes in this process, then measures their memory.

    Freed memory goes back to the system from the start. If that began between two passes, the first
    pass after it would seem to take more memory than it does.
    """
    torch.set_num_threads(job.threads)
    return_freed_memory()
    generator = torch.Generator().manual_seed(0)
    hidden, weight, targets = inputs(job, generator)
    loss_function = loss_of(job)
    # Warm up on a few tokens: the first pass loads kernels.
    small = 2 * job.completion_tokens
    warm_up = loss_of(HeadJob(**asdict(job) | {"tokens": small}))
    _pass(warm_up, hidden.detach()[:small].requires_grad_(), weight, targets[:small])
    # Time first, without gradients that are kept.
    seconds = []
    for _ in range(job.passes):
        start = time.perf_counter()
        loss = _pass(loss_function, hidden, weight, targets)
        seconds.append(time.perf_counter() - start)
    # Then memory: gradients are kept, as they are between passes of a real step.
    reset_peak()
    before = memory_now()
    _pass(loss_function, hidden, weight, targets, keep_gradients=True)
    growth = memory_peak() - before
    kept = [tensor.grad for tensor in (hidden, weight) if tensor.grad is not None]
    gradients = sum(gradient.nbytes for gradient in kept) / GIB
    return {
        "milliseconds": round(1000 * median(seconds), 2),
        "loss": loss,
        "growth_gib": round(growth, 4),
        "gradients_gib": round(gradients, 4),
        "extra_gib": round(growth - gradients, 4),
        "inputs_gib": round((hidden.nbytes + weight.nbytes) / GIB, 4),
    }


def inputs(
    job: HeadJob, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [S, E], a head's weight [V, E] and targets [S], the same for all heads."""
    dtype = getattr(torch, job.dtype)
    hidden = torch.randn(job.tokens, job.hidden_size, generator=generator)
    weight = torch.randn(job.vocabulary, job.hidden_size, generator=generator).mul_(0.02)
    targets = torch.randint(job.vocabulary, (job.tokens,), generator=generator)
    return (
        hidden.to(_device(), dtype).requires_grad_(),
        weight.to(_device(), dtype).requires_grad_(job.trained),
        targets.to(_device()),
    )


def _pass(
    loss_function: Loss,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    keep_gradients: bool = False,
) -> float:
    loss = loss_function(hidden, weight, targets)
    loss.backward()
    value = loss.item()  # waits for a GPU
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if not keep_gradients:
        hidden.grad = weight.grad = None
    return value


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render("head_memory", lambda _: run_all(parse(argv)))


def run_all(arguments: argparse.Namespace) -> Results:
    """Runs all heads at all sizes, `--repeats` times."""
    has_liger = importlib.util.find_spec("liger_kernel") is not None
    results = Results(arguments.out, {"benchmark": BENCHMARK, "model": "head alone"})
    planned = [
        (repeat, vocabulary, tokens, trained == "trained", head)
        for repeat in range(arguments.repeats)
        for vocabulary in arguments.vocabularies
        for tokens in arguments.tokens
        for trained in arguments.weight
        for head in arguments.heads
    ]
    for repeat, vocabulary, tokens, trained, head in planned:
        same = {name: getattr(arguments, name) for name in _SAME}
        job = HeadJob(head, trained, repeat, tokens, vocabulary, **same)
        if head == "liger" and not has_liger:
            measured = {"error": "liger-kernel is not installed"}
        else:
            measured = run_fresh(run_head, job)
        line = results.add(asdict(job) | measured)
        case = f"{head}, {'trained' if trained else 'frozen'}, {vocabulary} x {tokens}"
        print(f"{case}: {line.get('error') or line['extra_gib']}", flush=True)
    return results


_SAME = ("hidden_size", "completion_tokens", "dtype", "chunk_tokens", "passes", "threads")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(
        description="Memory and time of the head alone.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), metavar="HEAD",
        help=f"which to run: {', '.join(HEADS)} (all)")  # fmt: skip
    add("--weight", nargs="+", choices=("trained", "frozen"), default=["trained", "frozen"],
        help="whether the head's weight is trained (both in turn)")  # fmt: skip
    add("--vocabularies", nargs="+", type=int, default=[32000, 128256], metavar="V",
        help="(32000 128256)")  # fmt: skip
    add("--tokens", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192], metavar="S",
        help="scored tokens, multiples of twice --completion-tokens (256 .. 8192)")  # fmt: skip
    add("--hidden-size", type=int, default=1024, help="(1024)")
    add("--completion-tokens", type=int, default=64, help="tokens of a completion (64)")
    add("--chunk-tokens", type=int, default=512,
        help="chunk of this project's head (512)")  # fmt: skip
    add("--passes", type=int, default=1, help="passes on the clock (1)")
    add("--repeats", type=int, default=1, help="processes per row (1)")
    add("--threads", type=int, help="CPU threads (all cores)")
    add_dtype(parser)
    add("--quick", action="store_true", help="a vocabulary of 8192, hidden size 256")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and a chart are written "
        "beside it (benchmarks/results/head_HIDDEN_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Shrink it for a quick try, check the numbers, fill in defaults.
    if arguments.quick:
        arguments.vocabularies, arguments.hidden_size = [8192], 256
    names = ("hidden_size", "completion_tokens", "chunk_tokens", "passes", "repeats", "threads")
    at_least_one(**{name: getattr(arguments, name) for name in names})
    at_least_one(tokens=min(arguments.tokens), vocabularies=min(arguments.vocabularies))
    pair = 2 * arguments.completion_tokens
    if any(tokens % pair for tokens in arguments.tokens):
        raise UserError(f"--tokens must be multiples of {pair}, twice --completion-tokens.")
    arguments.threads = set_threads(arguments.threads)
    arguments.out = results_file(arguments.out, BENCHMARK, f"hidden-{arguments.hidden_size}")
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
