"""Checkpoints that a resume may take, in their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    checkpoints,
    latest_problem,
    resume_candidates,
)


def make(folder: Path, *steps: int, latest: str | bytes | None = None) -> None:
    for step in steps:
        (folder / checkpoint_name(step)).mkdir(parents=True)
    if latest is not None:
        text = latest if isinstance(latest, bytes) else latest.encode()
        (folder / "latest").write_bytes(text)


@pytest.mark.parametrize(
    ("steps", "latest", "order", "problem", "certain"),
    [
        ((), None, [], None, None),
        ((), "step-00000003", [], None, None),
        ((3, 6), "step-00000006", [6, 3], None, None),
        ((3, 6), "step-00000006\n", [6, 3], None, None),
        ((3,), None, [3], "latest is not there", False),  # killed before it was written
        ((3, 6), None, [6, 3], "latest is not there", True),
        ((3, 6), "", [6, 3], "names no checkpoint", True),
        ((3, 6), b"\xff\xfe", [6, 3], "names no checkpoint", True),
        ((3, 6), "step-0000", [6, 3], "names no checkpoint", True),
        ((3, 6), "../step-00000003", [6, 3], "names no checkpoint", True),
        ((3, 6), "step-00000009", [6, 3], "step-00000009, which is not there", True),
        ((3, 6), "step-00000004", [3], "step-00000004, which is not there", True),
        ((3, 6), "step-00000001", [6, 3], "step-00000001, which is not there", True),
        ((3, 6, 9), "step-00000006", [6, 3], "though step-00000009 is there", False),
        ((99999999, 100000000), "step-100000000", [100000000, 99999999], None, None),
    ],
)
def test_candidates_in_order(
    tmp_path: Path,
    steps: tuple[int, ...],
    latest: str | bytes | None,
    order: list[int],
    problem: str | None,
    certain: bool | None,
) -> None:
    make(tmp_path, *steps, latest=latest)
    for other in ("tmp-step-00000007", "step-7", "step-00000008.bak", "universal-step-00000003"):
        (tmp_path / other).mkdir()
    assert [path.name for path in resume_candidates(tmp_path)] == list(map(checkpoint_name, order))
    named = latest_problem(tmp_path)
    assert (named is None) == (problem is None)
    if named is not None and problem is not None:
        assert problem in named[0] and str(tmp_path / "latest") in named[0]
        assert named[1] is certain


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert resume_candidates(tmp_path / "absent") == [] == checkpoints(tmp_path / "absent")
    assert latest_problem(tmp_path / "absent") is None
