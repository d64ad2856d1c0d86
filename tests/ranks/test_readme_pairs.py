"""The README's commands from sources to preference pairs."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import launch
from repository import ROOT

from cpo_ds import cli

# The README's commands.


def commands_of_the_readme() -> list[list[str]]:
    """The commands of the README's part on preference pairs, each as a list of words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.partition("## From sources to preference pairs")[2]
    block = re.findall(r"```bash\n(.*?)```", part, flags=re.S)[0].replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def run_in(folder: str, words: list[str]) -> int:
    os.chdir(folder)
    return cli.main(words)


def test_the_way_of_the_readme_with_chrf(tmp_path: Path) -> None:
    """Runs every command that needs no weights, with `--metric chrf` as the README suggests."""
    german = "Das alte Haus Nummer {} am Meer, das ich gut kenne"
    for name, line in {
        "wmt.en": "The old house number {} by the sea, which I know well",
        "wmt.de": german,
        "gpt4.de": f"{german}, ja",
        "winner.de": f"{german}, nein nein nein",
    }.items():
        lines = [f"{line.format(number)}\n" for number in range(4)]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    # The README's commands in turn; other words only for what needs weights.
    ran, said = [], ""
    for words in commands_of_the_readme():
        if words[0] != "cpo-ds" or "--model" in words:
            continue
        if "score" in words:
            words = [*words[: words.index("--metric")], "--metric", "chrf"]
        words = ["candidates.jsonl" if word == "all.jsonl" else word for word in words]
        (done,) = launch.on_ranks(run_in, [str(tmp_path), words[1:]])
        assert done.code == 0, done.output
        ran.append(words[2])
        said = done.output
    # What they printed and wrote.
    assert ran == ["candidates", "score", "report", "select"]
    assert "read 4 rows, selected 4 pairs by chrf\n" in said
    assert "  metrics taken: chrf, as all 4 rows have scores by it\n" in said
    assert "Chosen by chrf: " in (tmp_path / "report.html").read_text(encoding="utf-8")
    pairs = (tmp_path / "pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    picked = {(pair["chosen_system"], pair["rejected_system"]) for pair in map(json.loads, pairs)}
    assert len(pairs) == 4 and picked == {("gpt-4", "winner")}
