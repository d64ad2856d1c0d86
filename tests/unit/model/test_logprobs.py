"""Chunked log-probs against a full log-softmax: values, gradients, and no tensor of all logits."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cpo_ds.model import logprobs
from cpo_ds.model.logprobs import HeadTransform, chunk_tokens, token_logps

TRANSFORMS = {
    "plain": {},
    "scaled": {"scale": 0.4},
    "capped": {"softcap": 1.5},
    "scaled and capped": {"scale": 2.5, "softcap": 3.0},
}


def draw(
    scored: int = 13, hidden: int = 6, vocabulary: int = 31, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, head weight and targets, which repeat and include both ends."""
    generator = torch.Generator().manual_seed(1)
    hidden_SE = torch.randn(scored, hidden, generator=generator, dtype=torch.float64)
    weight_VE = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    targets_S = torch.randint(vocabulary, (scored,), generator=generator)
    targets_S[:4] = torch.tensor([0, vocabulary - 1, 5, 5])
    return (
        hidden_SE.to(dtype).requires_grad_(),
        weight_VE.to(dtype).requires_grad_(),
        targets_S,
    )


def full_logps(
    hidden_SE: torch.Tensor, weight_VE: torch.Tensor, targets_S: torch.Tensor, **transform: Any
) -> torch.Tensor:
    """Log-probs by definition, with all logits at once."""
    logits_SV = hidden_SE @ weight_VE.t() * transform.get("scale", 1.0)
    if (cap := transform.get("softcap")) is not None:
        logits_SV = cap * torch.tanh(logits_SV / cap)
    return logits_SV.log_softmax(-1).gather(-1, targets_S[:, None])[:, 0]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    difference = actual.double() - expected.double()
    return (difference.norm() / expected.double().norm()).item()


def test_by_hand() -> None:
    """Logits 0 and log 3: probabilities 1/4 and 3/4; d log p_1 / d logits = (-1/4, 1 - 3/4)."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0], [3.0]], dtype=torch.float64).log()
    logps = token_logps(hidden, weight, torch.tensor([1]), HeadTransform())
    assert logps.item() == pytest.approx(-0.2876820724517809)  # log 3/4
    logps.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.25 * 1.0986122886681098)  # 1/4 of log 3


@pytest.mark.parametrize("chunk", [1, 7, 13, 1024])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_values_and_gradients_equal_a_full_log_softmax(
    transform: dict[str, float], frozen: bool, chunk: int
) -> None:
    hidden, weight, targets = draw()
    weight.requires_grad_(not frozen)
    inputs = [hidden] if frozen else [hidden, weight]
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    expected = full_logps(hidden, weight, targets, **transform)
    head = HeadTransform(**transform, chunk_tokens=chunk)  # type: ignore[arg-type]
    actual = token_logps(hidden, weight, targets, head)
    assert actual.dtype == torch.float64
    assert relative_error(actual, expected) < 1e-12
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    actual_grads = torch.autograd.grad(actual, inputs, upstream)
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert relative_error(a, e) < 1e-9


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_finite_differences(
    transform: dict[str, float], frozen: bool
) -> None:
    hidden, weight, targets = draw(scored=5, hidden=3, vocabulary=7)
    weight.requires_grad_(not frozen)
    head = HeadTransform(**transform, chunk_tokens=2)  # type: ignore[arg-type]
    assert torch.autograd.gradcheck(lambda h, w: token_logps(h, w, targets, head), (hidden, weight))


def test_inputs_are_left_as_they_were() -> None:
    hidden, weight, targets = draw()
    before = [t.clone() for t in (hidden, weight, targets)]
    token_logps(hidden, weight, targets, HeadTransform(softcap=2.0, scale=0.5)).sum().backward()
    for tensor, copy in zip((hidden, weight, targets), before, strict=True):
        assert torch.equal(tensor, copy)


def test_a_second_backward_pass_gives_the_same() -> None:
    for frozen in (False, True):
        hidden, weight, targets = draw()
        weight.requires_grad_(not frozen)
        logps = token_logps(hidden, weight, targets, HeadTransform(chunk_tokens=4))
        first, second = (
            torch.autograd.grad(logps.sum(), hidden, retain_graph=True)[0] for _ in range(2)
        )
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True])
def test_half_precision_has_float32_logps_and_close_gradients(
    dtype: torch.dtype, frozen: bool
) -> None:
    """Logits are rounded to the inputs' precision, the rest is float32: 2e-2 for 8 bits."""
    hidden, weight, targets = draw(scored=40, hidden=32, vocabulary=64, dtype=dtype)
    with torch.no_grad():
        weight.mul_(0.2)
    weight.requires_grad_(not frozen)
    inputs = [hidden] if frozen else [hidden, weight]
    actual = token_logps(hidden, weight, targets, HeadTransform(chunk_tokens=16))
    assert actual.dtype == torch.float32
    doubles = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    expected = full_logps(*doubles, targets)
    assert relative_error(actual, expected) < 1e-2
    actual_grads = torch.autograd.grad(actual.sum(), inputs)
    expected_grads = torch.autograd.grad(expected.sum(), doubles[: len(inputs)])
    for a, e in zip(actual_grads, expected_grads, strict=True):
        assert a.dtype == dtype
        assert relative_error(a, e) < 2e-2


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    logps = token_logps(hidden, weight, torch.tensor([0, 0]), HeadTransform())
    assert logps.tolist() == [0.0, -2e4]
    logps.sum().backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


