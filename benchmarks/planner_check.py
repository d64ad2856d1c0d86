"""Compares the planner's estimates with the memory that real small runs hold.

    python benchmarks/planner_check.py --out benchmarks/results/planner_small_cpu.jsonl
    python benchmarks/planner_check.py --cases 1 5         # two of them, to try it out

Each case is a fresh set of processes that trains two steps of two micro-batches on random weights.
Model states are the storages of all tensors between steps and before an update. Total memory is
the peak of the second step. On a GPU (one rank) it is the memory that torch allocated. On a CPU
it is the resident memory, and a baseline is added to the estimate: the memory of Python and the
libraries, measured between the first two steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jobs.planner_worker import MIB, configuration, lengths_of
from jobs.processes import run_ranks
from measures.environment import describe_environment
from pages.results import device_name, render_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    # Freed memory goes back to the system, so that resident memory is memory in use.
    "MALLOC_MMAP_THRESHOLD_": str(2**18),
    "MALLOC_TRIM_THRESHOLD_": str(2**20),
    **({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"}),
}
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Case:
    """One small run."""

    shape: str
    stage: int
    training: str = "full"  # or lora
    ranks: int = 1
    dtype: str = "float32"
    states: str = "float32"  # of the optimizer
    gradient_checkpointing: bool | int = False
    pairs: int = 4  # in a micro-batch
    rejected: int = 1  # completions of each

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.pairs * sum(lengths_of(self.rejected))


CASES = (
    Case("llama-25m", 0),
    Case("llama-25m", 1, ranks=2),
    Case("llama-25m", 2, ranks=2),
    Case("llama-25m", 3, ranks=2),
    Case("llama-25m", 3, "lora", ranks=2),
    Case("llama-25m", 2, gradient_checkpointing=True),
    Case("tiny", 3, ranks=2, dtype="bfloat16"),
    Case("smollm2-135m", 0, "lora", pairs=2),
    Case("smollm2-135m", 3, pairs=2),
    # The cases above helped to improve the estimate; those below only check it.
    Case("llama-25m", 0, dtype="bfloat16", pairs=1),
    Case("llama-25m", 1, ranks=2, dtype="bfloat16", pairs=1),
    Case("llama-25m", 2, ranks=2, dtype="bfloat16", pairs=1),
    Case("llama-25m", 3, ranks=2, dtype="bfloat16", pairs=1),
    Case("llama-25m", 3, ranks=2, gradient_checkpointing=True, pairs=2),
    Case("llama-25m", 1, "lora", pairs=6),
    Case("llama-25m", 2, pairs=2, rejected=8),
    Case("llama-25m", 3, "lora", ranks=2, pairs=2, rejected=8),
)


def main(argv: list[str]) -> None:
    """Runs the cases one after the other and writes a line for each."""
    arguments = parse(argv)
    environment = describe_environment()
    on_gpu = torch.cuda.is_available()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # A line is written as soon as its case is measured.
    with arguments.out.open("w", encoding="utf-8") as out:
        for repeat in range(arguments.repeats):
            for case in (CASES[number - 1] for number in arguments.cases):
                if on_gpu and case.ranks > torch.cuda.device_count():
                    case = replace(case, ranks=1)
                line = {"benchmark": "planner", "repeat": repeat} | asdict(case) | measure(case)
                line |= environment | {
                    "device": environment["GPU"] if on_gpu else environment["processor"]
                }
                out.write(json.dumps(line) + "\n")
                out.flush()
                print(
                    f"{case}: states {line['states_error']:+.1%}, total {line['total_error']:+.1%}",
                    flush=True,
                )
    render_file(arguments.out)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / f"benchmarks/results/planner_small_{device_name()}.jsonl",
        help="results; a page is written beside it (benchmarks/results/planner_small_DEVICE.jsonl)",
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each case (1)")
    numbers = range(1, len(CASES) + 1)
    parser.add_argument(
        "--cases",
        nargs="+",
        type=int,
        choices=numbers,
        default=[*numbers],
        metavar="NUMBER",
        help=f"which cases, by their place in the page's table (1 to {len(CASES)})",
    )
    return parser.parse_args(argv)


def measure(case: Case) -> dict[str, Any]:
    """Measures a case in fresh processes and compares it with the estimate; sizes in MiB."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        task = json.dumps(asdict(case) | {"folder": name})
        commands = [[sys.executable, "-m", "jobs.planner_worker", task]] * case.ranks
        ended = run_ranks(commands, folder, _TIMEOUT_SECONDS, **ENVIRONMENT)
        if any(code != 0 for code, _ in ended):
            raise RuntimeError("\n".join(printed for _, printed in ended)[-3000:])
        measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return compare(measured, predict(case, on_gpu=measured["on_gpu"]))


def compare(measured: dict[str, Any], predicted: dict[str, float]) -> dict[str, Any]:
    """Puts measured and predicted values in one line, with relative errors of the estimate."""
    # The baseline is resident memory less the size of all tensors. It is too low by the part of
    # buffers that was never written to, as that part is not resident.
    total = predicted["total_mib"] + measured["baseline_mib"] + predicted["untouched_mib"]
    errors = [predicted[name] / measured[name] - 1 for name in ("at_rest_mib", "before_update_mib")]
    return {
        **{f"measured_{name}": value for name, value in measured.items()},
        **{f"predicted_{name}": value for name, value in predicted.items()},
        "predicted_total_with_baseline_mib": total,
        "states_error": max(errors, key=abs),
        "total_error": total / measured["total_mib"] - 1,
        "error_without_baseline": predicted["total_mib"]
        / (measured["total_mib"] - total + predicted["total_mib"])
        - 1,
    }


def predict(case: Case, *, on_gpu: bool) -> dict[str, float]:
    """The planner's estimates of a case, in MiB."""
    from cpo_ds.planner.outlines import Outlines
    from cpo_ds.planner.plan import read_zero
    from cpo_ds.planner.states import ELEMENT_BYTES, state_memory

    config = configuration(asdict(case), case.shape, "unused")
    outlines, zero = Outlines(case.shape), read_zero(config)
    weights = outlines.weights(config)
    states = state_memory(weights, zero, case.dtype, case.ranks, states=case.states)
    passes = outlines.passes(config, stage=case.stage, gpu=on_gpu, pair=lengths_of(case.rejected))
    memory = passes.at(case.tokens)
    in_passes, update = states.in_passes, states.in_update
    grows = untouched = 0.0
    if not on_gpu:  # only the part of a buffer that was written to is resident
        number = ELEMENT_BYTES[case.dtype]
        used = number * min(zero.reduce_bucket, weights.num_trained)
        kept = used if states.keeps_all else 0.0
        untouched = states.buckets - kept if states.keeps_all else 0.0
        in_passes += kept - states.buckets
        update += kept - (states.buckets if states.keeps_buckets else 0.0)
        # At stage 2 the bucket, its copy and this rank's gradients fill as activations are freed.
        part = number * weights.num_trained / case.ranks
        grows = 2 * used + part if case.stage == 2 else 0.0
    total = max(in_passes + max(memory.peak, grows), update)
    return {
        "at_rest_mib": states.at_rest / MIB,
        "before_update_mib": states.before_update / MIB,
        "total_mib": total / MIB,
        "untouched_mib": untouched / MIB,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
