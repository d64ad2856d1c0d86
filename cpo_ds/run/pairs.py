"""Training and held-out pairs of a recipe: read, split and tokenized."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from cpo_ds.config import Config
from cpo_ds.data.plan import check_budget
from cpo_ds.data.prompts import RenderChat
from cpo_ds.data.rows import read_rows, split_held_out
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.model.file_checks import check_plain_lora
from cpo_ds.model.load import check_token_ids, load_model_config, load_tokenizer
from cpo_ds.model.positions import rope_key
from cpo_ds.schema import PreferenceRow, TokenizedPair


class PreparedPairs(NamedTuple):
    """The tokenizer, and the pairs in its tokens."""

    tokenizer: Any
    train: list[TokenizedPair]
    held_out: list[TokenizedPair]  # empty if the recipe asks for none


def prepare_pairs(config: Config, *, prints_counts: bool) -> PreparedPairs:
    """Reads, splits and tokenizes the recipe's data; prints how many pairs are kept and dropped.

    Raises `UserError` for data, a model or an adapter that cannot be trained with.
    """
    # The model's configuration and the adapter's settings are refused now, before the long part.
    model_config = load_model_config(config.model.name_or_path)
    if config.model.adapter:
        check_plain_lora(config.model.adapter)
    tokenizer = load_tokenizer(config.model.name_or_path)

    def report(*lines: str) -> None:
        if prints_counts:
            print("\n".join(lines), flush=True)

    def tokenize(name: str, rows: list[PreferenceRow]) -> list[TokenizedPair]:
        if not rows:
            return []
        pairs, token_report = tokenize_rows(
            rows,
            tokenizer,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_tokens=config.data.max_tokens,
            sharing=config.batch.share_prefix,
            rope_key=partial(rope_key, model_config),
        )
        report(f"{name}: {len(pairs)}", *token_report.lines())
        check_budget(pairs, config.batch.tokens_per_rank)
        check_token_ids((pair.tokens for pair in pairs), model_config)
        return pairs

    # Held-out pairs are rows of their own or a part of the training rows.
    render_chat = chat_renderer(tokenizer)
    rows, row_report = read_rows(config.data, render_chat)
    report(*row_report.lines())
    held_out: list[PreferenceRow] = []
    if config.data.eval_path:
        held_out, held_out_report = read_rows(config.data, render_chat, path=config.data.eval_path)
        report("held out:", *held_out_report.lines())
    elif config.data.eval_fraction:
        rows, held_out = split_held_out(rows, config.data.eval_fraction, config.train.seed)
    return PreparedPairs(
        tokenizer, tokenize("training pairs", rows), tokenize("held-out pairs", held_out)
    )


def chat_renderer(tokenizer: Any) -> RenderChat | None:
    """The tokenizer's chat template as a function of messages, None if it has no template."""
    if tokenizer.chat_template is None:
        return None
    return lambda messages, add_generation_prompt: tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
