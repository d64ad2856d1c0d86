"""Rows -> tokens: shared as far as the two sequences agree, dropped if too long."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from helpers import sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_tokenizer import NO_LIMIT, merging_tokenizer, row, tokenize
from tokenizers import Tokenizer, models

from cpo_ds.data.tokenize import Sharing, common_prefix_length, make_pair, tokenize_rows
from cpo_ds.errors import UserError


def test_merge_at_the_boundary_by_hand() -> None:
    """`x:` then `d`: the merge `:d` swallows the prompt's last token, which then is scored."""
    tokenizer = merging_tokenizer()
    x, colon, d, e, merged = tokenizer.convert_tokens_to_ids(["x", ":", "d", "e", ":d"])
    (pair,), report = tokenize_rows([row("x:", "de", "e")], tokenizer, **NO_LIMIT)
    assert sequences(pair) == ([1, x, merged, e, 2], [1, x, colon, e, 2])
    assert (pair.num_prefix, *pair.starts) == (2, 2, 3)
    assert pair.num_scored == (3, 2)
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
    pair = make_pair(
        ([1, 10, 20, 21, 2], 2),
        ([1, 10, 20, 22, 2], 2),
        direction="en-de",
        origin="here",
        sharing=sharing,
    )
    assert (pair.num_prefix, pair.tokens.tolist()) == (prefix, tokens)
    assert pair.tokens.dtype == np.int32
    assert pair.num_scored == (3, 3)
    assert (pair.longest_sequence, pair.direction, pair.origin) == (5, "en-de", "here")


def test_prompt_sharing_stops_before_a_merged_token_of_either_side() -> None:
    first, second = ([1, 5, 6, 7, 2], 2), ([1, 5, 6, 8, 2], 3)
    assert make_pair(first, second, direction="", origin="", sharing="prompt").num_prefix == 2
    assert make_pair(second, first, direction="", origin="", sharing="prompt").num_prefix == 2
    assert make_pair(first, second, direction="", origin="", sharing="common").num_prefix == 3


def test_completion_that_begins_the_other_keeps_a_token_on_its_own_branch() -> None:
    pair = make_pair(([1, 5, 2], 2), ([1, 5, 2, 7, 2], 2), direction="", origin="")
    assert (pair.num_prefix, *pair.branch_lengths) == (2, 1, 3)


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
    pair = make_pair(
        (chosen, begins[0]), (rejected, begins[1]), direction="", origin="", sharing=sharing
    )
    assert sequences(pair) == (chosen, rejected)
    assert pair.branch_lengths[0] >= 1 and pair.branch_lengths[1] >= 1
    assert pair.num_scored[0] == len(chosen) - begins[0]
    assert pair.num_scored[1] == len(rejected) - begins[1]
    assert pair.longest_sequence == max(len(chosen), len(rejected))
    if sharing == "common":  # nothing that could be shared is not
        next_tokens = chosen[pair.num_prefix], rejected[pair.num_prefix]
        one_left = 1 in pair.branch_lengths
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
    pairs, report = tokenize_rows(
        rows, merging_tokenizer(), max_prompt_tokens=4, max_tokens=8, add_bos="always"
    )
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
    pairs, report = tokenize_rows(
        rows, merging_tokenizer(), max_prompt_tokens=2, max_tokens=99, add_bos="always"
    )
    assert len(pairs) == 1 and report.dropped == {"prompt longer than 2 tokens": 1}


def test_order_is_kept_over_many_rows() -> None:
    rows = [row("x", f"y{n}", "z", str(n)) for n in range(4100)]  # more than one chunk's worth
    pairs = tokenize(rows, merging_tokenizer())
    assert [pair.origin for pair in pairs] == [str(n) for n in range(4100)]
    assert sequences(pairs[4097]) == sequences(tokenize([rows[4097]], merging_tokenizer())[0])


def test_nothing_left_is_an_error_that_says_why() -> None:
    with pytest.raises(UserError, match=r"no pairs are left .*\(1 prompt longer than 1 tokens\)"):
        tokenize_rows(
            [row("xx", "y", "z")],
            merging_tokenizer(),
            max_prompt_tokens=1,
            max_tokens=9,
            add_bos="always",
        )


def test_tokenizer_without_eos_is_refused() -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    with pytest.raises(UserError, match=r"no end-of-sequence token.*tokenizer_config\.json"):
        tokenize([row("x", "y", "z")], tokenizer)
