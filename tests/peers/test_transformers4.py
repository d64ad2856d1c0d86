"""Exports give the same log-probs and tokens in transformers 4.57 as in 5."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from peers import reading
from peers.both_versions import export_adapter, export_model, save_bases
from peers.small_tokenizers import MAKERS
from repository import ROOT

PYTHON = ROOT / ".venv-transformers4" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="no .venv-transformers4: setup.sh --transformers4"
)
AS_5_WRITES = "llama, yarn, as transformers 5 writes it"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of exports: models, adapters on them, and a model that was not exported."""
    root = tmp_path_factory.mktemp("peers")
    exports = root / "exports"
    for base in save_bases(root / "bases"):
        export_model(base, exports / base.name)
        if base.name.endswith("default"):
            export_adapter(exports / base.name, exports / f"{base.name}, adapter")
    (root / "bases" / "llama, yarn").rename(exports / AS_5_WRITES)
    return exports


@pytest.fixture(scope="module")
def in_4(exports: Path) -> dict[str, Any]:
    """Folder -> what transformers 4.57 reads in it."""
    output = exports.parent / "read.json"
    command = [str(PYTHON), reading.__file__, str(exports), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    about = json.loads(output.read_text(encoding="utf-8"))
    assert about["version"].startswith("4.57.")
    return about["read"]


@pytest.fixture(scope="module")
def in_5(exports: Path) -> dict[str, Any]:
    """Folder -> what this version of transformers reads in it."""
    assert transformers.__version__.startswith("5.")
    return {path.name: json.loads(json.dumps(reading.read(path))) for path in exports.iterdir()}


def test_the_log_probs_are_the_same(in_4: dict[str, Any], in_5: dict[str, Any]) -> None:
    assert len(in_5) > 70 and sum("adapter" in name for name in in_5) == 12
    for name in in_5.keys() - {AS_5_WRITES}:
        assert "error" not in in_4[name], (name, in_4[name])
        assert in_4[name]["logps"] == pytest.approx(in_5[name]["logps"], abs=1e-5, rel=1e-5), name
        assert in_4[name]["tokens"] == in_5[name]["tokens"], name


def test_an_adapter_changes_its_base(in_4: dict[str, Any]) -> None:
    for name in in_4:
        if name.endswith(", adapter"):
            base = in_4[name.removesuffix(", adapter")]
            assert in_4[name]["logps"] != pytest.approx(base["logps"], abs=1e-2), name


def test_a_folder_of_transformers_5_is_another_model_to_4(
    in_4: dict[str, Any], in_5: dict[str, Any]
) -> None:
    """The comparison would notice if exports were written as transformers 5 writes models."""
    theirs = in_5[AS_5_WRITES]
    assert theirs == in_5["llama, yarn"]
    assert in_4[AS_5_WRITES] != theirs


def test_the_exported_tokenizer_is_the_run_s(exports: Path, in_5: dict[str, Any]) -> None:
    for name, make in MAKERS.items():
        folder = exports.parent / "tokenizers" / name
        make().save_pretrained(folder)
        tokens = json.loads(json.dumps(reading.tokens(folder)))
        assert tokens in [values["tokens"] for values in in_5.values()], name


@pytest.mark.parametrize("name", ["llama, default", "llama, default, adapter"])
def test_the_card_s_code_runs_from_any_folder(exports: Path, tmp_path: Path, name: str) -> None:
    """The recipe named the base by a relative path."""
    card = (exports / name / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    assert "folder = '.'" in code
    code = code.replace("folder = '.'", f"folder = {str(exports / name)!r}")
    code = code.replace("max_new_tokens=256", "max_new_tokens=4") + "print(output.tolist())"
    printed = []
    for python in (PYTHON, sys.executable):
        done = subprocess.run(
            [str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1]
