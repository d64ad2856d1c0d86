"""The model and the pairs of a benchmark: by name or by shape, given or synthetic."""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub import snapshot_download
from pydantic import ValidationError

from cpo_ds.data.plan import epoch_order, step_totals
from cpo_ds.data.prompts import alma_prompt, parse_direction
from cpo_ds.data.rows import read_rows
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.model.load import load_model_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.schema import PreferenceRow, StepTotals, TokenizedPair
from cpo_ds.settings.data import DataConfig
from models.synthetic import (
    draw_lengths,
    equal_lengths,
    rows_of_numbers,
    save_random_model,
    with_number_tokenizer,
)

Of = TypeVar("Of")

DEFAULT_SHAPE = "smollm2-135m"
WMT_CHOSEN, WMT_REJECTED = "gpt-4", "alma-13b-lora"
MAX_PROMPT_TOKENS, MAX_TOKENS = 256, 512


@dataclass(frozen=True)
class Workload:
    """The pairs of a run, and the token counts of its timed steps."""

    rows: list[PreferenceRow]
    totals: StepTotals  # of the timed steps
    most_tokens: int  # unique tokens of the largest step
    longest_pair: int  # its unique tokens
    max_tokens: int  # no sequence (prompt + completion) is longer


def is_synthetic(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for synthetic pairs instead of given ones."""
    return not (arguments.wmt or arguments.data_format)


def prepare_model(arguments: argparse.Namespace, folder: Path) -> str:
    """Returns the folder of the model: the given one, or a new one in `folder`.

    Raises `UserError` if a given model is missing, and for an unknown shape.
    """
    made = folder / "model"
    if not arguments.model:
        save_random_model(arguments.shape, made, arguments.dtype, arguments.seed)
        return str(made)
    config = load_model_config(arguments.model)  # fails now rather than in every run
    if not is_synthetic(arguments):
        return arguments.model
    given = Path(arguments.model)
    with_number_tokenizer(
        given if given.is_dir() else Path(snapshot_download(arguments.model)),
        config.vocab_size,
        made,
    )
    return str(made)


def make_workload(
    arguments: argparse.Namespace,
    model: str,
    pairs_per_step: int,
    steps: tuple[int, int],
    sequence_length: int | None,
) -> Workload:
    """Makes the pairs of `steps` (warm-up, timed). Raises `UserError` if there are too few."""
    rows, pairs = pairs_for(arguments, model, sum(steps), pairs_per_step, sequence_length)
    by_step = totals_by_step(pairs, pairs_per_step, arguments.seed)
    timed = by_step[steps[0] :]
    totals = [sum(getattr(step, field.name) for step in timed) for field in fields(StepTotals)]
    return Workload(
        rows=rows,
        totals=StepTotals(*totals),
        most_tokens=max(step.unique_tokens for step in by_step),
        longest_pair=max(len(pair.tokens) for pair in pairs),
        max_tokens=max(pair.longest_sequence for pair in pairs),
    )


def matrix_weights(model_config: Any) -> tuple[int, int, list[tuple[int, int]]]:
    """Counts weights in matrix products, of the body and of the head; gives all products' shapes.

    A shape is (inputs, outputs), the head's last.
    """
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(model_config)
    head = model.get_output_embeddings()
    body = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    shapes = [(layer.in_features, layer.out_features) for layer in [*body, head]]
    return sum(layer.weight.numel() for layer in body), head.weight.numel(), shapes


def pairs_for(
    arguments: argparse.Namespace,
    model: str,
    steps: int,
    pairs_per_step: int,
    sequence_length: int | None,
) -> tuple[list[PreferenceRow], list[TokenizedPair]]:
    """The pairs of some steps, as text and as this trainer's tokens."""
    # Texts: numbers with drawn lengths, or the given data, twice as many as needed.
    count = steps * pairs_per_step
    if is_synthetic(arguments):
        if sequence_length:
            lengths = equal_lengths(sequence_length, count)
        else:
            drawn = draw_lengths(steps, pairs_per_step, arguments.seed)
            lengths = in_order_of_training(drawn, arguments.seed)
        rows = rows_of_numbers(lengths, load_model_config(model).vocab_size, arguments.seed)
    else:
        rows = shuffled(read_data(arguments), arguments.seed)[: 2 * count]
    # Tokens: pairs that are too long are dropped, and enough must be left.
    longest = sequence_length or MAX_TOKENS
    pairs, _ = tokenize_rows(
        rows,
        load_tokenizer(model),
        max_prompt_tokens=max(MAX_PROMPT_TOKENS, longest),
        max_tokens=longest,
        add_bos="always",  # as TRL does
    )
    if len(pairs) < count:
        raise UserError(
            f"{count} pairs are needed for --pairs-per-step times all steps, but the data has "
            f"{len(pairs)} that fit; take fewer steps or more data."
        )
    pairs = pairs[:count]
    return [rows[int(pair.origin)] for pair in pairs], pairs


def in_order_of_training(lengths: Sequence[Of], seed: int) -> list[Of]:
    """Orders pairs so that the trainers, which shuffle an epoch, meet them in the given order."""
    placed = list(lengths)
    for position, length in zip(epoch_order(len(lengths), seed, 0), lengths, strict=True):
        placed[position] = length
    return placed


def shuffled(rows: list[PreferenceRow], seed: int) -> list[PreferenceRow]:
    """Shuffles all rows, directions mixed; `origin` becomes the position in the result."""
    return [
        replace(row, origin=str(number))
        for number, row in enumerate(random.Random(seed).sample(rows, len(rows)))
    ]


def read_data(arguments: argparse.Namespace) -> list[PreferenceRow]:
    """Reads all pairs of the data. Raises `UserError` if they cannot be read."""
    if arguments.wmt:
        return read_wmt(Path(arguments.wmt))
    try:
        data = DataConfig(format=arguments.data_format, path=arguments.data_path)
    except ValidationError as error:
        raise UserError(f"--data-format, --data-path: {error.errors()[0]['msg']}.") from None
    return read_rows(data, None)[0]


def read_wmt(path: Path) -> list[PreferenceRow]:
    """Reads pairs of two systems' translations and leaves out equal ones.

    Lines hold `language_pair`, `source` and `candidates`, translations by name of system.
    """
    if not path.is_file():
        raise UserError(f"--wmt: there is no file {path}.")
    rows = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"--wmt: {path} is not a gzip file of text: {error}.") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            direction, candidates = row["language_pair"], row["candidates"]
            chosen, rejected = candidates[WMT_CHOSEN], candidates[WMT_REJECTED]
            prompt = alma_prompt(row["source"], *parse_direction(direction))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of WMT candidates: {error!r}.") from None
        if chosen != rejected:
            origin = f"{path.name}:{number}"
            rows.append(PreferenceRow(prompt, chosen, (rejected,), direction, origin))
    return rows


def write_rows(rows: Sequence[PreferenceRow], path: Path) -> str:
    """Writes pairs for the processes that train on them; returns the file's name."""
    path.write_text(json.dumps([vars(row) for row in rows]), encoding="utf-8")
    return str(path)


def read_rows_file(path: str) -> list[PreferenceRow]:
    """Reads the file that `write_rows` wrote."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [PreferenceRow(**row | {"rejected": tuple(row["rejected"])}) for row in rows]


def totals_by_step(pairs: list[TokenizedPair], pairs_per_step: int, seed: int) -> list[StepTotals]:
    """Counts of each step's pairs, taken as one micro-batch."""
    order = epoch_order(len(pairs), seed, 0).tolist()
    steps = [order[i : i + pairs_per_step] for i in range(0, len(order), pairs_per_step)]
    return [step_totals([[tuple(step)]], pairs) for step in steps]
