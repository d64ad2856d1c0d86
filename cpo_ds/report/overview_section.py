"""The first section: what each run is, how far it is, and what it gained on held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from cpo_ds.data.json_text import finite
from cpo_ds.report.page import Part, Section, Tiles, decimal
from cpo_ds.report.run_folder import RunFolder
from cpo_ds.report.series import series_of

_NAMES = {
    "eval_reward_accuracy": ("reward accuracy", 3),
    "eval_reward_margin": ("reward margin", 3),
    "eval_loss": ("loss", 3),
}


def overview_section(runs: Sequence[RunFolder]) -> Section:
    """Tiles for each run, and a sentence on each."""
    parts: list[Part] = []
    for run in runs:
        parts.append(Tiles(_tiles(run), f"{run.name}: {description(run)}"))
    notes = (
        "Reward accuracy is the share of comparisons, one for each rejected translation, in which "
        "the chosen one has the higher reward, which for CPO is its log-prob times beta. The "
        "reward margin is the difference of both rewards. Both judge the model as a critic of "
        "these pairs. Whether its translations are "
        "better, cpo-ds translate and cpo-ds evaluate tell.",
    )
    return Section("overview", "Overview", tuple(map(_finding, runs)), (), tuple(parts), notes)


def description(run: RunFolder) -> str:
    """The objective, the trained weights and the devices in a few words, as far as known."""
    words = [str(run.setting("loss", "name") or "").upper()]
    rank = run.setting("lora", "rank")
    if run.config:
        words.append(f"LoRA of rank {rank}" if rank else "all parameters")
    words += [str(run.setting("model", key) or "") for key in ("name_or_path", "dtype")]
    ranks = run.versions.get("ranks")
    if isinstance(ranks, int):
        words.append(f"{ranks} rank{'s' * (ranks != 1)}")
    return ", ".join(word for word in words if word) or "its configuration is not known"


def _finding(run: RunFolder) -> str:
    """A sentence on the state of a run, and its held-out pairs before and after."""
    steps = f"{run.last_step:,} step{'s' * (run.last_step != 1)}"
    start = (
        f"{run.name} is {run.state}: {steps} logged."
        if run.training
        else (f"{run.name} is {run.state}; no step is logged so far.")
    )
    if not run.held_out:
        return start + " No held-out pairs were evaluated (data.eval_fraction holds some out)."
    first, last = run.held_out[0], run.held_out[-1]
    changes = []
    for key, (name, decimals) in _NAMES.items():
        before, after = finite(first.get(key)), finite(last.get(key))
        if before is not None and after is not None:
            changes.append(f"{name} {decimal(before, decimals)} → {decimal(after, decimals)}")
    pairs = finite(last.get("eval_pairs"))
    of_pairs = f"On {pairs:,.0f} held-out pairs" if pairs else "On held-out pairs"
    between = f"step {first['step']:,} → {last['step']:,}"
    return f"{start} {of_pairs}, {between}: {', '.join(changes) or 'no numbers'}."


def _tiles(run: RunFolder) -> tuple[tuple[str, str, str], ...]:
    """The numbers to read first."""
    tiles = []
    if run.held_out:
        first, last = run.held_out[0], run.held_out[-1]
        for key, (name, decimals) in _NAMES.items():
            before, after = finite(first.get(key)), finite(last.get(key))
            if before is not None and after is not None:
                change = f"held out, from {decimal(before, decimals)}"
                tiles.append((name.capitalize(), decimal(after, decimals), change))
    tiles.append(("Step", f"{run.last_step:,}", _epochs(run)))
    seconds = _trained_seconds(run)
    if seconds:
        tiles.append(("Time in steps", _duration(seconds), "without evaluation and saving"))
    if pairs := series_of(run.training, "pairs_per_second").values:
        tiles.append(("Pairs a second", f"{median(pairs):.3g}", "median of all steps"))
    if memory := series_of(run.training, "peak_memory_gib").values:
        tiles.append(("Peak memory", f"{max(memory):.1f} GiB", "of the rank that uses most"))
    return tuple(tiles)


def _epochs(run: RunFolder) -> str:
    epoch = next((finite(line.get("epoch")) for line in reversed(run.training)), None)
    if epoch is None:
        return run.state
    whole = finite(run.setting("train", "epochs"))
    return f"epoch {epoch:.3g}{f' of {whole:g}' if whole else ''}, {run.state}"


def _trained_seconds(run: RunFolder) -> float:
    """The time of all logged steps: a line's mean counts for the steps since the line before."""
    total, previous = 0.0, 0
    for line in run.training:
        seconds = finite(line.get("step_seconds")) or 0.0
        total += seconds * max(0, line["step"] - previous)
        previous = line["step"]
    return total


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.3g} s"
