"""The pages agree with the program."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from cpo_ds.recipe import load_config, read_deepspeed_files

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_configuration_page_is_what_the_settings_say() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "configuration_page.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == written


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    config, _ = load_config(["--config", str(recipe)])
    assert all(path.parent == ROOT / "ds_configs" for path, _ in read_deepspeed_files(config))
    assert config.output_dir.startswith("runs/")


def test_alma_recipes_hold_the_published_values() -> None:
    for size in ("7b", "13b"):
        config, _ = load_config(["--config", str(ROOT / "recipes" / f"alma-{size}-r-lora.yaml")])
        assert config.lora is not None
        assert (config.lora.rank, config.lora.alpha) == (16, 32)
        assert config.lora.target_modules == ["down_proj"]
        assert (config.loss.name, config.loss.beta, config.loss.alpha) == ("cpo", 0.1, 1.0)
        assert (config.optim.learning_rate, config.optim.schedule) == (1e-4, "inverse_sqrt")
        assert (config.batch.pairs, config.train.epochs) == (128, 1)
        assert (config.data.max_prompt_tokens, config.data.max_tokens) == (256, 512)
        assert (config.data.format, config.data.scorer) == ("alma-r", "kiwi_xcomet")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"\b(?:recipes|scripts|docs|ds_configs|hostfiles|benchmarks)/[\w./-]+\w", text
    )
    missing = sorted({name for name in named if not (ROOT / name).exists()})
    assert not missing, f"{page.name} names {missing}"


def test_help_runs_without_a_recipe() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "cpo_ds" / "train.py"), "--help"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "--batch.tokens_per_rank" in run.stdout and "Traceback" not in run.stderr
