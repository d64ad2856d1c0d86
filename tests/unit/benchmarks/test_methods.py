"""benchmarks/methods.py: the commands of a run, what is read of them, and the rest of a call."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import methods
import pytest
from jobs.method_run import (
    METHODS,
    FailedCommand,
    evaluate_command,
    guard_options,
    read_evaluation,
    run_command,
    train_command,
)
from pages.results import read_lines

from cpo_ds.config import Config
from cpo_ds.errors import UserError
from cpo_ds.evaluate.options import add_options as evaluate_options
from cpo_ds.losses import nll_weight
from cpo_ds.recipe import load_config

RESULT = {"language_pair": "all", "metric": "chrf", "score": 20.0, "segments": 2,
          "signature": "s", "interferes": False}  # fmt: skip
MEASURED: dict[str, Any] = {
    "seconds": {"translate": 1.0}, "results": [RESULT], "tests": [], "headline": ["chrf"],
    "selected_by": [], "notes": [],
}  # fmt: skip


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A command line with existing files."""
    for name in ("pairs.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f'{{"file": "{name}"}}\n')
    command = ["--pairs", str(tmp_path / "pairs.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    command += ["--model", str(tmp_path), "--name", "tiny", "--work", str(tmp_path / "work")]
    return [*command, "--out", str(tmp_path / "x.jsonl")]


def config_of(method: str, tmp_path: Path) -> Config:
    """The configuration that a method's command gives to the trainer."""
    pairs = tmp_path / "pairs.jsonl"
    settings = methods.settings_of(method, 3, tmp_path, pairs, tmp_path / "run")
    command = train_command("recipes/demo.yaml", settings, ["--loss.beta", "0.2"], 2, 29500)
    return load_config(command[command.index("--config") :])[0]


def test_each_method_has_its_objective_and_all_else_is_the_same(tmp_path: Path) -> None:
    losses = {method: config_of(method, tmp_path).loss for method in METHODS}
    names = {method: (loss.name, nll_weight(loss)) for method, loss in losses.items()}
    assert names == {
        "sft": ("sft", 1.0),
        "dpo": ("dpo", 0.0),
        "cpo": ("cpo", 1.0),
        "cpo-without-nll": ("cpo", 0.0),
        "cpo-noised": ("cpo", 1.0),
    }
    assert losses["cpo"].beta == 0.2
    assert [method for method, one in METHODS.items() if one.is_noised] == ["cpo-noised"]
    # SFT has no beta, so that of the recipe is left out.
    dumps = [config_of(method, tmp_path).model_dump(exclude={"loss"}) for method in METHODS]
    assert all(dump == dumps[0] for dump in dumps)
    assert dumps[0]["train"]["seed"] == 3 and dumps[0]["data"]["format"] == "pairs"


def test_runs_come_seed_by_seed_after_the_base() -> None:
    runs = [methods.run_name(*run) for run in methods.runs_of(["sft", "cpo"], 2)]
    assert runs == ["base", "sft-1", "cpo-1", "sft-2", "cpo-2"]


def test_a_system_is_evaluated_against_the_base_with_the_guard(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    evaluate_options(parser)
    guard = guard_options("cpo", tmp_path / "run", "kiwi+xcomet")
    command = evaluate_command(Path("a.jsonl"), Path("b.json"), ["bleu", "chrf"], "cpo", guard)
    given = parser.parse_args(command[command.index("evaluate") + 1 :])
    assert (given.systems, given.baseline, given.paired_bs) == (["base", "cpo"], "base", True)
    assert given.metrics == ["bleu", "chrf"] and given.selected_by == ["cpo=kiwi+xcomet"]
    assert given.trained_by == [f"cpo={tmp_path / 'run'}"]
    alone = evaluate_command(Path("a.jsonl"), Path("b.json"), ["bleu"], "base", [])
    assert parser.parse_args(alone[alone.index("evaluate") + 1 :]).baseline is None


def test_scores_and_tests_of_one_system_are_read(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    tests = {"metric": "chrf", "language_pair": "en-de", "baseline": "base", "test": "bs",
             "samples": 1000, "seed": 1, "difference": 1.5, "p_value": 0.01, "verdict": "better",
             "agreement": None}  # fmt: skip
    report = {
        "results": [RESULT | {"system": "base", "score": 1.0}, RESULT | {"system": "cpo"}],
        "significance": [tests | {"system": "cpo"}, tests | {"system": "gpt-4"}],
        "headline": ["chrf"], "selected_by": {"cpo": ["kiwi"]}, "notes": ["n"],
    }  # fmt: skip
    file.write_text(json.dumps(report))
    read = read_evaluation(file, "cpo")
    assert read["results"] == [RESULT] and read["selected_by"] == ["kiwi"]
    assert [test["difference"] for test in read["tests"]] == [1.5]
    assert read_evaluation(file, "base")["tests"] == []
    with pytest.raises(UserError, match="has no scores of sft"):
        read_evaluation(file, "sft")


def test_a_command_that_fails_says_what_it_printed_last(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.txt"
    assert run_command([sys.executable, "-c", "print(1)"], log, 60) > 0
    assert log.read_text() == "1\n"
    with pytest.raises(FailedCommand, match=r"exit code 2; .*x\.txt ends with:\nno model"):
        run_command([sys.executable, "-c", "print('no model'); exit(2)"], log, 60)
    with pytest.raises(FailedCommand, match="not done in time"):
        run_command([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.5)


def test_a_command_s_processes_are_ended_with_it_even_those_that_outlive_it(tmp_path: Path) -> None:
    log = tmp_path / "x.txt"
    child = "trap 'sleep 1; echo saved; exit' TERM; sleep 60 & wait"
    with pytest.raises(FailedCommand, match="not done in time"):
        run_command(["bash", "-c", f'bash -c "{child}" & wait'], log, 1)
    assert "saved" in log.read_text()


def test_runs_are_added_to_those_of_an_earlier_call(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def measure(method: str, seed: int | None, *_: Any) -> dict[str, Any]:
        made.append(methods.run_name(method, seed))
        if made == ["base", "sft-1", "cpo-1"]:
            raise FailedCommand("exit code 2; of the test")
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / f"{made[-1]}.jsonl").touch()
        return MEASURED

    monkeypatch.setattr(methods, "measure", measure)
    command += ["--methods", "sft", "cpo", "--seeds", "1"]
    methods.run_all(*methods.parse(command))
    lines = read_lines(tmp_path / "x.jsonl")
    assert made == ["base", "sft-1", "cpo-1"] and "of the test" in lines[2]["error"]
    # What failed is made again, and a seed is added.
    made.clear()
    methods.run_all(*methods.parse([*command, "--add", "--seeds", "2"]))
    assert made == ["cpo-1", "sft-2", "cpo-2"]
    # The base's translations are gone: they are made again.
    made.clear()
    methods.run_all(*methods.parse([*command, "--add", "--seeds", "2"]))
    assert made == []
    (tmp_path / "work" / "base.jsonl").unlink()
    methods.run_all(*methods.parse([*command, "--add", "--seeds", "2"]))
    assert made == ["base"]
    with pytest.raises(UserError, match="another decoding"):
        methods.run_all(*methods.parse([*command, "--add", "--beam", "1"]))


def test_a_base_that_cannot_be_translated_ends_the_benchmark(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> dict[str, Any]:
        raise FailedCommand("exit code 2; of the test")

    monkeypatch.setattr(methods, "measure", measure)
    with pytest.raises(UserError, match="the model before training: exit code 2"):
        methods.run_all(*methods.parse(command))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--beam", "0"], "--beam"),
        (["--pairs", "nowhere.jsonl"], "--pairs: there is no file nowhere.jsonl"),
        (["--model", "nowhere"], "make_demo_model.py nowhere"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], named: str, command: list[str]) -> None:
    with pytest.raises(UserError, match=named):
        methods.parse([*command, *words])


def test_test_rows_must_be_held_out(command: list[str]) -> None:
    with pytest.raises(UserError, match="hold the test rows out"):
        methods.parse([*command, "--test", command[1]])
