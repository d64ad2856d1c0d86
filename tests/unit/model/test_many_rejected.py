"""Pairs with several rejected completions: equal to separate pairs whose NLL counts once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers import VOCABULARY, all_sequences, tiny_model

from cpo_ds.data.pack import pack
from cpo_ds.data.plan import step_totals
from cpo_ds.data.tokenize import Sharing, make_pair
from cpo_ds.losses import nll_weight, pair_terms, step_share
from cpo_ds.model.attention import reference, registered_name, sdpa
from cpo_ds.model.block_attention import blocks
from cpo_ds.model.flex_attention import flex
from cpo_ds.model.logprobs import HeadTransform
from cpo_ds.model.policy import PolicyModel
from cpo_ds.model.shared_prefix import SharedPrefixLayout
from cpo_ds.run.metrics import pair_columns, summarize
from cpo_ds.schema import PairLogps, TokenizedPair
from cpo_ds.settings.objective import LossConfig

COMPARISONS = (1, 4, 2, 3, 1, 7)
CUTS = ([(0, 1, 2, 3, 4, 5)], [(0, 1), (2,), (3, 4, 5)], [(i,) for i in range(6)])


def pairs_of(
    comparisons: Sequence[int] = COMPARISONS, sharing: Sharing = "common", seed: int = 0
) -> list[TokenizedPair]:
    """A random pair for each number of rejected completions, which often begin alike."""
    rng = np.random.RandomState(seed)

    def draw(low: int, high: int) -> list[int]:
        return rng.randint(3, VOCABULARY, size=rng.randint(low, high)).tolist()

    pairs = []
    for count in comparisons:
        prompt, common = [1, *draw(1, 9)], draw(0, 4)
        texts = [([*prompt, *common, *draw(1, 9), 2], len(prompt)) for _ in range(count + 1)]
        # Several levels, of which the upper ones have ties, too; only some objectives read them.
        scores = (3.0, *rng.choice([3.0, 2.0, 0.5], size=count).tolist())
        pairs.append(make_pair(*texts, direction="", origin="", sharing=sharing, scores=scores))
    return pairs


def plain_logps(model: Any, pair: TokenizedPair) -> list[torch.Tensor]:
    """The log-prob of each completion by transformers' own forward pass, one after the other."""
    logps = []
    for tokens, start in zip(all_sequences(pair), pair.starts, strict=True):
        ids = torch.tensor([tokens])
        of_tokens = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        logps.append(of_tokens.gather(-1, ids[0, 1:, None])[start - 1 :].sum())
    return logps


def all_rankings(
    chosen: torch.Tensor, rejected: list[torch.Tensor], scores: Sequence[float], loss: LossConfig
) -> torch.Tensor:
    """-log of the sum of the probabilities of all rankings that agree with the scores, float64."""
    logits = loss.beta * torch.stack([chosen, *rejected]).double()
    levels = [
        [number for number, score in enumerate(scores) if score == level]
        for level in sorted(set(scores), reverse=True)
    ]
    log_likelihoods = []
    for orders in itertools.product(*map(itertools.permutations, levels)):
        ranking = logits[list(itertools.chain(*orders))]
        rest = ranking.flip(0).logcumsumexp(0).flip(0)
        log_likelihoods.append((ranking - rest).sum())
    return -torch.stack(log_likelihoods).logsumexp(0)


def unrolled_loss(
    model: Any, pairs: list[TokenizedPair], loss: LossConfig, reference_model: Any
) -> torch.Tensor:
    """The mean over pairs of the mean of their unrolled pairs, and the NLL counted once.

    For plackett-luce, of the likelihood of all rankings.
    """
    preference, nll, tokens = [], [], 0
    for pair in pairs:
        chosen, *rejected = plain_logps(model, pair)
        with torch.no_grad():
            reference_chosen, *reference_rejected = plain_logps(reference_model, pair)
        num_chosen, *num_rejected = pair.num_scored
        nll.append(-chosen / num_chosen if loss.nll_reduction == "pair" else -chosen)
        tokens += num_chosen
        assert pair.scores is not None
        if loss.name == "plackett-luce":
            preference.append(all_rankings(chosen, rejected, pair.scores, loss).float())
            continue
        terms = [
            pair_terms(
                PairLogps(
                    chosen[None],
                    one[None, None],
                    torch.tensor([float(num_chosen)]),
                    torch.tensor([[float(count)]]),
                    torch.ones(1, 1),
                    reference_chosen[None],
                    reference_one[None, None],
                    torch.tensor([[pair.scores[0], score]]),
                ),
                loss,
            )
            for one, count, reference_one, score in zip(
                rejected, num_rejected, reference_rejected, pair.scores[1:], strict=True
            )
        ]
        preference.append(torch.cat([one.preference for one in terms]).mean())
    denominator = len(pairs) if loss.nll_reduction == "pair" else tokens
    mean: torch.Tensor = torch.stack(preference).mean()
    return mean + nll_weight(loss) * torch.stack(nll).sum() / denominator


