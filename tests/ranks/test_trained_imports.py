"""Recipes that `cpo-ds import` wrote train, with another model and other pairs in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from foreign_configs import write_all
from helpers import save_tiny_model
from launch import main_on_ranks
from runs import lines

from cpo_ds.cli import main

# What this machine lacks.
ON_A_CPU = ("--model.dtype", "float32", "--logging.trackers", "[]", "--batch.pairs", 4)
# What a user without ALMA's adapter and data changes besides.
OWN = {
    "model": {"adapter": None},
    "lora": {"rank": 4, "target_modules": ["down_proj"]},
    "data": {"format": "pairs", "directions": None},
}
FILES = {"alma": "alma/runs/cpo.sh", "trl": "trl.sh", "llama-factory": "lf.yaml"}


@pytest.mark.parametrize("trainer", FILES)
def test_an_imported_recipe_trains(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path)
    assert main(["import", trainer, FILES[trainer], "--output", "recipe.yaml"]) == 0
    recipe = Path("recipe.yaml")
    if trainer == "alma":
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        values |= {name: values.get(name, {}) | own for name, own in OWN.items()}
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    model, pairs = save_tiny_model(tmp_path / "model"), tmp_path / "pairs.csv"
    rows = "".join(f'"House {n}, in German:", Haus {n}, Maus {n}\n' for n in range(40))
    pairs.write_text(f"prompt,chosen,rejected\n{rows}")
    (done,) = main_on_ranks(
        "--config", tmp_path / "recipe.yaml", "--model.name_or_path", model, "--data.path", pairs,
        "--train.max_steps", 2, "--output_dir", tmp_path / "run", *ON_A_CPU,
    )  # fmt: skip
    assert done.code == 0, done.output
    written = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert written[-1]["step"] == 2 and written[-1]["loss"] > 0
    assert (tmp_path / "run" / "export" / "adapter_model.safetensors").is_file()
