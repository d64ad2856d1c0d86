"""The base model that an exported adapter names is found from any folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import peft
import pytest
from helpers import save_tiny_adapter, save_tiny_model
from launch import main_on_ranks, write_recipe
from repository import ROOT

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.export.folder import make_export
from cpo_ds.export.from_checkpoint import export
from cpo_ds.recipe import parse_config

MANIFEST = Manifest(step=1, ranks=1, zero_stage=0)


def base_of(export: Path) -> str:
    return json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"]


def named_by(name_or_path: str) -> str:
    """The base model that an export names if the recipe names it by `name`."""
    values = {"model": {"name_or_path": name_or_path}, "data": {"format": "sample"}, "lora": {}}
    return make_export(None, None, parse_config(values, "test"), MANIFEST).base


@pytest.mark.parametrize("adapter_mode", [None, "continue"])
def test_a_relative_base_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter_mode: str | None
) -> None:
    base = save_tiny_model(tmp_path / "models" / "base")
    model = {"name_or_path": os.path.relpath(base), "dtype": "float32"}
    if adapter_mode:
        adapter = save_tiny_adapter(base, tmp_path / "models" / "adapter")
        model |= {"adapter": os.path.relpath(adapter), "adapter_mode": adapter_mode}
    values = {
        "model": model,
        "data": {"format": "sample", "directions": ["en-de"]},
        "batch": {"pairs": 4, "tokens_per_rank": 1024},
        "train": {"max_steps": 1},
        "logging": {"tensorboard": False},
        "deepspeed": "zero0",
        "output_dir": str(tmp_path / "run"),
        **({} if adapter_mode else {"lora": {"rank": 4, "alpha": 8}}),
    }
    (done,) = main_on_ranks("--config", write_recipe(tmp_path, values))
    assert done.code == 0, done.output
    online = tmp_path / "run" / "export"
    monkeypatch.chdir(ROOT)
    offline = export(tmp_path / "run", output=tmp_path / "offline", say=lambda text: None)
    assert base_of(online) == base_of(offline) == str(base.resolve())
    card = (online / "README.md").read_text()
    assert card == (offline / "README.md").read_text()
    assert "base_model: base\n" in card and "models/base" not in card  # paths are nobody's business

    code = card.split("```")[1].removeprefix("python\n")
    for folder in (online, offline):
        monkeypatch.chdir(folder)
        exec(code.replace("max_new_tokens=256", "max_new_tokens=2"), {})
    moved = shutil.move(online, tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    peft.AutoPeftModelForCausalLM.from_pretrained(moved)


def test_a_local_folder_is_named_whole_and_a_hub_name_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("org/model", "gpt2", "./absent", "file"):
        assert named_by(name) == name
    (tmp_path / "org" / "model").mkdir(parents=True)
    for name in ("org/model", "./org/model", "org/../org/model", str(tmp_path / "org" / "model")):
        assert named_by(name) == str(tmp_path / "org" / "model")
    (tmp_path / "link").symlink_to("org", target_is_directory=True)
    assert named_by("link/model") == str(tmp_path / "link" / "model")  # what it points to may move
