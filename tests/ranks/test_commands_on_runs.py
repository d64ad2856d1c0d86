"""Commands on finished runs: what they print, and their exit codes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import launch
import pytest

from cpo_ds import cli
from cpo_ds.checkpoint.list_command import EXIT_DAMAGED

MANIFEST = "manifest.json"


def run_of(values: dict[str, Any]) -> Path:
    return Path(values["output_dir"])


def command(*arguments: object) -> launch.Finished:
    """`cpo-ds ...` in a process of its own."""
    return launch.finish(launch.start([sys.executable, "-m", "cpo_ds.cli", *map(str, arguments)]))


def test_export_says_one_line_and_no_more(export_runs: Any, tmp_path: Path) -> None:
    run = run_of(export_runs["LoRA, untied, ZeRO-3"])
    done = command("export", run, "--merge", "--dtype", "bfloat16", "--output", tmp_path / "x")
    assert done.code == 0, done.output
    assert done.output == f"full model of step 2 (bfloat16) written to {tmp_path / 'x'}\n"
    assert (tmp_path / "x" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["export", "{tmp}/nowhere"], "there is no run folder"),
        (["export", "{tmp}"], "holds no checkpoints folder"),
        (["export", "{tmp}/empty"], "has no checkpoint yet"),
        (["export", "{run}", "--checkpoint", "7"], " has step-00000002."),
        (["export", "{run}", "--checkpoint", "{tmp}/empty"], "there is no checkpoint"),
        (["checkpoints", "{tmp}/nowhere"], "there is no run folder"),
        (["checkpoints", "{tmp}/empty"], "has no checkpoint yet"),
        (["universal", "{tmp}/nowhere"], "there is no run folder"),
        (["report", "{tmp}"], "there is no"),
    ],
)
def test_what_is_not_there_is_said(
    export_runs: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    run = run_of(export_runs["full, untied, ZeRO-3"])
    filled = [text.replace("{tmp}", str(tmp_path)).replace("{run}", str(run)) for text in arguments]
    assert cli.main(filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("cpo_ds: error: ") and said in error and error.count("\n") == 1


def test_checkpoints_are_listed_with_what_is_wrong(
    export_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_of(export_runs["full, untied, ZeRO-3"]), tmp_path / "run")
    newest = run / "checkpoints" / "step-00000002"
    assert cli.main(["checkpoints", str(run)]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "size", "ranks", "ZeRO", "state"]
    step, _, unit, ranks, stage, state = line.split()
    assert (step, unit, ranks, stage, state) == ("2", "MiB", "2", "3", "intact")
    for number in (1, 3):
        shutil.copytree(newest, newest.with_name(f"step-{number:08d}"))
    victim = next(newest.glob("*optim_states.pt"))
    victim.write_bytes(victim.read_bytes()[:-1])
    (newest.with_name("step-00000003") / MANIFEST).write_text("{}")
    assert cli.main(["checkpoints", str(run)]) == EXIT_DAMAGED
    _, first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("intact")
    assert f"damaged: {victim}" in second
    assert "damaged" in third and MANIFEST in third


def test_report_is_the_same_as_ever(export_runs: Any, tmp_path: Path) -> None:
    run = shutil.copytree(run_of(export_runs["full, untied, ZeRO-2"]), tmp_path / "run")
    done = command("report", run)
    assert done.code == 0, done.output
    assert "held-out pairs:" in done.output and (run / "curves.png").exists()


def test_universal_is_made_once(
    export_runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_of(export_runs["full, untied, ZeRO-3"]), tmp_path / "run")
    made = command("universal", run)
    folder = run / "checkpoints" / "universal-step-00000002"
    assert made.code == 0 and folder.is_dir(), made.output
    assert str(folder) in made.output and made.output.strip().endswith(" s")
    assert cli.main(["universal", str(run), "--checkpoint", "2"]) == 0
    assert capsys.readouterr().out.strip() == f"{folder} is there already"
    shutil.copytree(run_of(export_runs["full, tied, ZeRO-0"]), tmp_path / "stage 0")
    assert cli.main(["universal", str(tmp_path / "stage 0")]) == 0
    assert "as it is" in capsys.readouterr().out
