"""The gain of each step from the usual way to this trainer's, on the same pairs and loss.

    python benchmarks/ablations.py                      # SmolLM2-135M's shape, WMT22's lengths
    python benchmarks/ablations.py --quick              # a tiny shape, a minute, to try it out

Each run is this trainer's real loop in a fresh process; only the policy differs. It takes padded
sequences, computes the logits of all positions at once, or shares fewer tokens. A step is one
micro-batch. Writes a line per run to OUT.jsonl, then OUT.md and charts beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from jobs import train_ours
from jobs.command import add_timed_runs, at_least_one, run_and_render, set_threads
from jobs.job import TRAININGS, Job
from jobs.processes import run_fresh
from measures.probe import Probe
from models.plain_head import plain_logps
from models.workload import DEFAULT_SHAPE, make_workload, prepare_model, read_rows_file, write_rows
from pages.results import Results, results_file
from torch.nn.utils.rnn import pad_sequence

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import epoch_order
from cpo_ds.data.tokenize import Sharing, tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.model.load import load_policy
from cpo_ds.model.policy import PolicyModel, ScoringHead
from cpo_ds.model.shapes import SHAPES, shape_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.schema import PackedBatch, TokenizedPair

BENCHMARK = "ablations"


@dataclass(frozen=True)
class Variant:
    """One way in which the policy computes the log-probs of a batch."""

    padded: bool
    sharing: Sharing
    chunked_head: bool


# From the usual way to this trainer's, one change at a time; `padded` computes all logits, too.
VARIANTS = {
    "padded": Variant(padded=True, sharing="none", chunked_head=False),
    "packed": Variant(padded=False, sharing="none", chunked_head=False),
    "shared prompt": Variant(padded=False, sharing="prompt", chunked_head=False),
    "chunked head": Variant(padded=False, sharing="prompt", chunked_head=True),
    "longest common prefix": Variant(padded=False, sharing="common", chunked_head=True),
}


class PlainHead(ScoringHead):
    """The head as autograd computes it: the logits of all given positions at once."""

    def forward(
        self, hidden_SE: torch.Tensor, weight_VE: torch.Tensor, targets_S: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-prob of each target: [S], float32."""
        assert targets_S is not None
        return plain_logps(hidden_SE, weight_VE, targets_S, self.transform)


