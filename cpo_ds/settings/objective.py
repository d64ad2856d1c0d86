"""The `loss` section: the objective, its parameters, and which objective uses which of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cpo_ds.settings.section import Section

Objective = Literal[
    "cpo", "simpo", "cpo-simpo", "arpo", "ipo", "hinge", "plackett-luce", "sft", "dpo", "dpo-nll"
]


class LossConfig(Section):
    """The objective and its parameters."""

    name: Objective = Field("cpo", description="training objective")
    beta: float = Field(0.1, gt=0.0, description="temperature of the preference term")
    alpha: float = Field(1.0, ge=0.0, description="weight of the NLL term (not in simpo, dpo)")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=0.5, description="probability that a preference label is wrong"
    )
    nll_reduction: Literal["token", "pair"] = Field(
        "token", description="NLL: mean over all chosen tokens, or over pairs of each pair's mean"
    )
    gamma: float = Field(0.5, description="target reward margin (simpo, cpo-simpo)")
    score_margin: float = Field(
        0.0,
        ge=0.0,
        description="target reward margin for each unit by which the chosen text's score exceeds "
        "the rejected one's (cpo, simpo, cpo-simpo, arpo, dpo, dpo-nll); 0: scores are not read",
    )
    arpo_scale: float = Field(0.9, description="c1 of tau = min(c1 exp(c2 d) - 1, 1) (arpo)")
    arpo_rate: float = Field(0.4, description="c2 of tau (arpo)")
    arpo_floor: float | None = Field(None, description="lower bound of tau (arpo)")
    arpo_detach: bool = Field(False, description="no gradient through tau (arpo)")
    reference: Literal["model", "adapter", "precomputed"] = Field(
        "model",
        description="source of the reference log-probs (dpo, dpo-nll): a frozen copy of the "
        "policy, the policy without its LoRA adapter, or a pass over the pairs before training",
    )
    reference_cache: str | None = Field(
        None, description="folder for precomputed log-probs; none: output_dir/reference"
    )

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        """Raises `ValueError` for a setting that would have no effect."""
        used = LOSS_FIELDS[self.name] | {"name"}
        unused = sorted(self.model_fields_set - used)
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        ineffective = [name for name in unused if getattr(self, name) != defaults[name]]
        if ineffective:
            with_nll = {"simpo": "cpo-simpo", "dpo": "dpo-nll"}.get(self.name)
            hint = f" ({with_nll} is {self.name} with an NLL term)" if with_nll else ""
            raise ValueError(
                f"loss.{ineffective[0]} has no effect with loss.name: {self.name}; remove it{hint}"
            )
        if self.reference_cache and self.reference != "precomputed":
            raise ValueError(
                "loss.reference_cache has an effect only with loss.reference: precomputed"
            )
        return self

    @property
    def has_reference(self) -> bool:
        """Whether the objective needs a reference model, which is the policy before training."""
        return "reference" in LOSS_FIELDS[self.name]

    @property
    def needs_scores(self) -> bool:
        """Whether the objective needs scores of all completions."""
        return self.name == "plackett-luce" or self.score_margin > 0

    def reads_reference_from(self, *sources: str) -> bool:
        """Whether the objective needs a reference model and reads its log-probs from `sources`."""
        return self.has_reference and self.reference in sources


_PREFERENCE = {"beta", "alpha", "nll_reduction"}
_SIGMOID = {"label_smoothing", "score_margin"}
_SMOOTH = _PREFERENCE | _SIGMOID
LOSS_FIELDS: dict[str, set[str]] = {  # objective -> the settings that it uses
    "cpo": _SMOOTH,
    "simpo": {"beta", "gamma"} | _SIGMOID,
    "cpo-simpo": _SMOOTH | {"gamma"},
    "arpo": _SMOOTH | {"arpo_scale", "arpo_rate", "arpo_floor", "arpo_detach"},
    "ipo": _PREFERENCE,
    "hinge": _PREFERENCE,
    "plackett-luce": _PREFERENCE,
    "sft": {"nll_reduction"},
    "dpo": {"beta", "reference", "reference_cache"} | _SIGMOID,
    "dpo-nll": _SMOOTH | {"reference", "reference_cache"},
}
