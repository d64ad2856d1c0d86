"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disk_faults
import pytest
from disk_faults import FaultyRuns
from hosts.simulated import SimulatedHosts, reason_against, simulated_hosts
from hypothesis import HealthCheck, settings
from small_disk import Disk, small_disk

TESTS = Path(__file__).parent
TIERS = ("system", "ranks", "peers", "fakecuda", "parity", "unit")

# A shell starts what runs in its background with SIGINT ignored, and processes inherit that; tests
# of Ctrl-C need it as in the foreground.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test fails because the machine is busy.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-trl", action="store_true", help="write what TRL computes to trl_numbers.json"
    )
    parser.addoption("--without-trl", action="store_true", help="as if TRL were not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts slow tiers first, so that at the end no worker waits long for the other one."""
    items.sort(key=lambda item: TIERS.index(item.path.relative_to(TESTS).parts[0]))


@pytest.fixture(scope="session")
def export_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> the recipe that was run, its output_dir holding checkpoint and export.

    The workers of pytest-xdist share the runs, so tests must not change them.
    """
    from export_runs import run_all  # not above, since most tests need none of its imports

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    finished = shared / "export_runs.json"
    with (shared / "export_runs.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first worker runs them, the others wait
        if not finished.exists():
            (shared / "export_runs").mkdir()
            finished.write_text(json.dumps(run_all(shared / "export_runs")))
    return json.loads(finished.read_text())


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedHosts]:
    """Two hosts for tests that leave them as they were."""
    if (reason := reason_against()) is not None:
        pytest.skip(reason)
    with simulated_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of a few MiB that a test may fill."""
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


@pytest.fixture(scope="session")
def faulty_runs() -> Iterator[FaultyRuns]:
    """Runs commands whose calls on files may be made to fail."""
    if (reason := disk_faults.reason_against()) is not None:
        pytest.skip(reason)
    with disk_faults.faulty_runs() as runs:
        yield runs


@pytest.fixture(scope="module")
def whole(recipe: Path) -> list[dict[str, Any]]:
    """Metrics of an undisturbed run of a module's `recipe` on two ranks of one host."""
    from launch import main_on_ranks
    from runs import lines

    output = recipe.parent / "whole"
    for done in main_on_ranks("--config", recipe, "--output_dir", output, ranks=2):
        assert done.code == 0, done.output
    return lines(output)
