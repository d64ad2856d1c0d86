"""The losses that TRL has too: the same numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from loss_inputs import NARROW, WIDE, logps_of
from trl_numbers import TrlNumbers

from cpo_ds.losses import averages_over_tokens, pair_terms
from cpo_ds.settings.objective import LossConfig


@pytest.mark.parametrize(
    ("trl_name", "smoothing"),
    [
        ("sigmoid", 0.0),
        ("sigmoid", 0.2),
        ("simpo", 0.0),
        ("simpo", 0.2),
        ("ipo", 0.0),
        ("hinge", 0.0),
    ],
)
def test_trls_cpo_loss_gives_the_same(
    trl_name: str, smoothing: float, trl_numbers: TrlNumbers
) -> None:
    settings = {"name": {"sigmoid": "cpo"}.get(trl_name, trl_name), "beta": 0.3}
    settings |= {"gamma": 0.7} if trl_name == "simpo" else {}
    loss = LossConfig(**settings, **({"label_smoothing": smoothing} if smoothing else {}))
    logps = logps_of(WIDE, NARROW, (-40, -3, 7, 2), (-1e-3, -500, 1, 90), (-9, -9, 3, 3))

    def compute() -> dict[str, list[float]]:
        from trl.experimental.cpo import CPOTrainer

        trainer = SimpleNamespace(
            alpha=0.0,
            beta=0.3,
            simpo_gamma=0.7,
            loss_type=trl_name,
            label_smoothing=smoothing,
            accelerator=SimpleNamespace(device="cpu"),
        )
        inputs = logps.chosen, logps.rejected[:, 0]
        if averages_over_tokens(loss):
            counts = logps.num_chosen_tokens, logps.num_rejected_tokens[:, 0]
            inputs = inputs[0] / counts[0], inputs[1] / counts[1]
        theirs = CPOTrainer.cpo_loss(trainer, *inputs)
        names = ("losses", "rewards_chosen", "rewards_rejected")
        return {name: values.tolist() for name, values in zip(names, theirs, strict=True)}

    kept = trl_numbers.of(
        f"cpo_loss: {trl_name}, label_smoothing {smoothing}", compute, tolerance=1e-12
    )
    expected = {name: torch.tensor(values, dtype=torch.float64) for name, values in kept.items()}
    # Our losses and rewards of the same log-probs.
    terms = pair_terms(logps, loss)
    torch.testing.assert_close(terms.preference, expected["losses"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.rewards_chosen, expected["rewards_chosen"])
    torch.testing.assert_close(terms.rewards_rejected[:, 0], expected["rewards_rejected"])