def packed_loss(
    policy: PolicyModel,
    pairs: list[TokenizedPair],
    cut: list[tuple[int, ...]],
    loss: LossConfig,
    reference_model: Callable[..., tuple[torch.Tensor, ...]],
) -> float:
    """The loss of micro-batches whose shares go backward one after the other."""
    totals, total = step_totals([cut], pairs), 0.0
    for micro_batch in cut:
        batch = pack(pairs, micro_batch)
        with torch.no_grad():
            known = reference_model(batch) if loss.has_reference else ()
        terms = pair_terms(batch.logps(*policy(batch), *known), loss)
        share = step_share(terms, totals, loss)
        share.backward()
        total += share.item()
    return total


def policy_of(model: Any, backend: str, chunk: int = 1024) -> PolicyModel:
    model = copy.deepcopy(model)
    model.set_attn_implementation(registered_name(backend))
    return PolicyModel(model, HeadTransform(chunk_tokens=chunk))


@pytest.mark.parametrize("backend", ["reference", "sdpa", "blocks"])
@pytest.mark.parametrize(
    ("family", "options"), [("llama", {}), ("mistral", {"sliding_window": 7}), ("gemma3_text", {})]
)
def test_log_probs_equal_those_of_transformers(family: str, options: dict, backend: str) -> None:
    plain = tiny_model(family, **options)
    pairs = pairs_of(seed=1)
    chosen, rejected = policy_of(plain, backend, chunk=5)(pack(pairs, tuple(range(len(pairs)))))
    plain.set_attn_implementation("eager")
    assert rejected.shape == (len(pairs), max(COMPARISONS))
    for number, pair in enumerate(pairs):
        expected = torch.stack(plain_logps(plain, pair))
        actual = torch.cat([chosen[number, None], rejected[number]])
        torch.testing.assert_close(actual[: len(expected)], expected, rtol=1e-5, atol=1e-5)
        assert not actual[len(expected) :].any()


LOSSES = [
    {"name": "cpo", "label_smoothing": 0.1},
    {"name": "cpo", "nll_reduction": "pair"},
    {"name": "cpo-simpo"},
    {"name": "arpo"},
    {"name": "ipo"},
    {"name": "hinge"},
    {"name": "dpo-nll"},
    {"name": "plackett-luce"},
    {"name": "plackett-luce", "beta": 0.7, "nll_reduction": "pair"},
    {"name": "cpo", "score_margin": 0.4, "label_smoothing": 0.1},
    {"name": "arpo", "score_margin": 0.4},
    {"name": "simpo", "score_margin": 2.0},
    {"name": "dpo", "score_margin": 0.4},
]


@pytest.mark.parametrize("sharing", ["common", "prompt", "none"])
@pytest.mark.parametrize("settings", LOSSES, ids=lambda value: "-".join(map(str, value.values())))
def test_loss_and_gradients_equal_those_of_unrolled_pairs(
    settings: dict[str, Any], sharing: Sharing
) -> None:
    loss = LossConfig(**settings)
    plain, other = tiny_model(), tiny_model(seed=1)
    pairs = pairs_of(sharing=sharing)
    before = policy_of(other, "reference")
    expected = unrolled_loss(plain, pairs, loss, other)
    expected.backward()
    for cut, backend, chunk in zip(CUTS, ("sdpa", "blocks", "reference"), (7, 1, 99), strict=True):
        policy = policy_of(plain, backend, chunk)
        policy.zero_grad()
        value = packed_loss(policy, pairs, cut, loss, before)
        assert value == pytest.approx(expected.item(), rel=1e-5)
        trained = dict(policy.causal_lm.named_parameters())
        for name, parameter in plain.named_parameters():
            difference = (trained[name].grad - parameter.grad).norm()
            assert difference <= 1e-3 * parameter.grad.norm(), (name, cut)


