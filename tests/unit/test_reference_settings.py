"""Settings of DPO's reference: which go together, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.errors import UserError
from cpo_ds.ranks.place import Place
from cpo_ds.recipe import parse_config


def our_config(folder: Path, loss: dict[str, Any]) -> Any:
    model = {"name_or_path": str(folder), "dtype": "float32"}
    return parse_config({"model": model, "data": {"format": "sample"}, "loss": loss}, "test")


LORA_AND_DPO = {"lora": {}, "loss": {"name": "dpo", "reference": "adapter"}}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"loss": {"name": "dpo", "reference": "adapter"}}, "the recipe trains none"),
        (
            LORA_AND_DPO | {"model": {"name_or_path": "x", "adapter": "y"}},
            "the recipe continues an old one",
        ),
        ({"loss": {"name": "cpo", "reference": "precomputed"}}, "no effect with loss.name: cpo"),
        ({"loss": {"name": "dpo", "alpha": 0.5}}, "dpo-nll is dpo with an NLL term"),
        (
            {"loss": {"name": "dpo", "reference_cache": "x"}},
            "an effect only with loss.reference: precomputed",
        ),
    ],
)
def test_impossible_references_are_refused(sections: dict[str, Any], words: str) -> None:
    values = {"model": {"name_or_path": "x"}, "data": {"format": "sample"}} | sections
    with pytest.raises(UserError, match=words):
        parse_config(values, "test")


def test_a_merged_adapter_may_be_switched_off_for_a_new_one() -> None:
    model = {"name_or_path": "x", "adapter": "y", "adapter_mode": "merge"}
    parse_config({"model": model, "data": {"format": "sample"}} | LORA_AND_DPO, "test")


def test_a_second_model_in_hierarchical_partitions_is_refused(tmp_path: Path) -> None:
    """DeepSpeed makes its groups anew for the second model, and fails on an assertion."""
    file = tmp_path / "hpz.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}))
    config = our_config(Path("x"), {"name": "dpo"})
    config = config.model_copy(update={"deepspeed": str(file)})
    two_hosts = Place("deepspeed", world_size=4, local_world_size=2)
    with pytest.raises(UserError, match=r"set loss\.reference to precomputed"):
        read_deepspeed_settings(config, planned=two_hosts)
