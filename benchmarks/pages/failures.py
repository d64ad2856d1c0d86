"""Lines of `failures.py` -> a page of tables, and a chart of where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measures.interval import daly_interval, expected_factor, young_interval
from measures.restarts import PARTS

from pages.charts import Bar, bars
from pages.text import Line, good, image, settings_list, table, write_page

# Parts of a bar -> their names in the legend.
LEGEND = {
    "training": "training",
    "saving": "waiting for saves",
    "lost work": "work done again",
    "notice": "the fault is noticed, with supervise.sh's pause",
    "launch": "launchers and libraries",
    "read": "reading pairs",
    "load": "model and checkpoint",
    "first step": "first step after a restart",
}


def render(lines: list[Line], stem: Path) -> None:
    """Writes the page beside the results, and its chart."""
    first = lines[0]
    title = f"{first['model']}, {first['ranks']} ranks, {first['device']}"
    parts = [f"# Time to {first['steps']} steps under failures: {title}"]
    if good(lines):
        path = stem.with_name(f"{stem.name}_time.png")
        draw(good(lines), path, f"Time to {first['steps']} steps: {title}")
        parts.append(image(path))
    parts += [f"**{text[0].upper()}{text[1:]}.**" for text in problems(lines)]
    parts += ["## Runs", runs_table(lines), runs_note(first)]
    kills = [kill for line in lines for kill in line["kills"]]
    if kills:
        parts += ["## The parts of a restart, in seconds", parts_table(kills), PARTS_NOTE]
        parts += ["## Work that is done again", lost_table(lines)]
        parts += ["## The interval by Young's and Daly's formulas", interval_table(lines)]
    settings = {
        "settings of the recipe": " ".join(first["settings"]) or "none beside those of the command",
        "supervise.sh": "--pause of its own"
        if first["pause"] is None
        else f"--pause {first['pause']}",
        "threads": f"{first['threads']} for each rank",
    }
    parts += ["## How it was measured", settings_list(settings, lines[-1])]
    write_page(stem, parts)


def name_of(line: Line) -> str:
    """A run's name in tables and charts."""
    if not line["killed"]:
        return "undisturbed"
    if line["interval"] is None:
        return "no checkpoints"
    return f"every {line['interval']:g} s, {'back' if line['background'] else 'fore'}ground"


def problems(lines: Sequence[Line]) -> list[str]:
    """What went wrong by itself, a sentence each; empty if the schedule caused every fault."""
    texts = []
    for line in lines:
        if "error" in line:
            texts.append(f"{name_of(line)}: failed: {line['error'].partition(';')[0]}")
        if codes := line["unplanned_restarts"]:
            ends = ", ".join(map(str, codes))
            texts.append(
                f"{name_of(line)}: {len(codes)} starts failed without a kill (codes {ends})"
            )
        if line["processes_left"]:
            texts.append(
                f"{name_of(line)}: {line['processes_left']} processes were left at the end"
            )
    return texts


def runs_table(lines: Sequence[Line]) -> str:
    """A row for each run: its time, beside the undisturbed run's and the expected one."""
    rows: list[tuple[str, ...]] = [
        ("checkpoints", "kills", "checkpoints saved", "a save, s", "a step, s", "time, s",
         "of the undisturbed", "expected")
    ]  # fmt: skip
    base = next((line for line in good(lines) if not line["killed"]), None)
    for line in lines:
        factor = expected = ""
        if base is not None and "error" not in line:
            factor = f"{line['seconds'] / base['seconds']:.2f}"
            expected = _number(expected_of(line), ".2f")
        rows.append((
            name_of(line), str(len(line["kills"])), str(line["saves"]),
            _number(line["save_seconds"], ".2f"), _number(line["step_seconds"], ".2f"),
            f"{line['seconds']:.0f}" if "error" not in line else "failed", factor, expected,
        ))  # fmt: skip
    return table(rows, text_columns=1)


def runs_note(first: Line) -> str:
    """How the runs of the first table were killed."""
    return (
        f"Every {first['kill_seconds'] / 60:g} minutes of a run's time one of these gets kill -9, "
        f"in turns: {', '.join(first['victims'])}. A rank is one rank's process. The launcher is "
        "the process that started the ranks, which stay behind. The host is all processes of the "
        "command at once. `scripts/supervise.sh` starts the command again. Time: from the first "
        "start of the command to its end, without an export. The undisturbed run saves its last "
        "step only. Expected: Daly's formula with this table's save, these kills as the mean time "
        "between failures, and the restart's median below; it is for failures at random times."
    )


def restart_seconds(kills: Sequence[dict[str, Any]]) -> float | None:
    """The median time from a kill to the first step after it; None if no restart came so far."""
    sums = [sum(k["parts"].values()) for k in kills if None not in k["parts"].values()]
    return median(sums) if sums else None


