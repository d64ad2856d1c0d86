"""The kept numbers of TRL: a wrong one fails with TRL, and without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_losses_trl import test_trls_cpo_loss_gives_the_same as losses_give_the_same
from test_tokenize_trl import test_tokens_and_split_are_trls as tokens_are_the_same
from trl_numbers import FILE, TrlNumbers, first_difference, largest_sketch_error, sketch

# A kept value, a change to it, and a test that reads it.
WRONG: dict[str, tuple[str, Callable[[Any], Any], Callable[[TrlNumbers], None]]] = {
    "loss": (
        "cpo_loss: sigmoid, label_smoothing 0.0",
        lambda kept: kept | {"losses": [kept["losses"][0] * 1.0001, *kept["losses"][1:]]},
        lambda numbers: losses_give_the_same("sigmoid", 0.0, numbers),
    ),
    "tokens": (
        "tokens: row 4, tiny",
        lambda kept: kept | {"chosen": [kept["chosen"][0], kept["chosen"][1] + 1]},
        lambda numbers: tokens_are_the_same(4, True, numbers),
    ),
}


@pytest.mark.parametrize("trl_is_there", [True, False], ids=["with TRL", "without TRL"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_number_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, trl_is_there: bool
) -> None:
    if trl_is_there:
        pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")
    else:
        monkeypatch.setitem(sys.modules, "trl", None)
        monkeypatch.setitem(sys.modules, "trl.experimental.cpo", None)
    name, change, test = WRONG[case]
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    for values, fails in ((kept, False), (kept | {name: change(kept[name])}, True)):
        (tmp_path / "numbers.json").write_text(json.dumps(values))
        numbers = TrlNumbers(tmp_path / "numbers.json")
        if fails:
            with pytest.raises(AssertionError, match="TRL differs" if trl_is_there else ""):
                test(numbers)
        else:
            test(numbers)


def test_another_import_error_is_an_error() -> None:
    def compute() -> None:
        raise ImportError("no such library", name="other")

    with pytest.raises(ImportError, match="no such library"):
        TrlNumbers().of("tokens: chat", compute)


@pytest.mark.parametrize(
    ("computed", "expected", "said"),
    [
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.00001]}, None),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, "/a: relative error 4.3e-02"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 5]], "/1/1: 4 instead of 5"),
        ({"a": 1}, {"b": 1}, ": {'a': 1} instead of {'b': 1}"),
        ([1.0], [1.0, 2.0], ": [1.0] instead of [1.0, 2.0]"),
    ],
)
def test_the_first_difference_is_named(computed: Any, expected: Any, said: str | None) -> None:
    assert first_difference(computed, expected, 1e-5) == said


def test_a_sketch_tells_how_far_apart_gradients_are() -> None:
    torch.manual_seed(0)
    gradient, noise = torch.randn(50, 40), torch.randn(50, 40)
    one = sketch([("a", gradient)])
    assert largest_sketch_error(one, one) == 0.0
    other = sketch([("a", gradient + 0.01 * noise)])
    assert 0.005 < largest_sketch_error(other, one) < 0.02
    assert largest_sketch_error(sketch([("a", 2 * gradient)]), one, scale=2.0) < 1e-6
