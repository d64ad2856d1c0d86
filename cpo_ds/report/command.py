"""Reports on a finished or running run: a table of held-out metrics, a picture of the curves.

python -m cpo_ds.report.command runs/demo        # prints the table, writes runs/demo/curves.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cpo_ds.errors import EXIT_USER_ERROR, UserError
from cpo_ds.storage.files import writing
from cpo_ds.storage.metrics_file import Line, read_metrics

_TABLE = {
    "eval_loss": "loss",
    "eval_reward_accuracy": "reward accuracy",
    "eval_reward_margin": "reward margin",
}


def summary(held_out: list[Line]) -> str:
    """Held-out metrics before and after training, and reward accuracy by direction, as text."""
    # All held-out pairs, before and after.
    first, last = held_out[0], held_out[-1]
    rows = [f"held-out pairs: {last['eval_pairs']}   step {first['step']:>6} -> {last['step']}"]
    for key, name in _TABLE.items():
        rows.append(f"  {name:<20}{first[key]:>10.4f} -> {last[key]:.4f}")
    # The same pairs by direction.
    rows.append("reward accuracy by direction (pairs)")
    for direction, after in last["eval_directions"].items():
        before = first["eval_directions"][direction]
        rows.append(
            f"  {direction + ' (' + str(after['pairs']) + ')':<20}"
            f"{before['reward_accuracy']:>10.3f} -> {after['reward_accuracy']:.3f}"
        )
    return "\n".join(rows)


def draw_curves(training: list[Line], held_out: list[Line], picture: Path) -> None:
    """Draws loss, reward accuracy and reward margin against the step, as a PNG."""
    import matplotlib  # here, since it takes a second and the table needs none of it

    matplotlib.use("Agg")  # draws files, without a display
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    titles = ("Loss", "Reward accuracy", "Reward margin")
    for panel, key, title in zip(panels, _TABLE, titles, strict=True):
        steps = [line["step"] for line in training]
        values = [line[key.removeprefix("eval_")] for line in training]
        panel.plot(steps, values, color="0.65", linewidth=1, label="training, each step")
        if held_out:  # a dot for each evaluation
            panel.plot(
                [line["step"] for line in held_out],
                [line[key] for line in held_out],
                color="C0",
                marker="o",
                markersize=4,
                label=f"held out, {held_out[-1]['eval_pairs']} pairs",
            )
        panel.set_title(title)
        panel.set_xlabel("optimizer step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    # Reward accuracy is a share, so its panel always shows the whole range.
    panels[1].set_ylabel("share of pairs with chosen above rejected")
    panels[1].set_ylim(0, 1)
    panels[0].legend()
    with writing(picture) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)
    pyplot.close(figure)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds report`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="output_dir of a run")


def run(arguments: argparse.Namespace) -> int:
    """Prints the table and draws the curves; returns 0.

    Raises `UserError` if the folder has no metrics, or cannot be written to.
    """
    folder: Path = arguments.run
    training, held_out = read_metrics(folder)
    if held_out:
        print(summary(held_out))
    draw_curves(training, held_out, folder / "curves.png")
    print(f"curves: {folder / 'curves.png'}")
    return 0


def main(argv: list[str]) -> int:
    """Runs `python -m cpo_ds.report.command RUN_FOLDER`; returns the exit code."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m cpo_ds.report.command RUN_FOLDER", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        return run(argparse.Namespace(run=Path(argv[0])))
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
