"""Pairs of a recipe by plain lists: all rows read, then split, then tokenized, without pieces."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from cpo_ds.config import Config
from cpo_ds.data.chat import chat_renderer
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.data.held_out import split_held_out
from cpo_ds.data.prompts import with_names
from cpo_ds.data.rows import read_rows
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.model.load import load_model_config
from cpo_ds.model.positions import rope_key
from cpo_ds.model.tokenizer import load_tokenizer, stop_tokens
from cpo_ds.schema import PreferenceRow, TokenizedPair


def pairs_plainly(
    config: Config,
) -> tuple[list[TokenizedPair], list[TokenizedPair], list[str]]:
    """Training pairs, held-out pairs, and the lines to print."""
    data, name = config.data, config.model.name_or_path
    model_config, tokenizer = load_model_config(name), load_tokenizer(name)
    lines: list[str] = []

    def tokenize(title: str, rows: list[PreferenceRow]) -> list[TokenizedPair]:
        if not rows:
            return []
        pairs, report = tokenize_rows(
            rows,
            tokenizer,
            max_prompt_tokens=data.max_prompt_tokens,
            max_tokens=data.max_tokens,
            sharing=config.batch.share_prefix,
            rope_key=partial(rope_key, model_config),
            add_bos=data.add_bos,
            stops=stop_tokens(name, model_config),
        )
        lines.extend([f"{title}: {len(pairs)}", *report.lines()])
        return pairs

    encoder = TextEncoder(tokenizer)
    render_chat = chat_renderer(
        tokenizer, encoder.plain, data.chat_template_kwargs, data.template_date
    )
    plain = encoder.parsed if data.special_tokens == "parsed" else encoder.plain
    rows, row_report = read_rows(data, render_chat, plain=plain)
    lines += row_report.lines()
    held_out: list[PreferenceRow] = []
    if data.eval_path:
        held_out, held_out_report = read_rows(data, render_chat, path=data.eval_path, plain=plain)
        lines += ["held out:", *held_out_report.lines()]
    elif data.eval_fraction:
        languages = with_names(data.languages, "data.languages")
        rows, held_out = split_held_out(rows, data.eval_fraction, config.train.seed, languages)
    return tokenize("training pairs", rows), tokenize("held-out pairs", held_out), lines


def values_of(pair: TokenizedPair) -> list[Any]:
    """All values of a pair, to compare."""
    assert pair.tokens.dtype == np.int32
    return [pair.tokens.tolist()] + [
        value for name, value in vars(pair).items() if name != "tokens"
    ]