class Recorder(TorchDispatchMode):
    """Notes the size of every tensor that an operation returns, and new ones of one shape."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.largest = 0
        self.weight = weight
        self.weight_gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                same_shape = sorted(tensor.shape) == sorted(self.weight.shape)
                owned = tensor.untyped_storage().data_ptr() != self.weight.data_ptr()
                self.weight_gradients += same_shape and owned
        return result


# Sizes at which a chunk of logits (8 x 500) outweighs head (500 x 4) and hidden states (64 x 4).
SIZES = {"scored": 64, "hidden": 4, "vocabulary": 500}
CHUNK = 8


@pytest.mark.parametrize("frozen", [False, True])
def test_no_more_logits_than_one_chunk_ever_exist(frozen: bool) -> None:
    hidden, weight, targets = draw(**SIZES, dtype=torch.float32)  # type: ignore[arg-type]
    weight.requires_grad_(not frozen)
    head = HeadTransform(scale=0.5, softcap=4.0, chunk_tokens=CHUNK)
    with Recorder(weight) as recorder:
        token_logps(hidden, weight, targets, head).sum().backward()
    assert recorder.largest == CHUNK * SIZES["vocabulary"]
    assert (recorder.weight_gradients > 0) == (not frozen)
    assert (weight.grad is None) == frozen


def test_negative_control_the_recorder_sees_full_logits_and_weight_gradients() -> None:
    hidden, weight, targets = draw(**SIZES, dtype=torch.float32)  # type: ignore[arg-type]
    with Recorder(weight) as recorder:
        full_logps(hidden, weight, targets).sum().backward()
    assert recorder.largest == SIZES["scored"] * SIZES["vocabulary"]
    assert recorder.weight_gradients > 0


@pytest.mark.parametrize("frozen", [False, True])
def test_backward_keeps_no_logits_between_the_passes(frozen: bool) -> None:
    hidden, weight, targets = draw(**SIZES, dtype=torch.float32)  # type: ignore[arg-type]
    weight.requires_grad_(not frozen)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logps(hidden, weight, targets, HeadTransform(chunk_tokens=CHUNK))
    shapes = {tuple(tensor.shape) for tensor in saved}
    assert shapes == ({(64, 4)} if frozen else {(64, 4), (500, 4), (64,)})


@pytest.mark.parametrize(("scored", "computed"), [(CHUNK, 1), (CHUNK + 1, 3), (3 * CHUNK, 5)])
def test_the_last_chunk_of_a_trained_head_is_computed_once(scored: int, computed: int) -> None:
    hidden, weight, targets = draw(scored=scored, hidden=4, vocabulary=500)

    with mock.patch.object(logprobs, "_chunk_logps", wraps=logprobs._chunk_logps) as chunk_logps:
        token_logps(hidden, weight, targets, HeadTransform(chunk_tokens=CHUNK)).sum().backward()
        logits = [len(call.args[0]) for call in chunk_logps.call_args_list]
    assert len(logits) == computed
    assert sum(logits) == 2 * scored - CHUNK


@pytest.mark.parametrize(
    ("vocabulary", "trained", "expected"),
    [(32_000, False, 512), (32_000, True, 2048), (49_152, True, 1280), (256_000, True, 512),
     (1_000, False, 2048)],
)  # fmt: skip
def test_a_chunk_is_as_large_as_the_vocabulary_and_a_trained_head_allow(
    vocabulary: int, trained: bool, expected: int
) -> None:
    assert chunk_tokens(vocabulary, trained=trained) == expected