class PaddedPolicy(PolicyModel):
    """Chosen and rejected sequences padded to one length, the head on all positions, as in TRL.

    Takes batches whose pairs share nothing. Causal attention by torch's own kernel.
    """

    def forward(
        self, batch: PackedBatch, *, predicts: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the log-probs of chosen completions, [P], and of rejected ones, [P, 1]."""
        assert not predicts
        ids, is_token = padded(batch)
        hidden = self.causal_lm.get_decoder()(
            input_ids=ids, attention_mask=is_token.long(), use_cache=False
        ).last_hidden_state.flatten(0, 1)
        scored = is_token.flatten().nonzero()[:, 0].index_select(0, batch.score_positions)
        targets = ids.new_zeros(len(hidden)).index_copy(0, scored, batch.score_targets)
        logps = self.scoring_head(hidden, self.head_weight, targets).index_select(0, scored)
        return (
            _sum_by_pair(logps * batch.score_in_chosen, batch),
            _sum_by_pair(logps * batch.score_in_rejected[:, 0], batch)[:, None],
        )


def _sum_by_pair(logps: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    return logps.new_zeros(batch.num_pairs).index_add(0, batch.score_pairs, logps)


def padded(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask of real tokens, [2 pairs, longest] each, of pairs that share nothing.

    A pair's chosen sequence comes before its rejected one, so that tokens keep their order.
    """
    lengths = [length for _, *branches in batch.segment_lengths for length in branches]
    assert sum(lengths) == batch.input_ids.numel(), "the pairs share a prefix"
    sequences = batch.input_ids[0].split(lengths)
    ones = [torch.ones_like(sequence, dtype=torch.bool) for sequence in sequences]
    return pad_sequence(list(sequences), True), pad_sequence(ones, True)


def as_variant(policy: PolicyModel, variant: Variant) -> PolicyModel:
    """Returns this trainer's policy, changed to compute as the variant says."""
    if variant.padded:
        policy.causal_lm.set_attn_implementation("sdpa")
        transform, fingerprint = policy.scoring_head.transform, policy.fingerprint
        policy = PaddedPolicy(policy.language_model, transform, fingerprint)
    if not variant.chunked_head:
        policy.scoring_head = PlainHead(policy.scoring_head.transform)
    return policy


def pairs_of(job: Job, sharing: Sharing) -> list[TokenizedPair]:
    """Returns the job's pairs, sharing as many tokens as the variant allows."""
    tokenizer = load_tokenizer(job.model)
    return tokenize_rows(
        read_rows_file(job.rows),
        tokenizer,
        max_prompt_tokens=job.max_tokens,
        max_tokens=job.max_tokens,
        sharing=sharing,
        add_bos="always",  # as TRL does
    )[0]


def run_variant(name: str, job: Job) -> dict[str, Any]:
    """Trains for the job's steps in this process and returns the measurements."""
    variant = VARIANTS[name]
    torch.set_num_threads(job.threads)
    pairs = pairs_of(job, variant.sharing)

    def load(*arguments: Any, **options: Any) -> tuple[PolicyModel, str]:
        policy, attention = load_policy(*arguments, **options)
        return as_variant(policy, variant), attention

    probe = Probe(job.warmup_steps, job.timed_steps)
    with tempfile.TemporaryDirectory() as folder, mock.patch("cpo_ds.run.build.load_policy", load):
        measured = train_ours.run_ours(job, probe, folder, pairs)
    return measured | rates(variant, pairs, job, measured["seconds"])


def rates(
    variant: Variant, pairs: list[TokenizedPair], job: Job, seconds: float
) -> dict[str, float]:
    """Pairs a second, and the work for one pair: tokens of the body, positions of the head."""
    order = epoch_order(len(pairs), job.seed, 0).tolist()
    count, tokens, logits = job.timed_steps * job.pairs_per_step, 0, 0
    for step in range(job.warmup_steps, job.steps):
        first = step * job.pairs_per_step
        batch = pack(pairs, order[first : first + job.pairs_per_step])
        width = (padded(batch)[0] if variant.padded else batch.input_ids).numel()
        tokens += width
        logits += width if variant.padded else len(batch.score_positions)
    return {
        "pairs_per_second": round(count / seconds, 4),
        "tokens_per_second": round(tokens / seconds, 2),
        "tokens_per_pair": round(tokens / count, 2),
        "logits_per_pair": round(logits / count, 2),
    }


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    return run_and_render("ablations", lambda folder: run_all(parse(argv), folder))


def run_all(arguments: argparse.Namespace, folder: Path) -> Results:
    """Runs all variants in turn, `--repeats` times."""
    job = make_job(arguments, folder)
    shared = {
        "benchmark": BENCHMARK,
        "model": Path(arguments.model).name if arguments.model else arguments.shape,
        "weights": "given" if arguments.model else "random",
        "data": Path(arguments.wmt).name if arguments.wmt else "lengths drawn from WMT22's",
    }
    results = Results(arguments.out, shared)
    for repeat in range(arguments.repeats):
        for training in arguments.training:
            for variant in VARIANTS:
                variant_job = replace(job, training=training, repeat=repeat)
                measured = run_fresh(run_variant, variant, variant_job)
                line = results.add({"variant": variant} | variant_job.settings() | measured)
                print(f"{training}, {variant}: {summary(line)}", flush=True)
    return results


def summary(line: dict[str, Any]) -> str:
    """A line for the terminal."""
    if "error" in line:
        return str(line["error"])
    return f"{line['pairs_per_second']:.2f} pairs/s, {line['peak_memory_gib']:.2f} GiB"


def make_job(arguments: argparse.Namespace, folder: Path) -> Job:
    """Makes the settings that all runs share; writes model and pairs into `folder`."""
    model = prepare_model(arguments, folder)
    steps = (arguments.warmup_steps, arguments.steps)
    workload = make_workload(arguments, model, arguments.pairs_per_step, steps, None)
    return Job(
        model=model,
        rows=write_rows(workload.rows, folder / "rows.json"),
        dtype=arguments.dtype,
        threads=arguments.threads,
        pairs_per_step=arguments.pairs_per_step,
        warmup_steps=arguments.warmup_steps,
        timed_steps=arguments.steps,
        tokens_per_rank=2 * arguments.pairs_per_step * workload.max_tokens,
        max_tokens=workload.max_tokens,
        deepspeed=arguments.deepspeed,
        seed=arguments.seed,
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Raises `UserError` for values out of range or that exclude each other."""
    parser = argparse.ArgumentParser(
        description="The cost of padding, prefixes and the head.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", help="a folder or a Hugging Face name")
    add("--shape", help=f"random weights of a shape instead: {', '.join(SHAPES)} "
        f"({DEFAULT_SHAPE})")  # fmt: skip
    add("--wmt", metavar="FILE", help="jsonl.gz of WMT candidates, with --model (synthetic pairs "
        "of WMT22's lengths)")  # fmt: skip
    add("--training", nargs="+", choices=TRAININGS, default=["full"],
        help="train all parameters, a LoRA adapter, or both in turn (full)")  # fmt: skip
    add("--pairs-per-step", type=int, default=8, help="pairs per optimizer step (8)")
    add_timed_runs(parser, "variant")
    add("--quick", action="store_true", help="a tiny shape and one repeat, to try it out")
    add("--out", type=Path, metavar="FILE.jsonl", help="results; FILE.md and charts are written "
        "beside it (benchmarks/results/ablations_MODEL_DEVICE.jsonl)")  # fmt: skip
    arguments = parser.parse_args(argv)
    # Refuse options that exclude each other, then fill in defaults.
    if arguments.quick:
        arguments.shape, arguments.repeats = arguments.shape or "tiny", 1
    if arguments.model and arguments.shape:
        raise UserError("give --model or --shape (or --quick, which is a shape), not both.")
    if arguments.wmt and not arguments.model:
        raise UserError("--wmt gives text, and a shape has no tokenizer for it; give --model.")
    if not arguments.model:
        arguments.shape = arguments.shape or DEFAULT_SHAPE
        shape_config(arguments.shape)
    names = ("pairs_per_step", "steps", "warmup_steps", "repeats", "threads")
    at_least_one(**{name: getattr(arguments, name) for name in names})
    arguments.data_format = None
    arguments.threads = set_threads(arguments.threads)
    name = Path(arguments.model).name if arguments.model else arguments.shape
    arguments.out = results_file(arguments.out, BENCHMARK, name)
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
