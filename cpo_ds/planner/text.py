"""A plan as text, and as values for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cpo_ds.planner.estimate import FRAGMENTATION, GIB, RUNTIME_GIB
from cpo_ds.planner.recommend import OFFLOADED
from cpo_ds.planner.row_shape import PROMPT_TOKENS, TRANSLATION_TOKENS
from cpo_ds.planner.step_time import ASSUMPTIONS

if TYPE_CHECKING:
    from cpo_ds.planner.estimate import MemoryPlan
    from cpo_ds.planner.plan import Plan
    from cpo_ds.planner.row_shape import RowShape


def as_text(plan: Plan) -> str:
    """All of a plan: memory by part, whether it fits, time, alternatives, assumptions."""
    blocks = [
        _recommended(plan), _head(plan), _memory(plan), _verdict(plan), _time(plan), _table(plan),
        _notes(plan),
    ]  # fmt: skip
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _recommended(plan: Plan) -> list[str]:
    """The settings to take, in a sentence and as options; else what would fit."""
    taken, gpus = plan.recommended, f"{plan.ranks} GPU{'s' if plan.ranks > 1 else ''}"
    if taken is None:
        size = f"{plan.memory.available / GIB:.1f} GiB"
        lines = [f"Recommended: nothing fits {gpus} of {size}. What would:"]
        return lines + [f"- {line}" for line in plan.ways_out]
    trained = "a LoRA adapter" if taken.config.trains_adapter else "all parameters"
    text = (
        f"Recommended: train {trained} with deepspeed {taken.config.deepspeed} and "
        f"batch.tokens_per_rank {taken.config.batch.tokens_per_rank}, which takes "
        f"{taken.memory.total / GIB:.1f} of {taken.memory.available / GIB:.1f} GiB of each GPU"
        f"{_host(plan, taken.memory)}."
    )
    if taken.offloaded:
        text += (
            f" All parameters fit only if they are offloaded (deepspeed {OFFLOADED}, slower), "
            f"in {taken.offloaded.total / GIB:.1f} GiB of each GPU{_host(plan, taken.offloaded)}."
        )
    elif taken.replaces_full:
        text += " All parameters do not fit, not even offloaded to the host."
    return [text, f"As options: {taken.options}"]


def _host(plan: Plan, memory: MemoryPlan) -> str:
    """The memory of a host that a plan takes, in words; "" if it takes none."""
    if not memory.host:
        return ""
    return f" and {memory.host * plan.gpus / GIB:.0f} GiB of memory of each host"


def _head(plan: Plan) -> list[str]:
    weights, config = plan.weights, plan.config
    trained = "a LoRA adapter" if config.trains_adapter else "all parameters"
    precision: str = config.model.dtype
    if config.optim.states == "bfloat16":
        precision += ", optimizer states too"
    gpu = plan.device.name if plan.device else "GPU"
    return [
        f"{plan.model}: {weights.num_policy / 1e9:.2f} billion weights, {trained} trained "
        f"({weights.num_trained / 1e6:,.1f} million), {precision}, {config.loss.name}",
        f"on {plan.ranks} {gpu} with {plan.memory.available / GIB:.1f} GiB each, "
        f"{config.deepspeed}, batch.tokens_per_rank {config.batch.tokens_per_rank}, activations "
        + _recomputation(*plan.recomputed),
        *plan.choices,
    ]


def _recomputation(count: int, depth: int) -> str:
    """How many layers recompute their activations, in words."""
    kept = {0: "kept", depth: "of all layers recomputed"}
    return kept.get(count, f"of {count} of {depth} layers recomputed")


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = ["memory of each GPU, in GiB"]
    lines += [f"  {name:<28}{size / GIB:>8.2f}" for name, size in memory.parts.items() if size]
    if memory.update > sum(memory.parts.values()):
        more = memory.update - sum(memory.parts.values())
        lines.append(f"  {'more, during the update':<28}{more / GIB:>8.2f}")
    lines.append(f"  {'in all':<28}{memory.total / GIB:>8.2f}")
    if memory.host:
        lines.append(f"  {'of the host, for each GPU':<28}{memory.host / GIB:>8.2f}")
    return lines


def _verdict(plan: Plan) -> list[str]:
    memory = plan.memory
    left = (memory.available - memory.total) / GIB
    lines = [f"It fits: {left:.1f} GiB are left."]
    if not memory.fits:
        lines = [f"It does not fit: {-left:.1f} GiB are missing."]
    if memory.most_tokens:
        lines.append(f"Largest batch.tokens_per_rank: {memory.most_tokens}.")
    else:
        least = plan.config.data.max_tokens
        lines.append(f"No batch.tokens_per_rank fits that holds a pair of data.max_tokens {least}.")
    return lines + [f"- {line}" for line in plan.advice]


def _time(plan: Plan) -> list[str]:
    if plan.time is None and plan.device is not None:
        dtype = plan.config.model.dtype
        return [f"Time: none, since no speed of {plan.device.name} in {dtype} is known."]
    if plan.time is None:
        return ["Time: give --device NAME for an estimate."]
    step = plan.time.step
    pairs, many = plan.config.batch.pairs, plan.rows.rejected
    comparisons = f" ({pairs * many:,.0f} comparisons)" if many != 1 else ""
    lines = [
        f"A step of {pairs} pairs{comparisons} takes about {step.total:.2f} s, bound by "
        f"{step.bound}: computation {step.compute:.2f} s, communication "
        f"{step.communication:.2f} s, update {step.update:.2f} s"
        + (f", to and from the host {step.host:.2f} s" if step.host else ""),
        f"(micro-batches on each GPU: {plan.time.micro_batches})",
    ]
    if plan.time.run_seconds is not None:
        minutes = plan.time.run_seconds / 60
        long = f"{minutes / 60:.1f} h" if minutes > 90 else f"{minutes:.0f} min"
        lines.append(f"Training for {plan.time.steps} steps takes about {long}.")
    else:
        lines.append("Give --pairs for the time of the run.")
    return lines


def _table(plan: Plan) -> list[str]:
    lines = [
        "GiB for each GPU at this batch.tokens_per_rank, and the largest that fits",
        f"  {'ds_configs/':<16}{'all parameters':>24}{'LoRA':>24}",
    ]
    names = list(dict.fromkeys(cell.zero for cell in plan.table))
    for name in names:
        cells = [cell.memory for cell in plan.table if cell.zero == name]
        texts = [
            f"{memory.total / GIB:.1f}, "
            + (f"up to {memory.most_tokens}" if memory.most_tokens else "too large")
            for memory in cells
        ]
        lines.append(f"  {name:<16}" + "".join(f"{text:>24}" for text in texts))
        if any(memory.host for memory in cells):
            texts = [f"and {memory.host / GIB:.1f} of the host" for memory in cells]
            lines.append(" " * 18 + "".join(f"{text:>24}" for text in texts))
    return lines


def _notes(plan: Plan) -> list[str]:
    notes = [
        *_row_notes(plan.rows),
        f"{RUNTIME_GIB} GiB for CUDA and NCCL and {FRAGMENTATION:.0%} for fragmentation",
        *(ASSUMPTIONS if plan.time else ()),
    ]
    return ["Assumed:", *(f"- {note}" for note in notes)]


def _row_notes(rows: RowShape) -> list[str]:
    """The assumptions about rows, in words."""
    notes = [f"pairs are taken to have {rows.tokens:.0f} tokens, the mean of WMT22"]
    if rows.rejected != 1:
        notes = [
            f"rows are taken to have {rows.tokens:.0f} tokens: a prompt of {PROMPT_TOKENS} and "
            f"{1 + rows.rejected:.4g} translations of {TRANSLATION_TOKENS}, the means of WMT22"
        ]
    if rows.source:
        notes.append(f"rejected translations of a row: {rows.rejected:.4g}, {rows.source}")
    return notes


def as_values(plan: Plan) -> dict[str, Any]:
    """A plan as values for JSON; sizes in GiB, times in seconds."""
    memory, time, taken = plan.memory, plan.time, plan.recommended
    # Keys are read by programs: they stay as they are.
    return {
        "model": plan.model,
        "weights": plan.weights.num_policy,
        "trained_weights": plan.weights.num_trained,
        "ranks": plan.ranks,
        "rejected": plan.rows.rejected,
        "device": plan.device.name if plan.device else None,
        "memory_gib": {name: size / GIB for name, size in memory.parts.items()},
        "update_gib": memory.update / GIB,
        "host_gib": memory.host / GIB,
        "total_gib": memory.total / GIB,
        "available_gib": memory.available / GIB,
        "fits": memory.fits,
        "largest_tokens_per_rank": memory.most_tokens,
        "advice": plan.advice,
        "recommended": taken
        and {
            "training": "LoRA" if taken.config.trains_adapter else "full",
            "deepspeed": taken.config.deepspeed,
            "tokens_per_rank": taken.config.batch.tokens_per_rank,
            "total_gib": taken.memory.total / GIB,
            "host_gib": taken.memory.host / GIB,
            "options": taken.options,
        },
        "would_fit": plan.ways_out,
        "deepspeed": plan.config.deepspeed,
        "recomputed_layers": plan.recomputed[0],
        "choices": plan.choices,
        "time": time
        and {
            "step_seconds": time.step.total,
            "compute_seconds": time.step.compute,
            "communication_seconds": time.step.communication,
            "update_seconds": time.step.update,
            "host_seconds": time.step.host,
            "bound_by": time.step.bound,
            "micro_batches": time.micro_batches,
            "steps": time.steps,
            "run_seconds": time.run_seconds,
        },
        "table": [
            {
                "deepspeed": cell.zero,
                "training": cell.training,
                "total_gib": cell.memory.total / GIB,
                "fits": cell.memory.fits,
                "largest_tokens_per_rank": cell.memory.most_tokens,
            }
            for cell in plan.table
        ],
        "assumed": _notes(plan)[1:],
    }
