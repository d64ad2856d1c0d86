"""Each command in the documentation is accepted by the program's own parsers.

Commands that need a GPU, a download or several hosts say so in a comment before their block,
`<!-- needs: gpu -->`. Every other one is carried out by a test, which `CARRIED_OUT` names.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from documentation import NEEDS, PAGES, Command, blocks, commands
from repository import ROOT

from cpo_ds import cli
from cpo_ds import recipe as recipes

CARRIED_OUT = {
    "candidates": "tests/unit/prepare/test_candidates_command.py",
    "checkpoints": "tests/ranks/test_commands_on_runs.py",
    "completion": "tests/unit/start/test_completion.py",
    "doctor": "tests/system/test_doctor.py",
    "evaluate": "tests/unit/evaluate/test_evaluate_command.py",
    "evaluate audit": "tests/unit/evaluate/test_audit.py",
    "evaluate human": "tests/unit/evaluate/test_human_sample.py",
    "export": "tests/ranks/test_export.py",
    "from-tm": "tests/unit/prepare/test_from_tm.py",
    "import": "tests/unit/start/test_import.py",
    "init": "tests/unit/start/test_init.py",
    "noise": "tests/unit/prepare/test_noise_command.py",
    "plan": "tests/unit/planner/test_plan_command.py",
    "recipes": "tests/unit/start/test_init.py",
    "report": "tests/unit/report/test_run_page.py",
    "rounds": "tests/system/test_rounds.py",
    "score": "tests/ranks/test_score_lexical.py",
    "select": "tests/unit/prepare/test_select.py",
    "train": "tests/system/test_train_command.py",
    "translate": "tests/ranks/test_translate.py",
    "universal": "tests/ranks/test_commands_on_runs.py",
}
_THIS_HOST = "hostfiles/localhost"
_DOWNLOADED = r"haoranxu/|(kiwi|xcomet|comet|metricx)[\w-]*$"  # models and metrics
_WITHOUT_MARKS = ("README.md",)  # its text says what a command needs
_ALL = [command for page in PAGES for command in commands(page)]


def name_of(command: Command) -> str:
    """The command of `cpo-ds`, or `train` for the script that launchers start; else ""."""
    words = command.words
    if words[0] == "cpo-ds" and len(words) > 1:
        joined = cli._joined(words[1:])[0]
        return words[2] if joined == "prepare" and len(words) > 2 else joined
    return "train" if training_options(words) is not None else ""


def training_options(words: list[str]) -> list[str] | None:
    """The options behind the training script; None if a command does not start it."""
    for script in ("cpo_ds/train.py", "cpo_ds.train", "scripts/train.slurm"):
        if script in words:
            return words[words.index(script) + 1 :]
    return None


def parse(words: list[str]) -> None:
    """Parses a command as the program would. Raises for an unknown command or option."""
    if "--help" in words or "--version" in words:
        return
    options = training_options(words)
    if options is None and words[0] == "cpo-ds" and words[1:]:
        argv = cli._joined(words[1:])
        arguments, options = cli._parser(argv).parse_known_args(argv)
        assert not options or arguments.takes_recipe, f"unknown options {options}"
    if options:
        _, unknown = recipes._parser().parse_known_args([recipes._normalize(o) for o in options])
        unknown = [option for option in unknown if option.startswith("-")]
        assert set(unknown) <= {"--dry_run"}, f"unknown options {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    wrong = []
    for command in commands(page):
        try:
            parse(command.words)
        except (SystemExit, Exception) as error:
            wrong.append(f"{command.where}: {' '.join(command.words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_commands_that_do_not_exist_are_not_accepted() -> None:
    for line in (
        "cpo-ds trian --gpus 2",
        "cpo-ds prepare scores --input x",
        "cpo-ds report x --outptu y",
        "cpo-ds plan --config demo --optim.learning_rat 1",
        "deepspeed --num_accelerators 2 cpo_ds/train.py --config demo --lr 1",
    ):
        with pytest.raises((SystemExit, Exception)):
            parse(line.split())


def test_commands_are_carried_out_by_tests() -> None:
    assert len(_ALL) > 100
    for command in _ALL:
        name = name_of(command)
        if not name or command.block.needs or name.startswith("-"):
            continue
        assert name in CARRIED_OUT, f"{command.where}: no test carries out {name}; mark its needs"
        test = ROOT / CARRIED_OUT[name]
        assert test.is_file() and name.split()[-1] in test.read_text(encoding="utf-8"), name


def evident_needs(command: Command) -> set[str]:
    """What the words of a command show that it needs."""
    words = command.words
    if name_of(command) in ("", "plan", "init", "import"):
        return set()
    values = dict(itertools.pairwise(words))
    needs = set()
    if values.get("--hostfile", _THIS_HOST) != _THIS_HOST or {"sbatch", "--nnodes"} & set(words):
        needs.add("hosts")
    counts = ("--gpus", "--num_accelerators", "--nproc-per-node", "--ranks")
    if any(int(values.get(option, 0)) > 2 for option in counts):
        needs.add("gpu")
    if "--test-set" in words or any(re.match(_DOWNLOADED, word) for word in words):
        needs.add("download")
    return needs


def test_evident_needs_are_told() -> None:
    seen = set()
    for command in _ALL:
        if command.block.page.name not in _WITHOUT_MARKS:
            missing = evident_needs(command) - set(command.block.needs)
            assert not missing, f"{command.where}: needs {', '.join(missing)}: {command.words}"
            seen |= evident_needs(command)
    assert seen == set(NEEDS)


def test_scripts_are_started_by_tests() -> None:
    sources = [*(ROOT / "tests").rglob("*.py"), ROOT / "scripts" / "test.sh"]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    for command in _ALL:
        script = next(
            (w for w in command.words[1:2] if w.startswith(("scripts/", "benchmarks/"))), ""
        )
        if script and not command.block.needs:
            name = script.rpartition("/")[2].partition(".")[0]
            assert name in text, f"{command.where}: no test starts {script}; mark its needs"


def test_needs_are_known() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert set(block.needs) <= set(NEEDS), (page.name, block.line)
