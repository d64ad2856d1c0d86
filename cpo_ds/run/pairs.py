"""Training and held-out pairs of a recipe: read, split and tokenized."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cpo_ds.checkpoint.resume import saved_configuration
from cpo_ds.config import Config
from cpo_ds.data.chat import chat_renderer, prints_date
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.data.plan import check_budget
from cpo_ds.data.prompts import with_names
from cpo_ds.data.rows import read_rows, split_held_out
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.model.adapter_checks import check_adapter
from cpo_ds.model.base_checks import check_weights
from cpo_ds.model.base_settings import own_code_line
from cpo_ds.model.load import check_token_ids, load_model_config
from cpo_ds.model.positions import rope_key
from cpo_ds.model.tokenizer import load_tokenizer, stop_tokens
from cpo_ds.schema import PreferenceRow, TokenizedPair
from cpo_ds.storage.results import content_key


class PreparedPairs(NamedTuple):
    """The tokenizer, and the pairs in its tokens."""

    tokenizer: Any
    train: list[TokenizedPair]
    held_out: list[TokenizedPair]  # empty if the recipe asks for none


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


def prepare_pairs(config: Config, *, prints_counts: bool) -> PreparedPairs:
    """Reads, splits and tokenizes the recipe's data; prints how many pairs are kept and dropped.

    Raises `UserError` for data, a model or an adapter that cannot be trained with.
    """
    # The model's files and the adapter's settings are refused now, before the long part.
    data, name_or_path = config.data, config.model.name_or_path
    model_config = load_model_config(name_or_path)
    check_weights(name_or_path, model_config)
    if config.model.adapter:
        check_adapter(config.model, model_config)
    tokenizer = load_tokenizer(name_or_path)
    stops = stop_tokens(name_or_path, model_config)

    def report(*lines: str) -> None:
        if prints_counts:
            print("\n".join(lines), flush=True)

    if line := own_code_line(config.model.name_or_path, model_config):
        report(line)

    def tokenize(name: str, rows: list[PreferenceRow]) -> list[TokenizedPair]:
        if not rows:
            return []
        pairs, token_report = tokenize_rows(
            rows,
            tokenizer,
            max_prompt_tokens=data.max_prompt_tokens,
            max_tokens=data.max_tokens,
            sharing=config.batch.share_prefix,
            rope_key=partial(rope_key, model_config),
            add_bos=data.add_bos,
            stops=stops,
        )
        report(f"{name}: {len(pairs)}", *token_report.lines())
        check_budget(pairs, config.batch.tokens_per_rank)
        check_token_ids((pair.tokens for pair in pairs), model_config)
        return pairs

    # Held-out pairs are rows of their own or a part of the training rows.
    encoder = TextEncoder(tokenizer)
    render_chat = chat_renderer(
        tokenizer, encoder.plain, data.chat_template_kwargs, data.template_date
    )
    plain = encoder.parsed if data.special_tokens == "parsed" else encoder.plain
    rows, row_report = read_rows(data, render_chat, plain=plain)
    report(*row_report.lines())
    if data.format == "pairs" and data.special_tokens is None:
        _check_not_rendered(rows, encoder)
    held_out: list[PreferenceRow] = []
    if data.eval_path:
        held_out, held_out_report = read_rows(data, render_chat, path=data.eval_path, plain=plain)
        report("held out:", *held_out_report.lines())
    elif data.eval_fraction:
        languages = with_names(data.languages, "data.languages")
        rows, held_out = split_held_out(rows, data.eval_fraction, config.train.seed, languages)
    return PreparedPairs(
        tokenizer, tokenize("training pairs", rows), tokenize("held-out pairs", held_out)
    )


def tokenizer_fingerprints(tokenizer: Any) -> dict[str, str]:
    """Fingerprints of a tokenizer and of its chat template, by the names that messages show."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    template = json.dumps(tokenizer.chat_template)
    keys = {"tokenizer": content_key(whole, special), "chat template": content_key(template)}
    return {name: key[:16] for name, key in keys.items()}


def _check_not_rendered(rows: Sequence[PreferenceRow], encoder: TextEncoder) -> None:
    """Raises `UserError` if most texts look as if a chat template had rendered them before."""
    texts = [row for row in rows if not row.is_chat]
    looks = [row for row in texts if encoder.looks_rendered(row.prompt, row.chosen)]
    if 2 * len(looks) > len(texts):
        raise UserError(
            f"{looks[0].origin}: the prompt begins, or the completion ends, with a special token, "
            f"as do {len(looks)} of {len(texts)} pairs. Set data.special_tokens: "
            "parsed if these are the tokens that they spell, or plain if they are characters."
        )
