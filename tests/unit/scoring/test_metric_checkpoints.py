"""Checkpoints of metrics: known by content, refused if not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cpo_ds.errors import UserError
from cpo_ds.scoring.checkpoint import check_complete, find_checkpoint, read_weights
from cpo_ds.scoring.metrics import Metric


def save_checkpoint(folder: Path, weight: float = 1.0) -> Path:
    path = folder / "checkpoints" / "model.ckpt"
    path.parent.mkdir(parents=True)
    weights = {"linear.weight": torch.full((300, 300), weight)}
    torch.save({"state_dict": weights, "hyper_parameters": {}}, path)
    (folder / "hparams.yaml").write_text("class_identifier: unified_metric\n")
    return path


def test_a_checkpoint_is_known_by_what_it_holds(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path / str(n), float(n == 2)) for n in range(3)]
    checkpoints = [find_checkpoint(Metric("x", str(path))) for path in paths]
    by_folder = find_checkpoint(Metric("x", str(tmp_path / "0")))
    assert by_folder == checkpoints[0] and by_folder.kind == "unified_metric"
    assert checkpoints[0].fingerprint == checkpoints[1].fingerprint != checkpoints[2].fingerprint
    weights = read_weights(checkpoints[2])
    assert weights["linear.weight"][0, 0] == 1


def test_checkpoints_that_are_not_whole_are_said(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m")
    checkpoint = find_checkpoint(Metric("x", str(path)))
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(300, 300)})
    with pytest.raises(UserError, match="lacks the weight linear"):
        check_complete(model, read_weights(checkpoint), path)
    small = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 3)})
    with pytest.raises(UserError, match="has linear"):
        check_complete(small, read_weights(checkpoint), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(checkpoint)
    (tmp_path / "m" / "hparams.yaml").unlink()
    with pytest.raises(UserError, match=r"there is no .*hparams.yaml"):
        find_checkpoint(Metric("x", str(path)))
    for nowhere in (str(tmp_path / "gone"), "./gone/model.ckpt", str(tmp_path)):
        with pytest.raises(UserError, match="there is no checkpoint"):
            find_checkpoint(Metric("x", nowhere))
