"""Training and held-out pairs of a recipe: read, split and tokenized."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from cpo_ds.checkpoint.resume import saved_configuration
from cpo_ds.config import Config
from cpo_ds.data.assemble import Say
from cpo_ds.data.chat import prints_date
from cpo_ds.data.pair_columns import PairColumns
from cpo_ds.data.pair_file import Contents, read_pairs
from cpo_ds.data.pair_inputs import Inputs
from cpo_ds.data.pieces import Piece, PieceMaker, RawPiece
from cpo_ds.data.plan import check_budget
from cpo_ds.data.tokenize import PairRules
from cpo_ds.model.adapter_checks import check_adapter
from cpo_ds.model.base_checks import check_weights
from cpo_ds.model.base_settings import own_code_line
from cpo_ds.model.load import check_token_ids, load_model_config
from cpo_ds.model.positions import rope_key
from cpo_ds.model.tokenizer import load_tokenizer, stop_tokens
from cpo_ds.schema import TokenizedPair
from cpo_ds.storage.results import content_key


class PreparedPairs(NamedTuple):
    """The tokenizer, and the pairs in its tokens."""

    tokenizer: Any
    train: Sequence[TokenizedPair]
    held_out: Sequence[TokenizedPair]  # empty if the recipe asks for none
    selected_by: Sequence[str] | None = None  # the metrics that selected the pairs, if known


def with_template_date(config: Config) -> Config:
    """The configuration with the day that the chat template prints, if it prints one.

    It is the day on which the run started first, by the checkpoint that it resumes from, so that a
    run that goes on tomorrow has the same tokens. Raises `UserError` for a tokenizer that cannot be
    read.
    """
    data = config.data
    uses_template = data.prompt_style == "chat" or data.format == "pairs"
    if data.template_date or not uses_template:
        return config
    load_model_config(config.model.name_or_path)  # a wrong name is the model's, not its tokenizer's
    if not prints_date(load_tokenizer(config.model.name_or_path)):
        return config
    saved = saved_configuration(config.checkpoint, Path(config.output_dir) / "checkpoints")
    day = saved.get("data", {}).get("template_date") or date.today().isoformat()
    return config.model_copy(update={"data": data.model_copy(update={"template_date": day})})


def open_inputs(config: Config, say: Say) -> Inputs:
    """Loads and checks the files of the model and the settings of its data; reads no data.

    Raises `UserError` for a model or an adapter that cannot be trained with.
    """
    # The model's files and the adapter's settings are refused now, before the long part.
    data, name_or_path = config.data, config.model.name_or_path
    model_config = load_model_config(name_or_path)
    check_weights(name_or_path, model_config)
    if config.model.adapter:
        check_adapter(config.model, model_config)
    tokenizer = load_tokenizer(name_or_path)
    if line := own_code_line(name_or_path, model_config):
        say(line)
    rules = PairRules(
        data.max_prompt_tokens,
        data.max_tokens,
        config.batch.share_prefix,
        partial(rope_key, model_config),
    )
    stops, with_scores = stop_tokens(name_or_path, model_config), config.loss.needs_scores
    maker = PieceMaker(data, tokenizer, rules, stops, with_scores)
    return Inputs(config, tokenizer, model_config, maker)


def prepare_pairs(config: Config, *, prints_counts: bool) -> PreparedPairs:
    """Reads, splits and tokenizes the recipe's data in this process, in memory.

    Prints how many pairs are kept and dropped. Raises `UserError` for data, a model or an adapter
    that cannot be trained with.
    """

    def say(text: str) -> None:
        if prints_counts:
            print(text, flush=True)

    inputs, file = open_inputs(config, say), BytesIO()
    pieces = [made_once(inputs.maker, inputs.raw_pieces(path)) for path in inputs.paths()]
    inputs.assemble(pieces, file, say)
    contents, train, held_out = read_pairs(file.getvalue(), inputs.places())
    check_pairs(inputs, contents, train, held_out, say)
    return PreparedPairs(inputs.tokenizer, train, held_out, contents.selected_by)


def tokenizer_state(tokenizer: Any) -> list[str]:
    """Values that change with anything in a tokenizer that may change the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    options = getattr(tokenizer, "init_kwargs", {})
    # A tokenizer in Python keeps its rules in files.
    files = [] if backend else [Path(str(value)) for value in options.values()]
    contents = [sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    settings = {key: value for key, value in options.items() if isinstance(value, bool | int)}
    return [
        type(tokenizer).__name__,
        *tokenizer_fingerprints(tokenizer).values(),
        *contents,
        json.dumps(settings, sort_keys=True),
        json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id]),
    ]


def made_once(maker: PieceMaker, raw: Iterator[RawPiece]) -> Callable[[], Iterator[Piece]]:
    """The pieces of raw rows, made when they are first asked for and kept in memory."""
    kept: list[Piece] = []

    def pieces() -> Iterator[Piece]:
        yield from kept
        for rows in raw:
            kept.append(maker.make(rows))
            yield kept[-1]

    return pieces


def check_pairs(
    inputs: Inputs, contents: Contents, train: PairColumns, held_out: PairColumns, say: Say
) -> None:
    """Prints the counts of both parts, and checks what may differ between runs with the same pairs.

    Raises `UserError` for a pair that a rank cannot pack, or that the model has no embeddings for.
    """
    parts = (
        ("training pairs", contents.train, train),
        ("held-out pairs", contents.held_out, held_out),
    )
    for name, part, pairs in parts:
        if part.count:
            for line in (f"{name}: {part.count}", *part.lines):
                say(line)
            check_budget(pairs, inputs.config.batch.tokens_per_rank)
            check_token_ids([[part.largest_token]], inputs.model_config)


def tokenizer_fingerprints(tokenizer: Any) -> dict[str, str]:
    """Fingerprints of a tokenizer and of its chat template, by the names that messages show."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    template = json.dumps(tokenizer.chat_template)
    keys = {"tokenizer": content_key(whole, special), "chat template": content_key(template)}
    return {name: key[:16] for name, key in keys.items()}
