"""One run of a benchmark: a method, the weights it trains, and settings that all methods share."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cpo_ds.errors import UserError

BENCHMARK = "memory_vs_dpo"  # the value of `benchmark` in lines of results

# Methods of this trainer -> its `loss` section.
OURS: dict[str, dict[str, str]] = {
    "cpo": {"name": "cpo"},
    "dpo-reference": {"name": "dpo", "reference": "model"},
    "dpo-adapter": {"name": "dpo", "reference": "adapter"},
    "dpo-precomputed": {"name": "dpo", "reference": "precomputed"},
}
# Methods of other projects -> the package that they need, and the command that installs it.
OTHERS = {
    "trl-cpo": ("trl", "pip install trl"),
    "trl-dpo": ("trl", "pip install trl"),
    "liger-cpo": ("liger_kernel", "pip install --no-deps liger-kernel"),
}
WITH_REFERENCE_PASS = (
    "dpo-reference",
    "dpo-adapter",
    "trl-dpo",
)  # the reference's forward pass, in every step
METHODS = (*OURS, *OTHERS)
TRAININGS = ("full", "lora")

BETA, WEIGHT_DECAY, MAX_GRAD_NORM = 0.1, 0.01, 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of one run; all methods share all but the first three fields."""

    method: str = "cpo"
    training: str = "full"
    repeat: int = 0
    sequence_length: int | None = None  # of prompt + completion, if all pairs are of one length
    model: str  # a folder
    rows: str  # JSON file with the pairs of all steps
    dtype: str
    threads: int
    pairs_per_step: int
    warmup_steps: int
    timed_steps: int
    micro_batch_pairs: int | None = None  # in TRL; None: a step is one micro-batch
    tokens_per_rank: int
    max_tokens: int  # no prompt + completion is longer
    learning_rate: float = 1e-5
    lora_rank: int = 16
    lora_targets: list[str] = field(default_factory=lambda: ["down_proj"])
    gradient_checkpointing: bool | int = False  # of all layers, of none, or of the first ones
    deepspeed: str
    memory_limit_gib: float | None = None
    recipe: list[str] = field(default_factory=list)  # section.field=value, for this trainer alone
    seed: int

    @property
    def steps(self) -> int:
        """Optimizer steps, timed or not."""
        return self.warmup_steps + self.timed_steps

    def settings(self) -> dict[str, Any]:
        """The job's fields for a line of results, without files that are deleted after the run."""
        return {name: value for name, value in asdict(self).items() if name not in _FILES}


_FILES = ("model", "rows")


def combinations(
    methods: Sequence[str], trainings: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns (training, method) in the order of their turns, and lines on those left out.

    Raises `UserError` if nothing is left.
    """
    wanted = [(training, method) for training in trainings for method in methods]
    possible = [pair for pair in wanted if pair != ("full", "dpo-adapter")]
    left_out = ["dpo-adapter with --training full: there is no adapter to switch off; left out"]
    if not possible:
        raise UserError(
            "--methods dpo-adapter takes the reference from the model without its adapter, and "
            "--training full has none; take --training lora, or --methods dpo-reference."
        )
    return possible, left_out if len(possible) < len(wanted) else []


def why_not(method: str, world_size: int) -> str | None:
    """The reason why a method cannot run, as a row of the table says it; None if it can."""
    if method in OURS:
        return None
    package, command = OTHERS[method]
    if world_size > 1:
        return f"not run: {method} is measured on one rank only, and there are {world_size}"
    if importlib.util.find_spec(package) is None:
        return f"not run: {package} is not installed ({command})"
    return None
