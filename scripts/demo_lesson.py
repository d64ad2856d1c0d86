"""Tells what a finished run has learned, in words, for the end of scripts/demo.sh.

    python scripts/demo_lesson.py RUN_FOLDER

That is a verdict, three held-out sources translated before and after, the meaning of the metrics,
and the next commands.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from cpo_ds import cli
from cpo_ds.config import Config
from cpo_ds.data.held_out import split_held_out
from cpo_ds.data.prompts import source_of, with_names
from cpo_ds.data.rows import read_rows
from cpo_ds.errors import EXIT_USER_ERROR, UserError, one_line
from cpo_ds.ranks.console import plain_console
from cpo_ds.schema import PreferenceRow
from cpo_ds.storage.metrics_file import Line, read_metrics
from cpo_ds.translate.model_choice import ModelChoice, choose_model

_DEMO_MODEL = "smollm2-135m-instruct"
_WIDTH = 100
_NAMES = ("before", "after")
_LEAST = 0.01  # smaller relative changes of the loss, or of the margin in units of beta, are none


def verdict(first: Line, last: Line, beta: float) -> str:
    """One sentence on the held-out metrics before and after training."""
    pairs = last["eval_pairs"]
    loss = f"the loss went from {first['eval_loss']:.2f} to {last['eval_loss']:.2f}"
    margin = (
        f"the margin from {first['eval_reward_margin']:.2f} to {last['eval_reward_margin']:.2f}"
    )
    before, after = (round(line["eval_reward_accuracy"] * pairs) for line in (first, last))
    likes_more = first["eval_loss"] - last["eval_loss"] > _LEAST * abs(first["eval_loss"])
    # A margin that grows on pairs that were right before tells no more of them apart.
    grows = last["eval_reward_margin"] - first["eval_reward_margin"] > _LEAST * beta
    tells_apart = grows and (after > before or after == pairs)
    learned = {
        (True, True): "the model learned to expect the better translations, and to tell them from "
        "the worse ones",
        (True, False): "the model learned to expect the better translations, but not to tell them "
        "from the worse ones",
        (False, True): "the model learned to tell better translations from worse ones, but expects "
        "neither more than before",
        (False, False): "the model did not learn anything that holds for other pairs",
    }[likes_more, tells_apart]
    return (
        f"Verdict: {learned}: over {pairs} pairs that it never saw {loss} and {margin}, and it "
        f"prefers the better translation in {after} of them, before in {before}."
    )


def meanings(config: Config) -> list[str]:
    """What reward accuracy and margin mean, in two paragraphs."""
    loss = config.loss
    reward = f"beta ({loss.beta:g}) times the log-probability of the translation"
    if loss.name not in ("cpo", "arpo"):
        reward = f"as {loss.name} defines it (docs/numerics.md)"
    return [
        "Reward accuracy: the share of held-out pairs in which the better translation has the "
        f"higher reward. A coin would get 0.5. The reward is {reward}.",
        "Reward margin: how much higher, on average. Watch it on the held-out pairs: on the "
        "training pairs it also grows when a model learns them by heart.",
    ]


def next_commands(run: Path) -> list[tuple[str, str]]:
    """The next three commands, each with its purpose."""
    return [
        (
            f'.venv/bin/cpo-ds translate --model {run} --text "Guten Morgen." --pair de-en',
            "translate a sentence of yours",
        ),
        (
            "bash scripts/demo.sh --train.epochs 3",
            "train longer; this demo is moved aside, not deleted",
        ),
        (
            "cp recipes/own-pairs.yaml mine.yaml",
            "train on your own pairs: change three lines as docs/own-data.md says",
        ),
    ]


def held_out_rows(config: Config) -> list[PreferenceRow]:
    """The held-out pairs of a run, if their prompts are made of a source. Raises `UserError`."""
    data = config.data
    if data.format == "pairs" or data.prompt_style == "chat":
        return []
    if data.eval_path:
        return read_rows(data, None, data.eval_path)[0]
    names = with_names(data.languages, "data.languages")
    rows = read_rows(data, None)[0]
    return split_held_out(rows, data.eval_fraction, config.train.seed, names)[1]


def three_rows(rows: list[PreferenceRow], config: Config) -> list[dict[str, str]]:
    """The shortest sources of three directions, or fewer, as rows for `cpo-ds translate`."""
    names = with_names(config.data.languages, "data.languages")
    chosen: dict[str, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        source = source_of(row.prompt, row.direction, names)
        if source and row.direction not in chosen and len(chosen) < 3:
            values = {"language_pair": row.direction, "source": source, "reference": row.chosen}
            chosen[row.direction] = values
    return list(chosen.values())


def translated(rows: list[dict[str, str]], choice: ModelChoice) -> list[dict[str, Any]]:
    """The rows with translations by the base and by the trained model. Raises `UserError`."""
    assert choice.recipe is not None
    base = ["--model", choice.recipe.model.name_or_path]
    if choice.recipe.model.adapter:
        base += ["--adapter", choice.recipe.model.adapter]
    trained = ["--model", choice.model] + ["--adapter", choice.adapter or ""] * bool(choice.adapter)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "sources.jsonl"
        inputs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for name, model in zip(_NAMES, (base, trained), strict=True):
            output = Path(folder) / f"{name}.jsonl"
            arguments = ["translate", *model, "--input", inputs, "--output", output, "--name", name]
            arguments += ["--beam", "1", "--max-new-tokens", "60"]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = cli.main([str(argument) for argument in arguments])
            if code:
                raise UserError(one_line(said.getvalue().split("error: ")[-1]))
            inputs = output
        return [json.loads(line) for line in inputs.read_text(encoding="utf-8").splitlines()]


def table_of(row: dict[str, Any]) -> list[str]:
    """The lines that show a source with its translations."""
    texts = {row["language_pair"]: row["source"]}
    texts |= {name: row["candidates"].get(name) or "(nothing)" for name in _NAMES}
    texts["better"] = row["reference"].strip()
    return [f"  {name:<8}{one_line(text, _WIDTH - 10)}" for name, text in texts.items()]


def tell_translations(run: Path, config: Config) -> None:
    """Prints three held-out sources before and after, or why there are none."""
    try:
        rows = three_rows(held_out_rows(config), config)
        if not rows:
            return
        print("\nHeld-out sources, translated before and after (greedily):", flush=True)
        for row in translated(rows, choose_model(str(run), None)):
            print("\n".join(["", *table_of(row)]))
    except UserError as error:
        print(f"  There are none: {error}")
        return
    if Path(config.model.name_or_path).name == _DEMO_MODEL:
        print(
            "\nThe demo's model is too small to translate: 221 pairs change how it answers, not "
            "what it knows.\nWith the same method ALMA-7B becomes ALMA-7B-R: "
            "recipes/alma-7b-r-lora.yaml."
        )


def tell(run: Path) -> None:
    """Prints the whole lesson. Raises `UserError` if the folder holds no finished run."""
    _, held_out = read_metrics(run)
    choice = choose_model(str(run), None)
    if choice.recipe is None:
        raise UserError(f"{run} holds no config.yaml of a run; give the output_dir of one.")
    config = choice.recipe
    if len(held_out) < 2:
        print("Without held-out pairs (data.eval_fraction) nobody can say what it learned.")
    else:
        sentence = verdict(held_out[0], held_out[-1], config.loss.beta)
        print("\n" + textwrap.fill(sentence, _WIDTH))
        tell_translations(run, config)
        for paragraph in meanings(config):
            print("\n" + textwrap.fill(paragraph, _WIDTH))
    print("\nNext:")
    for command, purpose in next_commands(run):
        print(f"  {command}\n      {purpose}")


def main(argv: list[str]) -> int:
    """Tells the lesson of the given run; returns 0, or 2 if the folder holds none."""
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python scripts/demo_lesson.py RUN_FOLDER", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        tell(Path(argv[0]))
    except UserError as error:
        print(f"cpo_ds: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    with plain_console():
        code = main(sys.argv[1:])
    sys.exit(code)
