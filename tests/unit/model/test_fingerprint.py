"""The fingerprint of weights: any change shows, however they are split."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers import save_tiny_adapter, save_tiny_model, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.model import fingerprint
from cpo_ds.model.fingerprint import checksum, weights_fingerprint
from cpo_ds.model.hub import adapter_fingerprint

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
INTEGERS = {4: torch.int32, 2: torch.int16, 1: torch.int8}
PROPERTY = settings(deadline=None, max_examples=100)


def of_bits(bits: list[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor of the lowest bits of 32-bit numbers, whatever floats they make."""
    size = dtype.itemsize
    low = torch.tensor(bits, dtype=torch.int64) % 2 ** (8 * size)
    return low.to(INTEGERS[size]).view(dtype)


BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40)


@PROPERTY
@given(BITS, st.sampled_from(DTYPES), st.data())
def test_checksums_of_parts_add_up(
    bits: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    whole = of_bits(bits, dtype)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(bits)), max_size=4)))
    bounds = [0, *cuts, len(bits)]
    parts = [checksum(whole[a:b], a) for a, b in itertools.pairwise(bounds)]
    assert torch.equal(torch.stack(parts).sum(0), checksum(whole, 0))


def by_definition(values: torch.Tensor, start: int) -> torch.Tensor:
    """The checksum in a formula of one line, which holds every number and its product."""
    bits = values.view(INTEGERS[values.element_size()]).to(torch.int64)
    positions = torch.arange(start + 1, start + len(bits) + 1)
    return torch.stack([bits.sum(), (bits * positions).sum()])


@pytest.mark.parametrize("width, rows, block", [(1, 1, 1), (7, 3, 64), (16, 31, 999), (64, 5, 500)])
def test_any_shape_of_the_matrix_gives_the_checksum(
    width: int, rows: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_WIDTH", width), ("_ROWS", rows), ("_BLOCK", block)):
        monkeypatch.setattr(fingerprint, name, value)
    for dtype in DTYPES:
        values = torch.randn(1000).to(dtype)
        for count in (1, width, 999, 1000):
            assert torch.equal(checksum(values[:count], 5), by_definition(values[:count], 5))


@PROPERTY
@given(st.integers(1, 100_000), st.integers(0, 2**40), st.sampled_from(DTYPES))
def test_checksums_are_as_defined(count: int, start: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    size = count * dtype.itemsize
    values = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator).view(dtype)
    assert torch.equal(checksum(values, start), by_definition(values, start))


def test_pieces_are_too_small_for_threads() -> None:
    """torch shares out operations on 32768 numbers or more, and waits for its threads each time."""
    assert fingerprint._ROWS * fingerprint._WIDTH < 32768


def test_checksum_by_hand() -> None:
    """1 + 2 + 3, and 1 * 11 + 2 * 12 + 3 * 13."""
    values = torch.tensor([1, 2, 3], dtype=torch.int8)
    assert checksum(values, 10).tolist() == [6, 11 + 24 + 39]
    assert checksum(values[:0], 10).tolist() == [0, 0]


@PROPERTY
@given(BITS, st.sampled_from(DTYPES), st.data())
def test_any_bit_shows(bits: list[int], dtype: torch.dtype, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(bits) - 1))
    bit = data.draw(st.integers(0, 8 * dtype.itemsize - 1))
    changed = [*bits[:index], bits[index] ^ (1 << bit), *bits[index + 1 :]]
    assert not torch.equal(checksum(of_bits(bits, dtype), 0), checksum(of_bits(changed, dtype), 0))


@PROPERTY
@given(BITS.filter(lambda bits: len(bits) > 1), st.sampled_from(DTYPES), st.data())
def test_swapped_elements_show(bits: list[int], dtype: torch.dtype, data: st.DataObject) -> None:
    a = data.draw(st.integers(0, len(bits) - 2))
    b = data.draw(st.integers(a + 1, len(bits) - 1))
    swapped = list(bits)
    swapped[a], swapped[b] = bits[b], bits[a]
    before, after = of_bits(bits, dtype), of_bits(swapped, dtype)
    integers = INTEGERS[dtype.itemsize]
    same = torch.equal(before.view(integers), after.view(integers))
    assert torch.equal(checksum(before, 0), checksum(after, 0)) == same


@PROPERTY
@given(st.data())
def test_elements_swapped_between_parameters_show(data: st.DataObject) -> None:
    weights = of_bits(data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=8, max_size=8)),
                      torch.bfloat16)  # fmt: skip
    first, second = (data.draw(st.integers(*bounds)) for bounds in ((0, 3), (4, 7)))
    swapped = weights.clone()
    swapped[first], swapped[second] = weights[second], weights[first]
    before, after = (
        torch.nn.ParameterList([part.clone() for part in values.split(4)])
        for values in (weights, swapped)
    )
    is_same = torch.equal(weights.view(torch.int16), swapped.view(torch.int16))
    assert (weights_fingerprint(before, never) == weights_fingerprint(after, never)) == is_same


def never(sums: torch.Tensor) -> None:
    raise AssertionError("nothing is split here")


def test_a_model_is_known_by_names_and_weights() -> None:
    model = tiny_model()
    expected = weights_fingerprint(model, never)
    assert len(expected) == 16 and int(expected, 16) >= 0
    assert weights_fingerprint(tiny_model(), never) == expected
    assert weights_fingerprint(tiny_model(seed=1), never) != expected
    assert weights_fingerprint(torch.nn.ModuleList([model]), never) != expected
    weight = model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[-1, -1] = torch.nextafter(weight[-1, -1], torch.tensor(9.0))
    assert weights_fingerprint(model, never) != expected


def test_a_starting_adapter_is_its_weights_and_settings_not_its_place(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    adapter = save_tiny_adapter(model, tmp_path / "adapter")
    known = adapter_fingerprint(str(adapter))
    moved = adapter.rename(tmp_path / "moved")
    assert adapter_fingerprint(str(moved)) == known
    written = json.loads((moved / "adapter_config.json").read_text())
    changed = written | {"lora_alpha": written["lora_alpha"] * 2}
    (moved / "adapter_config.json").write_text(json.dumps(changed))
    assert adapter_fingerprint(str(moved)) != known
    with pytest.raises(UserError, match="there is no LoRA adapter"):
        adapter_fingerprint(str(adapter))
