"""Ablations, the scaling of cost, and the head alone: equal losses, refused arguments, pages."""

from __future__ import annotations

from itertools import pairwise

import ablations
import head_memory
import pytest
import scaling
import torch
from ablations import VARIANTS, PlainHead, as_variant, padded
from hypothesis import given
from hypothesis import strategies as st
from models.synthetic import draw_lengths, rows_of_numbers, save_random_model
from pages import head as head_page

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_totals
from cpo_ds.data.tokenize import make_pair, tokenize_rows
from cpo_ds.errors import UserError
from cpo_ds.losses import pair_terms, step_share
from cpo_ds.model.load import load_policy
from cpo_ds.model.logprobs import HeadTransform, token_logps
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.recipe import parse_config
from cpo_ds.settings.objective import LossConfig

NUM_PAIRS = 6
ENVIRONMENT = {"device": "some CPU", "GPU": "none", "commit": "abc", "command": "python x.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "model"
    save_random_model("tiny", folder, "float32", 1)
    return folder


def _loss_and_gradients(folder, name):
    variant = VARIANTS[name]
    config = parse_config(
        {"model": {"name_or_path": str(folder), "dtype": "float32"},
         "data": {"format": "sample"}},
        "the test",
    )  # fmt: skip
    policy, _ = load_policy(config, device=torch.device("cpu"))
    policy = as_variant(policy, variant)
    rows = rows_of_numbers(draw_lengths(1, NUM_PAIRS, 3), 512, 3)
    limits = {"max_prompt_tokens": 512, "max_tokens": 512}
    pairs, _ = tokenize_rows(rows, load_tokenizer(str(folder)), sharing=variant.sharing, **limits)
    batch = pack(pairs, range(NUM_PAIRS))
    logps = batch.logps(*policy(batch))
    loss = LossConfig(name="cpo")
    totals = step_totals([[tuple(range(NUM_PAIRS))]], pairs)
    value = step_share(pair_terms(logps, loss), totals, loss)
    value.backward()
    return value.item(), {n: p.grad for n, p in policy.language_model.named_parameters()}


def test_all_variants_compute_the_same_loss_and_gradients(folder):
    first_loss, first_gradients = _loss_and_gradients(folder, "padded")
    for name in list(VARIANTS)[1:]:
        loss, gradients = _loss_and_gradients(folder, name)
        assert loss == pytest.approx(first_loss, rel=1e-5), name
        for weight, gradient in gradients.items():
            difference = (gradient - first_gradients[weight]).norm()
            assert difference <= 1e-3 * first_gradients[weight].norm(), (name, weight)


def test_each_variant_differs_from_the_one_before_in_one_thing():
    variants = list(VARIANTS.values())
    for one, other in pairwise(variants):
        assert sum(vars(one)[name] != vars(other)[name] for name in vars(one)) == 1


lengths = st.integers(1, 6)


@given(st.lists(st.tuples(lengths, lengths, lengths), min_size=1, max_size=4))
def test_padding_keeps_every_sequence(shapes):
    pairs, sequences, token = [], [], 1
    for prompt, chosen, rejected in shapes:
        both = []
        for completion in (chosen, rejected):
            both.append(list(range(token, token + prompt + completion)))
            token += prompt + completion
        sequences += both
        pairs.append(
            make_pair((both[0], prompt), (both[1], prompt), direction="", origin="", sharing="none")
        )
    ids, is_token = padded(pack(pairs, range(len(pairs))))
    assert [row[mask].tolist() for row, mask in zip(ids, is_token, strict=True)] == sequences
    assert ids.shape[1] == max(map(len, sequences))
    assert not ids[~is_token].any()


@pytest.mark.parametrize("transform", [HeadTransform(), HeadTransform(2.0, 3.0, 4)])
def test_plain_head_is_the_chunked_one(transform):
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 5), torch.randn(11, 5)
    targets = torch.randint(11, (9,))
    ours = token_logps(hidden, weight, targets, transform)
    torch.testing.assert_close(PlainHead(transform)(hidden, weight, targets), ours)


@pytest.mark.parametrize("trained", [True, False])
def test_all_heads_compute_the_same_loss(trained):
    losses = {}
    for head in head_memory.HEADS:
        if head == "liger":
            pytest.importorskip("liger_kernel")
        job = head_memory.HeadJob(head, trained, 0, 24, 50, 16, 4, "float32", 5, 1, 1)
        hidden, weight, targets = head_memory.inputs(job, torch.Generator().manual_seed(0))
        loss = head_memory.loss_of(job)(hidden, weight, targets)
        loss.backward()
        assert (weight.grad is not None) == trained
        losses[head] = (loss.item(), hidden.grad)
    for loss, gradient in losses.values():
        assert loss == pytest.approx(losses["plain"][0], rel=1e-5)
        torch.testing.assert_close(gradient, losses["plain"][1], rtol=1e-4, atol=1e-6)


def test_one_factor_is_varied_at_a_time():
    base = scaling.Point(64, 48, 8192, 8)
    values = {"prompt_tokens": [64, 16], "completion_tokens": [48], "vocabulary": [8192, 99],
              "micro_batch_pairs": [8, 1]}  # fmt: skip
    factors_of = scaling.points(base, values)
    assert factors_of.pop(base) == list(scaling.FACTORS)
    assert sorted(factors_of.values()) == [["micro_batch_pairs"], ["prompt_tokens"], ["vocabulary"]]
    for point, (factor,) in factors_of.items():
        assert [n for n in scaling.FACTORS if vars(point)[n] != vars(base)[n]] == [factor]
    assert base.tokens_per_pair == 64 + 2 * 48


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        (ablations, ["--shape", "huge"], "there is no shape huge"),
        (ablations, ["--wmt", "x.gz"], "no tokenizer"),
        (ablations, ["--repeats", "0"], "--repeats must be at least 1"),
        (scaling, ["--micro-batch-pairs", "9"], "not be more than --pairs-per-step"),
        (scaling, ["--vocabulary", "4"], "at least 5"),
        (scaling, ["--methods", "dpo-adapter"], "without its adapter"),
        (head_memory, ["--tokens", "100"], "multiples of 128"),
    ],
)
def test_impossible_arguments_are_refused(module, words, message, capsys):
    assert module.main(words) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 1"):
        module.parse(["--threads", "0"])


def test_head_page_says_what_is_missing(tmp_path):
    same = {"benchmark": "head", "repeat": 0, "trained": True, "vocabulary": 100, "tokens": 256,
            "hidden_size": 16, "dtype": "float32", "chunk_tokens": 512, "completion_tokens": 64,
            "passes": 1, "threads": 1} | ENVIRONMENT  # fmt: skip
    ran = {"milliseconds": 7.0, "loss": 2.0, "extra_gib": 0.5}
    lines = [same | {"head": "plain"} | ran, same | {"head": "liger", "error": "not installed"}]
    head_page.render(lines, tmp_path / "head_x")
    page = (tmp_path / "head_x.md").read_text(encoding="utf-8")
    assert "| 100 | 256 | 0 | 512 | not installed |" in page
    assert (tmp_path / "head_x_memory.png").stat().st_size > 0
    first = (tmp_path / "head_x_memory.png").read_bytes()
    head_page.render(lines, tmp_path / "head_x")
    assert (tmp_path / "head_x_memory.png").read_bytes() == first
