"""Wheels for a GPU machine without a network: which are gathered, and how they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu
import pytest
from jobs import gpu_wheels
from jobs.gpu_wheels import ALSO, PROJECT, install, missing, pins, read_present, requirements
from packaging.specifiers import SpecifierSet
from repository import ROOT


def test_all_that_the_trainer_needs_is_asked_for_and_torch_is_left_alone() -> None:
    asked = requirements([PROJECT, *ALSO], "3.12")
    assert {"deepspeed", "pydantic", "pydantic-core", "datasets", "hjson", "trl"} <= set(asked)
    assert not {name for name in asked if name.startswith(("torch", "triton", "nvidia", "cpo"))}
    assert all(
        version in SpecifierSet(spec) for version in ["0.19.8"] for spec in asked["deepspeed"]
    )


def test_pins_are_those_of_the_other_python() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    newer, older = pins(text, "3.12"), pins(text, "3.10")
    assert newer["deepspeed"] == older["deepspeed"] and newer["jinja2"]
    assert "transformers" in newer and "transformers" not in older


@pytest.mark.parametrize(
    "text",
    [
        "Package Version\n------- -------\ntorch   2.11.0+cu130\nHugging_Face.Hub 1.33.0\n",
        "torch==2.11.0+cu130\nhugging-face-hub==1.33.0\n",
    ],
)
def test_the_list_of_packages_is_read_as_pip_prints_it(text: str) -> None:
    assert read_present(text) == {"torch": "2.11.0+cu130", "hugging-face-hub": "1.33.0"}
    assert read_present("numpy\nown @ file:///somewhere\n") == {"numpy": None, "own": None}


def test_what_is_absent_or_does_not_fit_is_missing() -> None:
    asked = {"a": [">=1"], "b": [">=1", "<2"], "c": [""], "d": [">=3"]}
    assert missing(asked, {"a": "1.5", "b": "2.0", "d": None}) == ["b", "c"]


def test_a_wheel_that_is_built_here_is_kept_only_if_it_runs_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kept in [("a-1-py3-none-any.whl", True), ("a-1-cp311-cp311-linux_x86_64.whl", False),
                       ("a-1-py311-none-any.whl", False)]:  # fmt: skip
        monkeypatch.setattr(
            gpu_wheels, "_pip", lambda *a, n=name, **e: not (tmp_path / n).write_text("")
        )
        assert gpu_wheels._build("a", tmp_path) == kept
        assert (tmp_path / name).exists() == kept


def test_wheels_are_installed_without_a_network_and_once(tmp_path: Path) -> None:
    wheel = tmp_path / "small_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_thing.py", "value = 42\n")
        kept = "small_thing-1.0.dist-info"
        archive.writestr(
            f"{kept}/METADATA", "Metadata-Version: 2.1\nName: small-thing\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{kept}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{kept}/RECORD", "")
    site = install(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = "import small_thing; print(small_thing.value)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert done.stdout.strip() == b"42"
    (site / "small_thing.py").write_text("value = 1\n")
    assert install(tmp_path) == site and (site / "small_thing.py").read_text() == "value = 1\n"


def test_a_folder_without_wheels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--from-wheels", str(tmp_path)]) == 2
    assert "holds no wheels" in capsys.readouterr().err


def test_a_machine_without_a_gpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main([]) == 2
    assert "--dry-run tries all parts on a CPU" in capsys.readouterr().err
