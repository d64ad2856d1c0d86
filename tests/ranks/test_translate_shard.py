"""`cpo-ds translate --shard`: a model that is split over ranks gives the bytes of a whole one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from adapter_kinds import ALL_KINDS, save_adapter
from helpers import save_tiny_adapter
from launch import on_ranks
from translation_runs import SENTENCES, ending_model, kept_keys, translate_rows, write_json_rows
from workers import splitting

LIMITS = ("--max-new-tokens", "12", "--batch-tokens", "400", "--dtype", "float32", "--name", "x")
SEARCHES: dict[str, list[object]] = {
    "beams": [],
    "greedy": ["--beam", 1],
    "re-ranked": ["--samples", 3, "--temperature", 1.5, "--rerank", "mbr"],
}

# Adapters that use weights of the base, replace them, share their own, or change no weights.
SHOWN = {
    "DoRA", "LoRA on the embeddings", "LoRA on the head", "LoRA and rows for some tokens",
    "LoRA and whole norms", "aLoRA", "HIRA", "OFT", "UNILORA", "PREFIX_TUNING",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[object, ...]:
    """The model, an adapter of it, and rows that make an odd number of batches."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"language_pair": "en-de", "source": text} for text in SENTENCES[:8]]
    source = write_json_rows(folder / "rows.jsonl", rows)
    adapter = save_tiny_adapter(model, folder / "adapter")
    return ("--model", model, "--adapter", adapter, "--input", source, *LIMITS)


def written(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), Path(f"{output}.settings.json").read_bytes()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_split_model_gives_the_bytes_of_a_whole_one(
    tmp_path: Path, options: tuple[object, ...], search: str
) -> None:
    made = {}
    for name, ranks, more in (("whole", 1, []), ("split", 2, ["--shard"])):
        output = tmp_path / name / "o.jsonl"
        done = translate_rows(*options, *SEARCHES[search], *more, "--output", output, ranks=ranks)
        assert [one.code for one in done] == [0] * ranks, [one.output for one in done]
        made[name] = written(output)
    assert made["split"] == made["whole"]


def test_after_a_kill_and_on_another_number_of_ranks(
    tmp_path: Path, options: tuple[object, ...]
) -> None:
    whole, killed = tmp_path / "whole" / "o.jsonl", tmp_path / "killed" / "o.jsonl"
    (run,) = translate_rows(*options, "--output", whole)
    assert run.code == 0, run.output
    split = (*options, "--shard", "--output", killed)
    runs = translate_rows(*split, ranks=2, die_after=1)
    assert -signal.SIGKILL in [run.code for run in runs] and not killed.exists()
    assert kept_keys(killed)
    # Alone it takes what is left, in other batches than two ranks would.
    (run,) = translate_rows(*split)
    assert run.code == 0 and "translated before" in run.output, run.output
    assert written(killed) == written(whole)


def test_adapters_translate_as_on_a_whole_model(tmp_path: Path, model: Path) -> None:
    makers = {name: make for name, make in ALL_KINDS.items() if name in SHOWN}
    assert len(makers) == len(SHOWN)
    adapters = {
        name: str(save_adapter(model, tmp_path / name, make())) for name, make in makers.items()
    }
    arguments: list[Any] = [str(model), adapters, str(tmp_path)]
    for run in on_ranks(splitting.compare_adapters, arguments, ranks=2):
        assert run.code == 0, run.output
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert [name for name, (equal, _, _) in seen.items() if not equal] == []
        for name, (_, held, count) in seen.items():
            assert held == pytest.approx(count / 2, rel=0.01), name
