"""scripts/demo.sh and scripts/output_folder.py: their checks, moves and reports.

The demo runs in a small copy of the checkout. There, setting up does nothing, and `deepspeed` only
moves an earlier run aside, as a run does, and writes the files that a run's report needs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_run import write_run
from launch import Finished
from repository import ROOT

LAUNCHER = """\
import shutil, sys
from pathlib import Path
from cpo_ds.recipe import load_config
from cpo_ds.run.anew import move_aside
config = load_config(sys.argv[sys.argv.index("cpo_ds/train.py") + 1 :])[0]
if config.checkpoint.resume == "restart":
    move_aside(Path(config.output_dir), {})
shutil.copytree("a run", config.output_dir, dirs_exist_ok=True)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that holds a finished demo."""
    (tmp_path / "scripts").mkdir()
    for name in ("demo.sh", "output_folder.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    for name in ("cpo_ds", "recipes", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "scripts" / "setup.sh").write_text("touch set-up\n")
    (tmp_path / "scripts" / "make_demo_model.py").touch()
    (tmp_path / "scripts" / "demo_lesson.py").write_text("import sys; print('lesson', sys.argv[1])")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    for name, words in (("python", ""), ("deepspeed", "launcher.py")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (programs / name).chmod(0o755)
    write_run(tmp_path / "a run")
    finished = tmp_path / "runs" / "demo"
    finished.mkdir(parents=True)
    (finished / "export").write_text("of the finished demo")
    return tmp_path


def demo(checkout: Path, *arguments: str) -> Finished:
    done = subprocess.run(
        ["bash", str(checkout / "scripts" / "demo.sh"), *arguments],
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return Finished(done.returncode, done.stdout + done.stderr)


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--train.epochs", "3", "--help"]])
@pytest.mark.parametrize("is_set_up", [True, False])
def test_help_touches_nothing(checkout: Path, arguments: list[str], is_set_up: bool) -> None:
    if not is_set_up:
        shutil.rmtree(checkout / ".venv")
    before = contents(checkout)
    done = demo(checkout, *arguments)
    assert done.code == 0, done.output
    assert "bash scripts/demo.sh" in done.output
    assert ("--train.epochs X" in done.output) == is_set_up
    assert contents(checkout) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train.epoch", "3"], "did you mean --train.epochs?"),
        (["--train.epochs", "many"], "train.epochs: "),
        (["stray"], "unknown argument stray"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--deepspeed", "absent.json"], "absent.json"),
    ],
)
def test_a_wrong_argument_leaves_the_finished_demo(
    checkout: Path, arguments: list[str], said: str
) -> None:
    done = demo(checkout, *arguments)
    assert done.code == 2, done.output
    assert "\ncpo_ds: error: " in done.output and said in done.output
    assert (checkout / "runs" / "demo" / "export").exists()


def test_it_starts_anew_and_reports(checkout: Path) -> None:
    done = demo(checkout, "--train.epochs", "3")
    assert done.code == 0, done.output
    assert done.output.startswith("The demo takes about 10 minutes")
    assert (
        "curves: runs/demo/curves.png\nreport: runs/demo/report.html\nlesson runs/demo\n"
        in done.output
    )
    assert contents(checkout / "runs" / "demo") == {
        "metrics.jsonl", "curves.png", "report.html", "begun.json", "earlier-1", "earlier-1/export",
    }  # fmt: skip


def test_a_demo_that_is_set_up_is_quicker(checkout: Path) -> None:
    (checkout / ".venv" / "setup.stamp").touch()
    model = checkout / "runs" / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "model.safetensors").touch()
    assert demo(checkout).output.startswith("The demo takes about 5 minutes on two CPU cores.\n")


@pytest.mark.parametrize("how", ["on the command line", "in another recipe", "inside the demo's"])
def test_a_run_elsewhere_is_reported_and_nothing_moved(checkout: Path, how: str) -> None:
    folder = "runs/demo/inside" if how == "inside the demo's" else "runs/mine"
    arguments = ["--output-dir", folder]
    if how == "in another recipe":
        text = (ROOT / "recipes" / "demo.yaml").read_text()
        (checkout / "mine.yaml").write_text(text.replace("runs/demo", folder))
        arguments = ["--config", "mine.yaml"]
    (checkout / folder).mkdir()
    (checkout / folder / "checkpoints").write_text("of a run that goes on")
    done = demo(checkout, *arguments)
    assert done.code == 0, done.output
    assert f"curves: {folder}/curves.png" in done.output
    assert contents(checkout / folder) == {
        "checkpoints",
        "metrics.jsonl",
        "curves.png",
        "report.html",
    }
    assert (checkout / "runs" / "demo" / "export").exists()


def test_the_demo_s_folder_is_known_by_any_of_its_names(checkout: Path) -> None:
    (checkout / "link").symlink_to("runs")
    done = demo(checkout, "--output-dir=link/../runs/./demo")
    assert done.code == 0, done.output
    assert not (checkout / "runs" / "demo" / "export").exists()
    assert (checkout / "runs" / "demo" / "earlier-1" / "export").exists()


def output_folder(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "output_folder.py")
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, cwd="/",
        timeout=60,
    )  # fmt: skip


def test_the_output_folder_is_that_of_recipe_and_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    values = {"model": {"name_or_path": "m"}, "data": {"format": "sample"}, "output_dir": "a/b"}
    recipe.write_text(json.dumps(values))
    done = output_folder("--local_rank=1", "--config", recipe)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a/b\n", "")
    done = output_folder("--config", recipe, "--output-dir=c d", "--verbose")
    assert (done.returncode, done.stdout) == (0, "c d\n")
    done = output_folder("--config", recipe, "--output", "c")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cpo_ds: error: unknown argument --output")
    assert output_folder().returncode == 2


def test_the_output_folder_is_found_quickly() -> None:
    script = ROOT / "scripts" / "output_folder.py"
    code = (
        f"import runpy, sys; main = runpy.run_path({str(script)!r})['main']\n"
        f"assert main(['--config', {str(ROOT / 'recipes' / 'demo.yaml')!r}]) == 0\n"
        "assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "runs/demo\n"), done.stderr