def expected_of(line: Line) -> float | None:
    """The factor by Daly's formula; None if a figure that it needs was not measured."""
    restart = restart_seconds(line["kills"])
    if restart is None or line["save_seconds"] is None or line["interval"] is None:
        return None
    # The first step after a restart is work that counts.
    restart -= line["step_seconds"] or 0.0
    save = 0.0 if line["background"] else line["save_seconds"]
    return expected_factor(line["interval"], save, line["kill_seconds"], max(restart, 0.0))


def parts_table(kills: Sequence[dict[str, Any]]) -> str:
    """Medians of the parts of restarts, a row for each kind of victim and one for all."""
    rows: list[tuple[str, ...]] = [("killed", "restarts", *PARTS, "all")]
    kinds = {kind: [k for k in kills if k["victim"].split()[0] == kind] for kind in
             dict.fromkeys(kill["victim"].split()[0] for kill in kills)}  # fmt: skip
    for name, of_kind in [*kinds.items(), ("all", list(kills))]:
        values = [
            [kill["parts"][part] for kill in of_kind if kill["parts"][part] is not None]
            for part in PARTS
        ]
        medians = [f"{median(seconds):.1f}" if seconds else "" for seconds in values]
        restarts = sum(kill["parts"]["notice"] is not None for kill in of_kind)
        rows.append((name, str(restarts), *medians, _number(restart_seconds(of_kind), ".1f")))
    return table(rows, text_columns=1)


PARTS_NOTE = """\
Medians; the last column is the median of whole restarts. Notice: from the kill until supervise.sh
says that it restarts; after a kill of the launcher the ranks finish their step and save meanwhile.
Launch: until rank 0's log begins, when all libraries are loaded and the ranks have met. Read: until
the pairs are counted. Load: until the policy is loaded and the checkpoint is verified and restored.
First step: until its line, its training included. The times are those at which the lines of the
script and of the run's `logs/rank_0.txt` appeared, looked at 20 times a second."""


def lost_table(lines: Sequence[Line]) -> str:
    """A row for each killed run: what a kill cost in work that was done again."""
    rows: list[tuple[str, ...]] = [
        ("checkpoints", "kills", "steps lost, mean", "work lost, mean s", "most, s")
    ]
    for line in lines:
        known = [kill for kill in line["kills"] if kill["lost"] is not None]
        if known:
            steps = sum(kill["steps lost"] for kill in known) / len(known)
            seconds = [kill["lost"] for kill in known]
            mean = sum(seconds) / len(seconds)
            rows.append(
                (
                    name_of(line),
                    str(len(known)),
                    f"{steps:.1f}",
                    f"{mean:.1f}",
                    f"{max(seconds):.1f}",
                )
            )
    return table(rows, text_columns=1)


def interval_table(lines: Sequence[Line]) -> str:
    """The best interval for these kills, by the measured cost of a save."""
    rows: list[tuple[str, ...]] = [("saved in the", "a save, s", "Young, s", "Daly, s")]
    for background in (False, True):
        costs = [line["save_seconds"] for line in lines
                 if line["killed"] and line["background"] == background
                 and line["save_seconds"] is not None]  # fmt: skip
        if costs and not background:
            cost, kills = median(costs), lines[0]["kill_seconds"]
            best = young_interval(cost, kills), daly_interval(cost, kills)
            rows.append(("foreground", f"{cost:.2f}", *(f"{seconds:.0f}" for seconds in best)))
    note = (
        "In the background training waits only for a copy of the state, which the run's line does "
        "not tell apart, so no row is given; take the shortest interval in which a save is done."
    )
    return f"{table(rows, text_columns=1)}\n\n{note}"


def time_parts(line: Line) -> dict[str, float]:
    """A run's seconds by the parts of LEGEND; they add up to its time."""
    parts = dict.fromkeys(LEGEND, 0.0)
    for kill in line["kills"]:
        seconds = {part: value or 0.0 for part, value in kill["parts"].items()}
        parts["notice"] += seconds["notice"] + seconds["pause"]
        for part in ("launch", "read", "load", "first step"):
            parts[part] += seconds[part]
        parts["lost work"] += kill["lost"] or 0.0
    if not line["background"]:  # else training went on
        parts["saving"] = line["saves"] * (line["save_seconds"] or 0.0)
    parts["training"] = max(0.0, line["seconds"] - sum(parts.values()))
    return parts


def draw(lines: Sequence[Line], path: Path, title: str) -> None:
    """Draws a bar for each run."""
    base = next((line["seconds"] for line in lines if not line["killed"]), None)
    rows = [
        Bar(
            name_of(line),
            time_parts(line),
            f"{line['seconds']:.0f} s" + (f", {line['seconds'] / base:.2f} x" if base else ""),
        )
        for line in lines
    ]
    bars(path, title, rows, "seconds", legend=LEGEND)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
