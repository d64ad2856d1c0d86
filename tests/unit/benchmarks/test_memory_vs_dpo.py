"""The benchmark of CPO beside DPO: its models and pairs, its arguments, its judgement of runs."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import memory_vs_dpo
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs.job import combinations, why_not
from jobs.processes import OUT_OF_MEMORY, judge, largest_that_fits
from jobs.train_liger import padded_batch
from measures.memory_split import PARTS, STATES, Levels, parts_of_peak, plain_parts, states_gib
from models import synthetic, workload
from wmt22_lengths import lengths_of

from cpo_ds.data.plan import epoch_order
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow

VOCABULARY = 40


@st.composite
def lengths(draw: Any) -> synthetic.Lengths:
    chosen, rejected = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    common = draw(st.integers(0, min(chosen, rejected) - 1))
    if common == chosen - 1 == rejected - 1:
        common -= 1  # else they would be the same
    return synthetic.Lengths(draw(st.integers(1, 9)), chosen, rejected, common)


@settings(deadline=None)
@given(st.lists(lengths(), min_size=1, max_size=5), st.integers(0, 3))
def test_texts_of_numbers_have_exactly_the_lengths_asked_for(wanted, seed):
    rows = synthetic.rows_of_numbers(wanted, VOCABULARY, seed)
    tokenizer = synthetic.number_tokenizer(VOCABULARY)
    pairs, _ = tokenize_rows(rows, tokenizer, max_prompt_tokens=99, max_tokens=99)
    assert [synthetic.Lengths(*lengths_of(pair)) for pair in pairs] == wanted
    assert all(pair.tokens.max() < VOCABULARY for pair in pairs)


def test_wmt22_lengths_are_a_thousand_possible_pairs():
    drawn = synthetic.draw_lengths(1, 3000, seed=0)
    assert len(set(drawn)) > 700 and synthetic.draw_lengths(1, 3000, seed=0) == drawn
    assert all(one.common < min(one.chosen, one.rejected) for one in drawn)
    assert max(one.prompt + max(one.chosen, one.rejected) for one in drawn) <= workload.MAX_TOKENS


def test_few_steps_cost_what_many_do_on_average():
    def costs(steps):
        unique = [sum(one.unique for one in step) for step in steps]
        longest = [max(one.prompt + max(one.chosen, one.rejected) for one in s) for s in steps]
        return unique, longest

    rng = random.Random(0)
    many = synthetic.draw_lengths(1, 3000, seed=0)
    expected = [sum(cost) / 500 for cost in costs([rng.sample(many, 8) for _ in range(500)])]
    drawn = synthetic.draw_lengths(3, 8, seed=1)
    for cost, mean in zip(costs([drawn[i : i + 8] for i in (0, 8, 16)]), expected, strict=True):
        assert sum(cost) / 3 == pytest.approx(mean, rel=0.1)


def test_steps_are_drawn_in_the_order_of_training():
    drawn = synthetic.draw_lengths(3, 4, seed=1)
    placed = workload.in_order_of_training(drawn, 1)
    assert [placed[i] for i in epoch_order(12, 1, 0)] == drawn


def test_a_random_model_has_its_shape_dtype_and_spread(tmp_path):
    import transformers

    synthetic.save_random_model("tiny", tmp_path, "bfloat16", seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    weight = model.model.layers[1].mlp.down_proj.weight
    assert weight.dtype == torch.bfloat16
    assert weight.float().std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.model.norm.weight == 1).all()
    with pytest.raises(UserError, match="no shape huge"):
        synthetic.save_random_model("huge", tmp_path / "x", "float32", seed=0)


def test_a_given_model_can_take_synthetic_pairs(tmp_path):
    synthetic.save_random_model("tiny", tmp_path / "given", "float32", seed=0)
    arguments = memory_vs_dpo.parse(["--model", str(tmp_path / "given")])
    (tmp_path / "work").mkdir()
    made = workload.prepare_model(arguments, tmp_path / "work")
    pairs = workload.make_workload(arguments, made, 2, (1, 2), 16)
    assert pairs.totals.pairs == 4 and pairs.max_tokens == 16
    assert pairs.totals.unique_tokens == 4 * 24 and pairs.totals.padded_tokens == 4 * 32


def test_matrix_weights_leave_embeddings_and_norms_out():
    from cpo_ds.model.shapes import shape_config

    body, head, shapes = workload.matrix_weights(shape_config("tiny"))
    assert body == 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 176 * 3)
    assert head == 512 * 64 and shapes[-1] == (64, 512) and len(shapes) == 15


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_largest_number_that_fits_is_found_in_few_tries(limit, most):
    tried = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= limit

    assert largest_that_fits(fits, most) == min(limit, most)
    assert len(tried) <= 2 * most.bit_length() + 2 and len(set(tried)) == len(tried)


@given(st.integers(0, 300), st.integers(1, 80), st.sampled_from([0.1, 0.25]))
def test_the_search_begins_higher_and_ends_sooner_if_told(limit, first, within):
    largest = largest_that_fits(lambda number: number <= limit, 300, first=first, within=within)
    assert largest <= limit <= largest + max(0, within * largest)


def test_combinations_that_cannot_be_are_left_out_or_refused():
    pairs, notes = combinations(["cpo", "dpo-adapter"], ["full", "lora"])
    assert pairs == [("full", "cpo"), ("lora", "cpo"), ("lora", "dpo-adapter")]
    assert "no adapter" in notes[0]
    assert combinations(["dpo-adapter"], ["lora"])[1] == []
    with pytest.raises(UserError, match="take --training lora"):
        combinations(["dpo-adapter"], ["full"])


def test_other_trainers_say_why_they_are_not_run(monkeypatch):
    assert why_not("cpo", 8) is None
    assert "one rank only" in str(why_not("trl-cpo", 2))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps liger-kernel" in str(why_not("liger-cpo", 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama-9t"], "no shape llama-9t (did you mean"),
        (["--shape", "tiny", "--model", "x"], "not both"),
        (["--data-format", "sample"], "--data-format gives text"),
        (["--model", "x", "--wmt", "y", "--sequence-lengths", "64"], "not two"),
        (["--sequence-lengths", "3"], "at least 4"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--memory-limit", "0"], "more than 0"),
    ],
)
def test_arguments_that_exclude_each_other_are_refused(arguments, message, capsys):
    assert memory_vs_dpo.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_search_for_the_limit_needs_a_limit_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--memory-limit"):
        memory_vs_dpo.parse(["--find-limit"])
    assert memory_vs_dpo.parse(["--find-limit", "--memory-limit", "2", "--repeats", "0"])


def test_how_a_process_ended_is_told_from_its_code_and_its_words():
    assert judge([[0, "", {"seconds": 1}], [0, "", {}]], 9) == {"seconds": 1}
    no_room = "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
    for code, output in ((-9, ""), (1, no_room), (1, "torch.OutOfMemoryError: CUDA out of memory")):
        assert judge([[0, "", {}], [code, output, {}]], 9) == {"error": OUT_OF_MEMORY}
    assert judge([[None, "", {}]], 9)["error"] == "not done after 9 s (--timeout)"
    assert judge([[1, "a\nKeyError: b\n", {}]], 9)["error"] == "exit code 1: KeyError: b"
    with pytest.raises(UserError, match="no file x"):
        judge([[2, "warning\nthere is no file x\n", {}]], 9)


sizes = st.floats(0, 10)


@given(st.tuples(*[sizes] * 4), st.tuples(*[sizes] * 6), sizes)
def test_parts_add_up_to_the_peak(states, levels, libraries):
    held = dict(zip(STATES, states, strict=True))
    for parts in (parts_of_peak(40.0, libraries, held, Levels(*levels)),):
        assert set(parts) == set(PARTS)
        assert sum(parts.values()) == pytest.approx(40.0)
    assert sum(plain_parts(40.0, libraries, held).values()) == pytest.approx(40.0, abs=1e-2)


def test_at_a_peak_in_the_head_gradients_of_this_micro_batch_are_not_there():
    held = {"weights": 2.0, "gradients": 2.0, "optimizer": 4.0, "reference": 0.0}
    in_head = Levels(start=6.0, head_begin=9.0, before_head=9.0, in_head=10.0, after_head=9.5)
    parts = parts_of_peak(10.0, 0.0, held, in_head)
    assert (parts["gradients"], parts["activations"], parts["head"]) == (0.0, 3.0, 1.0)
    assert parts["other"] == 0.0
    after = Levels(start=6.0, head_begin=8.0, before_head=8.0, in_head=8.5, after_head=9.0)
    parts = parts_of_peak(9.0, 0.0, held, after)
    assert (parts["gradients"], parts["activations"], parts["head"]) == (2.0, 1.0, 0.0)


def test_states_are_counted_once_each():
    model = torch.nn.Linear(256, 256, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 256)).sum().backward()
    optimizer.step()
    states = states_gib(model, torch.nn.Linear(256, 128, bias=False), optimizer)
    unit = 256 * 256 * 4 / 2**30
    assert states["weights"] == states["gradients"] == pytest.approx(unit)
    assert states["optimizer"] == pytest.approx(2 * unit, rel=1e-3)
    assert states["reference"] == pytest.approx(unit / 2)


def test_padded_batches_score_what_this_trainer_scores():
    rows = [
        PreferenceRow("3 4", " 5 6", (" 7",), "", "0"),
        PreferenceRow("8", " 9", (" 9 3",), "", "1"),
    ]
    tokenizer = synthetic.number_tokenizer(VOCABULARY)
    pairs, _ = tokenize_rows(rows, tokenizer, max_prompt_tokens=9, max_tokens=9)
    ids, mask, targets = padded_batch(pairs, pad=0)
    end, no = 2, -100
    assert ids.tolist() == [[3, 4, 5, 6, end], [8, 9, end, 0, 0], [3, 4, 7, end, 0],
                            [8, 9, 3, end, 0]]  # fmt: skip
    assert targets.tolist() == [[no, 5, 6, end, no], [9, end, no, no, no], [no, 7, end, no, no],
                                [9, 3, end, no, no]]  # fmt: skip
    assert mask.sum(1).tolist() == [5, 3, 4, 4]


def _write_candidates(path: Path, *rows: dict[str, Any]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_wmt_pairs_prefer_the_first_system_and_skip_equal_translations(tmp_path):
    row = {"language_pair": "de-en", "source": "Hallo", "reference": "Hi"}
    path = _write_candidates(
        tmp_path / "wmt.jsonl.gz",
        row | {"candidates": {"gpt-4": "Hello.", "alma-13b-lora": "Hello."}},
        row | {"candidates": {"gpt-4": "Hello.", "alma-13b-lora": "Hey."}},
    )
    (pair,) = workload.read_wmt(path)
    assert pair.prompt == "Translate this from German to English:\nGerman: Hallo\nEnglish:"
    assert (pair.chosen, pair.rejected[0], pair.direction) == ("Hello.", "Hey.", "de-en")
    assert pair.origin == "wmt.jsonl.gz:2"


def test_wmt_file_without_a_system_is_refused_by_line(tmp_path):
    row = {"language_pair": "de-en", "source": "Hallo", "candidates": {"gpt-4": "Hello."}}
    path = _write_candidates(tmp_path / "wmt.jsonl.gz", row)
    with pytest.raises(UserError, match=r"wmt\.jsonl\.gz:1: .*alma-13b-lora"):
        workload.read_wmt(path)
    with pytest.raises(UserError, match="there is no file"):
        workload.read_wmt(tmp_path / "absent.jsonl.gz")
