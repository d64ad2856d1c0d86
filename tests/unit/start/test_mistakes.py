"""Wrong commands and files of a person: each answer is one paragraph with the way out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from preference_data import PAIR, write

from cpo_ds.cli import main

RECIPE = "model:\n  name_or_path: m\ndata:\n  format: pairs\n  path: good.jsonl\n"
RECIPES = {
    "good.yaml": RECIPE,
    "tab.yaml": "model:\n\tname_or_path: m\n",
    "indent.yaml": "model:\n  name_or_path: m\n data:\n  format: sample\n",
    "list.yaml": "- model\n- data\n",
    "twice.yaml": RECIPE + "loss:\n  beta: 0.1\n  beta: 0.2\n",
    "lr.yaml": RECIPE + "optim:\n  lr: 1.0e-4\n",
    "trl.yaml": RECIPE + "per_device_train_batch_size: 4\n",
    "section.yaml": "model: meta-llama/Llama-3.1-8B\ndata:\n  format: sample\n",
    "no-model.yaml": "data:\n  format: sample\n",
    "no-path.yaml": "model:\n  name_or_path: m\ndata:\n  format: pairs\n",
    "both.yaml": RECIPE + "  eval_fraction: 0.1\n  eval_path: good.jsonl\n",
    "no-effect.yaml": RECIPE + "loss:\n  name: sft\n  beta: 0.2\n",
}
DATA = {
    "good.jsonl": json.dumps(PAIR).encode() + b"\n",
    "nothing.jsonl": b"",
    "broken.jsonl": json.dumps(PAIR).encode() + b'\n{"prompt": "a", \n',
    "latin.jsonl": '{"prompt": "Größe", "chosen": "a", "rejected": "b"}\n'.encode("latin-1"),
    "other.jsonl": b'{"english": "a", "german": "b"}\n',
    "blank.jsonl": json.dumps(PAIR | {"chosen": " "}).encode() + b"\n",
    "cut.jsonl.gz": gzip.compress(json.dumps(PAIR).encode() * 50)[:40],
    "book.docx": b"PK",
    "hosts": b"gpu1 slots=eight\n",
    "three.en": b"One.\nTwo.\nThree.\n",
    "two.de": b"Eins.\nZwei.\n",
}
CHECKED = ["doctor", "--hostfile", "good-hosts", "--config"]  # reads the recipe before it logs in
INIT = ["init", "--model", "m", "--data"]
MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # Commands and options.
    "no command": ([], ("give a command", "recipes", "--help")),
    "misspelled command": (["reprot", "runs/x"], ("there is no command reprot", "report?")),
    "recipe for a command": (["good.yaml"], ("a command with --config good.yaml?",)),
    "no step": (["prepare"], ("give a step", "candidates")),
    "misspelled step": (["prepare", "selct"], ("did you mean select?",)),
    "nothing given": (["prepare", "score"], ("it needs --input, --output, --metric", "--help")),
    "misspelled option": (["prepare", "score", "--metirc", "chrf"], ("did you mean --metric?",)),
    "a word for a number": (["plan", "--gpus", "eight"], ("--gpus", "'eight'")),
    "option without value": ([*CHECKED, "good.yaml", "--batch.pairs"], ("expected one argument",)),
    "recipe without --config": ([*CHECKED[:-1], "good.yaml"], ("mean --config good.yaml?",)),
    "section for an option": ([*CHECKED, "good.yaml", "--optim", "adamw"],
                              ("is a section", "--optim.")),
    "other trainer's option": ([*CHECKED, "good.yaml", "--num_train_epochs", "3"],
                               ("--train.epochs",)),
    "no run": (["report", "runs/nowhere"], ("give the output_dir of a run",)),
    "no checkpoints": (["checkpoints", "runs/nowhere"], ("give the output_dir of a run",)),
    "nothing to export": (["export", "runs/nowhere"], ("give the output_dir of a run",)),
    "nothing to convert": (["universal", "runs/nowhere"], ("give the output_dir of a run",)),
    "no metric": (["evaluate", "--input", "good.jsonl"], ("at least one --metric",)),
    "misspelled metric": (["prepare", "score", "--input", "a", "--output", "b", "--metric", "chfr"],
                          ("did you mean chrf?",)),
    # Recipes.
    "no recipe": ([*CHECKED, "mien.yaml"], ("there is no recipe mien.yaml", "existing")),
    "misspelled recipe": ([*CHECKED, "own-pair"], ("did you mean own-pairs?",)),
    "tabs": ([*CHECKED, "tab.yaml"], ("line 2", "by spaces, not by tabs")),
    "indentation": ([*CHECKED, "indent.yaml"], ("line 3", "same column")),
    "no mapping": ([*CHECKED, "list.yaml"], ("must be a mapping of sections",)),
    "key given twice": ([*CHECKED, "twice.yaml"], ("in lines 7 and 8; keep one",)),
    "lr": ([*CHECKED, "lr.yaml"], ("unknown key optim.lr", "optim.learning_rate")),
    "TRL's batch": ([*CHECKED, "trl.yaml"], ("batch.pairs", "gradient_accumulation_steps")),
    "name for a section": ([*CHECKED, "section.yaml"], ("like model.name_or_path",)),
    "no model": ([*CHECKED, "no-model.yaml"], ("model is missing; add it",)),
    "no path": ([*CHECKED, "no-path.yaml"], ("data.path is required",)),
    "held out twice": ([*CHECKED, "both.yaml"], ("not both",)),
    "no effect": ([*CHECKED, "no-effect.yaml"], ("loss.beta has no effect", "remove it")),
    "bf16": ([*CHECKED, "good.yaml", "--model.dtype", "bf16"], ("did you mean bfloat16?",)),
    "text for a number": ([*CHECKED, "good.yaml", "--optim.learning_rate", "fast"],
                          ("must be a number", "'fast'")),
    "one direction": ([*CHECKED, "good.yaml", "--data.directions", "en-de"],
                      ("must be a list, as in [en-de",)),
    "zero4": ([*CHECKED, "good.yaml", "--deepspeed", "zero4"], ("did you mean zero",)),
    # Files.
    "no data": ([*INIT, "gone.jsonl"], ("'gone.jsonl' does not exist; correct it",)),
    "empty file": ([*INIT, "nothing.jsonl"], ("nothing.jsonl is empty",)),
    "broken line": ([*INIT, "broken.jsonl"], ("broken.jsonl, line 2", "not valid JSON")),
    "not UTF-8": ([*INIT, "latin.jsonl"], ("latin.jsonl, line 1", "save the file as UTF-8")),
    "other fields": ([*INIT, "other.jsonl"], ("english, german", "pairs needs prompt, chosen")),
    "empty text": ([*INIT, "blank.jsonl"], ("line 1: field chosen is empty; fill it in",)),
    "half a download": ([*INIT, "cut.jsonl.gz"], ("damaged gzip file", "again")),
    "a document": ([*INIT, "book.docx"], ("convert it to one",)),
    "no hosts": (["doctor", "--hostfile", "gone"], ("hostfile gone cannot be read",)),
    "words for slots": (["doctor", "--hostfile", "hosts"], ("hosts:1: ", "name slots=N")),
    "fewer lines": (["prepare", "candidates", "--input", "three.en", "--language-pair", "en-de",
                     "--output", "c.jsonl", "--system", "a=two.de"], ("two.de", "2", "3")),
    "no rows": (["prepare", "select", "--input", "scored", "--output", "pairs"],
                ("there is no file or folder scored; correct the name",)),
    "no scores": (["prepare", "select", "--input", "candidates.jsonl", "--output", "pairs"],
                  ("no row of --input has scores", "cpo-ds prepare score")),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    for name, content in DATA.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good-hosts").write_text("localhost slots=1\n")
    row = {"language_pair": "en-de", "source": "Hi.", "candidates": {"a": "Hallo.", "b": "Hal."}}
    write(tmp_path / "candidates.jsonl", [row])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_thirty() -> None:
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_answer_is_one_paragraph_with_the_way_out(
    folder: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    command, parts = MISTAKES[mistake]
    before = set(folder.iterdir())
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("cpo_ds: error: ") and printed.err.count("\n") == 1
    assert "Traceback" not in printed.err and printed.err.endswith(".\n")
    assert len(printed.err) < 800
    for part in parts:
        assert part in printed.err
    assert set(folder.iterdir()) == before
