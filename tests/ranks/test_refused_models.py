"""Runs and exports refuse models and adapters that they would load wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from export_runs import LORA
from exported import change_model, copy_run
from helpers import save_tiny_adapter, save_tiny_model
from launch import main_on_ranks, write_recipe
from model_files import change_json, separate_head, settings

from cpo_ds.config import ModelConfig
from cpo_ds.errors import UserError
from cpo_ds.export.from_checkpoint import export
from cpo_ds.model.adapter_checks import check_adapter
from cpo_ds.model.load import load_model_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def test_a_run_with_such_an_adapter_ends_before_the_model_is_loaded(
    base: Path, tmp_path: Path
) -> None:
    save_tiny_adapter(base, tmp_path / "adapter", alora_invocation_tokens=[5, 7])
    recipe = write_recipe(tmp_path, settings(base, tmp_path / "adapter"))
    done, _ = main_on_ranks("--config", recipe, "--output_dir", tmp_path / "out", ranks=2)
    assert done.code == 2 and "Traceback" not in done.output, done.output
    assert "alora_invocation_tokens" in done.output and "attention:" not in done.output
    assert not (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_with_such_an_adapter_is_refused(
    export_runs: dict[str, dict[str, Any]], tmp_path: Path, merge: bool
) -> None:
    """Refuses a run that was trained when such adapters were not refused yet."""
    values = export_runs["adapter continued, ZeRO-3"]
    run, _ = copy_run(values, tmp_path)
    adapter = shutil.copytree(values["model"]["adapter"], tmp_path / "adapter")
    change_json(adapter / "adapter_config.json", alora_invocation_tokens=[5, 7])
    change_model(run, adapter=str(adapter))
    with pytest.raises(UserError, match="sets alora_invocation_tokens"):
        export(run, output=tmp_path / "export", merge=merge)
    assert not (tmp_path / "export").exists()


# --- base folders


def test_a_base_with_an_adapter_beside_it_is_refused(base: Path, tmp_path: Path) -> None:
    """transformers applies it again to weights that it is merged into."""
    folder = shutil.copytree(base, tmp_path / "model")
    save_tiny_adapter(base, folder)
    recipe = write_recipe(tmp_path, settings(folder, train={"max_steps": 1}))
    (done,) = main_on_ranks("--config", recipe, "--output_dir", tmp_path / "out")
    assert done.code == 2, done.output
    assert f"({folder}/adapter_config.json)" in done.output.replace("\n", " ")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"is an adapter .*give it as model\.adapter"):
        load_model_config(str(folder))


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_tied_head_with_weights_of_its_own_is_refused_at_every_stage(
    tmp_path: Path, stage: int, ranks: int
) -> None:
    folder = save_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    separate_head(folder)
    values = settings(folder, deepspeed=f"ds_configs/zero{stage}.json", train={"max_steps": 1})
    recipe = write_recipe(tmp_path, values)
    done, *_ = main_on_ranks("--config", recipe, "--output_dir", tmp_path / "out", ranks=ranks)
    assert done.code == 2, done.output
    assert "tie_word_embeddings" in done.output and "lm_head.weight" in done.output


def test_lora_of_this_kind_is_what_runs_make(base: Path, tmp_path: Path) -> None:
    """An exported adapter may start another run."""
    values = settings(base, train={"max_steps": 1}, lora=LORA, output_dir=str(tmp_path / "out"))
    (done,) = main_on_ranks("--config", write_recipe(tmp_path, values))
    assert done.code == 0, done.output
    started = ModelConfig(name_or_path=str(base), adapter=str(tmp_path / "out" / "export"))
    check_adapter(started, load_model_config(str(base)))
