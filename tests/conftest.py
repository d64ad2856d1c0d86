"""Fixtures that several test files share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def export_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> the recipe that was run, its output_dir holding checkpoint and export."""
    from export_runs import run_all  # here, for the sake of tests that need none of its imports

    return run_all(tmp_path_factory.mktemp("export"))
