"""A run asks for its trackers before anything else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from bad_inputs import assert_one_paragraph
from launch import main_on_ranks
from runs import small_recipe


def test_a_tracker_that_is_not_installed(tmp_path: Path) -> None:
    missing = [name for name in ("trackio", "mlflow", "wandb") if find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    recipe = small_recipe(tmp_path, logging={"trackers": missing[:1]})
    (done,) = main_on_ranks("--config", recipe, "--output_dir", tmp_path / "x")
    assert_one_paragraph(done, "logging.trackers", f"pip install {missing[0]}")
    assert "training pairs" not in done.output, "refused before pairs and model are loaded"