def test_negative_control_an_nll_for_each_comparison_is_another_loss() -> None:
    loss, plain, pairs = LossConfig(), tiny_model(), pairs_of()
    unrolled = [
        make_pair((chosen, pair.starts[0]), (one, pair.starts[1]), direction="", origin="")
        for pair in pairs
        for chosen, *rejected in [all_sequences(pair)]
        for one in rejected
    ]
    policy = policy_of(plain, "reference")
    each = packed_loss(policy, unrolled, [tuple(range(len(unrolled)))], loss, policy)
    once = packed_loss(policy, pairs, CUTS[0], loss, policy)
    assert abs(each - once) > 1e-3 * abs(once)


@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_hides_earlier_branches(window: int | None) -> None:
    layout = SharedPrefixLayout(((5, 3, 4, 2), (0, 2, 3, 3), (7, 1, 1)), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(heads, 31, 8, generator=generator) for heads in (4, 2, 2)]
    ours = flex(*states, layout, scale=0.3, window=window)
    torch.testing.assert_close(
        ours, reference(*states, layout, scale=0.3, window=window), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("backend", [sdpa, blocks])
def test_branches_one_by_one_are_the_whole_row(backend: Any, window: int | None) -> None:
    """Outputs and gradients of a row of pairs with one, two and five rejected branches."""
    segments = ((5, 3, 4, 2), (6, 2, 3), (0, 2, 3, 3), (4, 1, 1, 300, 2, 3))
    layout = SharedPrefixLayout(segments, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, segments))
    states = [torch.randn(heads, tokens, 8, generator=generator) for heads in (4, 2, 2)]
    down = torch.randn(tokens, 4, 8, generator=generator)
    results = []
    for attend in (backend, reference):
        own = [state.clone().requires_grad_() for state in states]
        output = attend(*own, layout, scale=0.3, window=window)
        output.backward(down)
        results.append([output.detach(), *(state.grad for state in own)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_parts_of_a_row_by_hand() -> None:
    layout = SharedPrefixLayout(((2, 1, 2), (1, 1, 1, 2)), torch.device("cpu"))
    pair, chosen, *rejected = layout.parts(None)
    assert pair.queries == slice(0, 5) and pair.keys == (slice(0, 5),)
    assert chosen.queries == slice(5, 7) and chosen.keys == (slice(5, 7),)
    assert [part.queries for part in rejected] == [slice(7, 8), slice(8, 10)]
    assert [part.keys for part in rejected] == [
        (slice(5, 6), slice(7, 8)),
        (slice(5, 6), slice(8, 10)),
    ]
    assert rejected[1].visible.int().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_mask_of_three_branches_by_hand() -> None:
    layout = SharedPrefixLayout(((2, 1, 2, 1),), torch.device("cpu"))
    assert layout.masks(None)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert layout.query_lengths == [3, 2, 1] and layout.key_lengths == [3, 4, 3]
    assert layout.key_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5]


def test_metrics_are_means_over_comparisons() -> None:
    """Two pairs, of one and of three comparisons, with rewards by hand."""
    loss = LossConfig(beta=1.0, alpha=0.0)
    pairs = pairs_of((1, 3))
    batch = pack(pairs, (0, 1))
    chosen = torch.tensor([-1.0, -2.0])
    rejected = torch.tensor([[-3.0, 0.0, 0.0], [-1.0, -4.0, -6.0]])
    logps = batch.logps(chosen, rejected)
    terms = pair_terms(logps, loss)
    totals = step_totals([[(0, 1)]], pairs)
    assert (totals.pairs, totals.comparisons) == (2, 4)
    metrics = summarize(pair_columns(terms, logps).sum(0).tolist(), totals, loss)
    assert metrics["reward_accuracy"] == 3 / 4
    assert metrics["reward_margin"] == pytest.approx((2 - 1 + 2 + 4) / 4)
    assert metrics["logp_rejected"] == pytest.approx((-3 - 1 - 4 - 6) / 4)
    assert metrics["logp_chosen"] == pytest.approx(-1.5)
    one, three = (
        -torch.nn.functional.logsigmoid(torch.tensor(values)).mean().item()
        for values in ([2.0], [-1.0, 2.0, 4.0])
    )
    assert metrics["preference_loss"] == pytest.approx((one + three) / 2)
