"""The benchmark of several rejected completions: its rows, its arithmetic, its page."""

from __future__ import annotations

import gzip
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import many_rejected
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import candidate_lists, synthetic, workload
from models.candidate_lists import ListLengths, rows_of_lists, unrolled
from pages.many_rejected import headline, render
from wmt22_lengths import list_lengths, read_lists

from cpo_ds.data.tokenize import tokenize_rows

VOCABULARY = 5000


@st.composite
def lists(draw: Any) -> ListLengths:
    chosen = draw(st.integers(2, 9))
    rejected = []
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(2, 9))
        common = draw(st.integers(0, min(chosen, length) - 1))
        if common == chosen - 1 == length - 1:
            common -= 1  # else they would be the same
        if (length, common) not in rejected or length - 1 > common:
            rejected.append((length, common))  # a second text without own tokens would be the same
    return ListLengths(draw(st.integers(1, 9)), chosen, tuple(rejected))


def pairs_of(rows: Any) -> Any:
    tokenizer = synthetic.number_tokenizer(VOCABULARY)
    return tokenize_rows(rows, tokenizer, max_prompt_tokens=99, max_tokens=99)[0]


@settings(deadline=None, derandomize=True)  # two texts of one own token may be the same
@given(lists(), st.integers(0, 3))
def test_texts_of_numbers_have_exactly_the_lengths_asked_for(wanted, seed):
    rows = rows_of_lists([wanted], VOCABULARY, seed)
    (pair,) = pairs_of(rows)
    assert len(pair.tokens) == wanted.unique
    each = pairs_of(unrolled(rows))
    assert list_lengths(each) == [wanted.prompt, wanted.chosen, [*map(list, wanted.rejected)]]


def test_wmt22_candidates_are_rows_of_eight():
    drawn = candidate_lists.draw_lists(1, 1000, seed=0)
    assert len(set(drawn)) > 300 and candidate_lists.draw_lists(1, 1000, seed=0) == drawn
    assert {len(one.rejected) for one in drawn} == {candidate_lists.MOST_REJECTED}
    for one in drawn:
        assert all(common < min(one.chosen, length) for length, common in one.rejected)
        longest = max(one.chosen, *(length for length, _ in one.rejected))
        assert one.prompt + longest <= workload.MAX_TOKENS
        assert one.with_rejected(2).rejected == one.rejected[:2]


def test_a_step_is_near_the_average_as_lists_and_as_pairs_and_context_lengthens_prompts():
    def totals(rows):
        pairs = [pair.unique for one in rows for pair in one.unrolled()]
        return np.array([sum(one.unique for one in rows), sum(pairs)]) / len(rows)

    average, step = (totals(candidate_lists.draw_lists(1, count, seed=3)) for count in (2000, 4))
    np.testing.assert_allclose(step, average, rtol=0.1)
    with_context = candidate_lists.draw_lists(1, 2000, seed=3, context_tokens=100)
    np.testing.assert_allclose(totals(with_context) - average, [100, 800], atol=10)


