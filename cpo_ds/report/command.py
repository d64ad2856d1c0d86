"""Reports on finished or running runs: a table of held-out metrics, curves, and a page.

python -m cpo_ds.report.command runs/demo   # prints the table, writes curves.png and report.html
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cpo_ds.data.json_text import UNPAIRED, finite
from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.report.directions_section import by_direction
from cpo_ds.report.run_folder import names_of, read_run
from cpo_ds.report.series import series_of
from cpo_ds.storage.files import writing
from cpo_ds.storage.metrics_file import Line

_TABLE = {
    "eval_loss": "loss",
    "eval_reward_accuracy": "reward accuracy",
    "eval_reward_margin": "reward margin",
}


def summary(held_out: list[Line]) -> str:
    """Held-out metrics before and after training, and reward accuracy by direction, as text."""
    # All held-out pairs, before and after.
    first, last = held_out[0], held_out[-1]
    rows = [f"held-out pairs: {last.get('eval_pairs')}   step {first['step']:>6} -> {last['step']}"]
    for key, name in _TABLE.items():
        rows.append(f"  {name:<20}{_text(first.get(key), 4):>10} -> {_text(last.get(key), 4)}")
    # The same pairs by direction.
    directions = by_direction(held_out)
    if directions:
        rows.append("reward accuracy by direction (pairs)")
    for direction, (before, after) in directions.items():
        accuracies = [_text(values.get("reward_accuracy"), 3) for values in (before, after)]
        rows.append(
            f"  {direction + ' (' + str(after.get('pairs')) + ')':<20}"
            f"{accuracies[0]:>10} -> {accuracies[1]}"
        )
    return "\n".join(rows)


def _text(value: Any, decimals: int) -> str:
    """A number as text; a dash for null, which stands for one that was not finite."""
    given = finite(value)
    return "-" if given is None else f"{given:.{decimals}f}"


def draw_curves(training: list[Line], held_out: list[Line], picture: Path) -> None:
    """Draws loss, reward accuracy and reward margin against the step, as a PNG."""
    import matplotlib  # here, since it takes a second and the table needs none of it

    matplotlib.use("Agg")  # draws files, without a display
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    titles = ("Loss", "Reward accuracy", "Reward margin")
    for panel, key, title in zip(panels, _TABLE, titles, strict=True):
        raw = series_of(training, key.removeprefix("eval_"))
        panel.plot(*raw, color="0.65", linewidth=1, label="training, each step")
        if held_out:  # a dot for each evaluation
            pairs = finite(held_out[-1].get("eval_pairs")) or 0
            panel.plot(
                *series_of(held_out, key),
                color="C0",
                marker="o",
                markersize=4,
                label=f"held out, {pairs:.0f} pairs",
            )
        panel.set_title(title)
        panel.set_xlabel("optimizer step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    # Reward accuracy is a share, so its panel always shows the whole range.
    panels[1].set_ylabel("share of comparisons with chosen above rejected")
    panels[1].set_ylim(0, 1)
    panels[0].legend()
    with writing(picture) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
    pyplot.close(figure)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds report`."""
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="output_dir of a run")
    parser.add_argument(
        "--output", type=Path, help="the page to write, .html (report.html in the first run)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints tables, draws the curves and writes the page; returns 0.

    Raises `UserError` if a folder has no metrics, or if a file cannot be written.
    """
    from cpo_ds.report.run_page import run_page  # here, since --help needs no numpy

    # Read everything before anything is printed or written.
    folders = list(dict.fromkeys(arguments.runs))
    output: Path = arguments.output or folders[0] / "report.html"
    if output.suffix not in (".html", ".htm") or output.is_dir():
        raise UserError(
            f"--output {output} is not free for a page; give a name that ends in .html."
        )
    runs = [read_run(*one) for one in zip(folders, names_of(folders), strict=True)]

    # The terminal gets the held-out metrics, and a single run its picture.
    for one in runs:
        if len(runs) > 1:
            print(f"{one.name}:")
        print(summary(one.held_out) if one.held_out else "no held-out pairs were evaluated")
    if len(runs) == 1:
        draw_curves(runs[0].training, runs[0].held_out, folders[0] / "curves.png")
        print(f"curves: {folders[0] / 'curves.png'}")

    # The page has everything.
    page = run_page(runs).encode(errors=UNPAIRED)
    with writing(output) as unfinished:
        unfinished.write_bytes(page)
    print(f"report: {output}")
    return 0


def main(argv: list[str]) -> int:
    """Runs `python -m cpo_ds.report.command RUN...`; returns the exit code."""
    if not argv or any(argument.startswith("-") for argument in argv):
        print("usage: python -m cpo_ds.report.command RUN...", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        return run(argparse.Namespace(runs=[Path(argument) for argument in argv], output=None))
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
