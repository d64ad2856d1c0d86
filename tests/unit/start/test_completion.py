"""`cpo-ds completion`: the scripts, and what shells make of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cpo_ds.cli import COMMANDS, PREPARE_STEPS, main
from cpo_ds.recipe import SETTINGS
from cpo_ds.shipped import RECIPES

# A line up to the cursor, and words that may complete its last one.
LINES = {
    "cpo-ds ": {"plan", "prepare", "init", "--version"},
    "cpo-ds pre": {"prepare"},
    "cpo-ds prepare ": set(PREPARE_STEPS),
    "cpo-ds prepare score --met": {"--metric"},
    "cpo-ds evaluate human ": {"sample", "tally"},
    "cpo-ds evaluate human sample --sp": {"--spans"},
    "cpo-ds evaluate --paired-b": {"--paired-bs", "--paired-bs-n"},
    "cpo-ds recipes al": {"alma-7b-r-lora", "alma-13b-r-lora", "alma-7b-r-full"},
    "cpo-ds plan --config ow": {"own-pairs"},
    "cpo-ds plan --optim.le": {"--optim.learning_rate"},
    "cpo-ds plan --device H100-N": {"H100-NVL"},
    "cpo-ds plan --config x.yaml --model.dtype b": {"bfloat16"},
    "cpo-ds plan --deepspeed zero3-o": {"zero3-offload"},
    "cpo-ds doctor --lora.r": {"--lora.rank"},
    "cpo-ds completion z": {"zsh"},
}
BASH = """source ./script
for line in "${lines[@]}"; do
  COMP_WORDS=($line); case "$line" in *" ") COMP_WORDS+=("") ;; esac
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _cpo_ds
  echo "= ${COMPREPLY[*]}"
done
"""
# zsh completes on a terminal alone, so its functions are asked for the words to choose from.
ZSH = """compdef() { }
compadd() {
  shift
  for word in "$@"; do if [[ "$word" = "$current"* ]]; then offered+=($word); fi; done
}
_files() { }
source ./script
for line in "${lines[@]}"; do
  words=(${=line}); case "$line" in *" ") words+=("") ;; esac
  CURRENT=${#words}; current="${words[CURRENT]}"; offered=(); _cpo_ds
  echo "= ${offered[*]}"
done
"""
FISH = """source ./script
for line in $lines
  set -l offered (complete -C "$line" | string replace -r "\\t.*" "")
  echo "= $offered"
end
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_by_its_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    quoted = " ".join(f"'{line}'" for line in LINES)
    start = f"set lines {quoted}\n" if shell == "fish" else f"lines=({quoted})\n"
    program = start + {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    done = subprocess.run([shell, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    answers = [set(answer.split()) for answer in done.stdout.split("= ")[1:]]
    assert len(answers) == len(LINES)
    for (line, wanted), offered in zip(LINES.items(), answers, strict=True):
        assert wanted <= offered, (line, offered)
        if not line.endswith(" "):
            assert offered - {"script"} == wanted, (line, offered)


def test_every_command_and_setting_is_in_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for name in (*COMMANDS, *(f"prepare {step}" for step in PREPARE_STEPS)):
        assert f'"{name}"' in script
    for setting in SETTINGS:
        assert f" --{setting}" in script
    for name in RECIPES.names():
        assert name in script


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fsh"]) == 2
    assert "(did you mean fish?); shells are bash, zsh, fish." in capsys.readouterr().err