def test_candidates_are_read_with_noised_copies_of_the_chosen_one(tmp_path):
    row = {
        "language_pair": "en-de",
        "source": "Good morning to all of you.",
        "reference": "Guten Morgen euch allen.",
        "candidates": {
            "gpt-4": "Einen guten Morgen euch allen hier",
            "alma-13b-lora": "Guten Morgen euch allen.",
            "other": "Morgen!",
        },
    }
    with gzip.open(tmp_path / "rows.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    (read,) = read_lists(tmp_path / "rows.gz")
    assert read.chosen == "Einen guten Morgen euch allen hier"
    assert read.rejected[:2] == ("Guten Morgen euch allen.", "Morgen!")
    assert len(set(read.rejected)) == 8
    words = set(read.chosen.split())
    assert all(set(text.split()) <= words for text in read.rejected[2:])


def test_all_variants_make_the_same_comparisons_in_a_step(tmp_path):
    arguments = many_rejected.parse(
        ["--quick", "--rejected", "3", "--rows-per-step", "2", "--threads", "1"]
    )
    jobs = many_rejected.make_jobs(arguments, tmp_path)
    by_variant = {variant: job for (_, variant), job in jobs.items()}
    assert [job.pairs_per_step for job in by_variant.values()] == [2, 6, 6]
    tokens = {
        variant: many_rejected.rates(job, 6, seconds=3.0) for variant, job in by_variant.items()
    }
    assert {line["comparisons_per_second"] for line in tokens.values()} == {4.0}
    assert (
        tokens["lists"]["tokens_per_comparison"]
        < tokens["unrolled"]["tokens_per_comparison"]
        < tokens["trl"]["tokens_per_comparison"]
    )
    # In the order of training, the first step's lists hold the texts of its unrolled pairs.
    texts = []
    for variant in ("lists", "unrolled"):
        job = by_variant[variant]
        rows = workload.read_rows_file(job.rows)
        order = many_rejected.epoch_order(len(rows), job.seed, 0)[: job.pairs_per_step]
        texts.append([(rows[i].chosen, text) for i in order for text in rows[i].rejected])
    assert texts[0] != texts[1] and sorted(texts[0]) == sorted(texts[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rejected", "9"], "--rejected takes numbers from 1 to 8; it is 9"),
        (["--context-tokens", "-1"], "--context-tokens must be at least 0; it is -1"),
        (["--trl-pairs", "0"], "--trl-pairs must be at least 1"),
        (["--shape", "huge"], "there is no shape huge"),
    ],
)
def test_wrong_words_are_refused(words, message, capsys):
    assert many_rejected.main(words) == 2
    assert message in capsys.readouterr().err


def test_the_page_compares_lists_with_the_others(tmp_path: Path) -> None:
    def line(variant: str, repeat: int, rate: float, **more: Any) -> dict[str, Any]:
        shared = {"training": "full", "rejected": 8, "model": "tiny", "dtype": "float32",
                  "device": "CPU", "data": "lengths", "context_tokens": 128, "rows_per_step": 4,
                  "tokens_per_rank": 4096, "micro_batch_pairs": 4, "warmup_steps": 1,
                  "timed_steps": 2, "threads": 1, "deepspeed": "zero0.json",
                  "step_seconds_p50": 1.0, "peak_memory_gib": 2.0,
                  "tokens_per_comparison": 50.0}  # fmt: skip
        return shared | {"variant": variant, "repeat": repeat, many_rejected.RATE: rate} | more

    lines = [
        line("lists", 0, 8.0), line("unrolled", 0, 4.0), line("trl", 0, 1.0),
        line("lists", 1, 10.0), line("unrolled", 1, 4.0), line("trl", 1, 1.0, error="killed"),
    ]  # fmt: skip
    render(lines, tmp_path / "page")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "lengths, 128 tokens before each source; 4 in an optimizer step" in page
    assert "| 8 | lists | 9.00 [8.00 - 10.00] |  | 50.0 |" in page
    assert "| unrolled pairs | 4.00 [4.00 - 4.00] | 2.25 [2.00 - 2.50] |" in page
    assert "| TRL CPOTrainer, unrolled pairs | 1.00 | 9.00 |" in page
    assert (tmp_path / "page_throughput.png").stat().st_size > 1000
    table = headline(lines).splitlines()
    assert table[0].startswith("| rejected | tokens per comparison | in pairs | all parameters: ")
    assert table[2] == "| 8 | 50 | 50 | 9.0 | 2.25 times | 9.00 times |"


def test_a_failed_run_is_a_row_with_its_reason() -> None:
    assert many_rejected.summary({"error": "out of memory"}) == "out of memory"
    assert isinstance(many_rejected.parse(["--quick"]), Namespace)
