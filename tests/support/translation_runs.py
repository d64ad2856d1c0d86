"""Runs of `cpo-ds prepare candidates` with a tiny model, and the translations that they keep."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import launch
import torch
import transformers
from helpers import save_tiny_model

from cpo_ds import cli
from cpo_ds.ranks.quiet import silence_after_import
from cpo_ds.translate.job import KeptTranslations, Translation

GREEDY = ["--dtype", "float32", "--beams", "1", "--max-new-tokens", "12"]
SENTENCES = [
    "the old house",
    "by the sea",
    "English to Czech",
    "a",
    "old old old house",
    "by the sea",
]
SENTENCES += [f"the house {number} by the sea" for number in range(6)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def candidates(*arguments: object) -> int:
    return cli.main(["prepare", "candidates", *map(str, arguments)])


def run_on_rank(die_after: int, *arguments: str) -> int:
    """Runs `cpo-ds prepare candidates`; kill -9 after `die_after` batches, if that is above 0."""
    return command_on_rank(die_after, "prepare", "candidates", *arguments)


def command_on_rank(die_after: int, *arguments: object) -> int:
    """Runs a command of `cpo-ds`; kill -9 after `die_after` batches, if that is above 0."""
    add, added = KeptTranslations.add, 0

    def add_and_die(self: KeptTranslations, translations: dict[str, Translation]) -> None:
        nonlocal added
        add(self, translations)
        added += 1
        if added == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    KeptTranslations.add = add_and_die  # type: ignore[method-assign,assignment]
    silence_after_import()  # this process has imported all before the program can silence it
    return cli.main([str(argument) for argument in arguments])


def translate(
    source: Path, model: Path, output: Path, *options: str, ranks: int = 1, die_after: int = 0
) -> list[launch.Finished]:
    plain = ["--input", str(source), "--language-pair", "en-de", "--output", str(output)]
    arguments = [die_after, *plain, "--model", str(model), *options]
    return launch.on_ranks(run_on_rank, arguments, ranks=ranks)


def translate_rows(*options: object, ranks: int = 1, die_after: int = 0) -> list[launch.Finished]:
    """Runs `cpo-ds translate` on ranks."""
    arguments = [die_after, "translate", *map(str, options)]
    return launch.on_ranks(command_on_rank, arguments, ranks=ranks)


def write_json_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path, *(json.dumps(row, ensure_ascii=False) for row in rows))


def ending_model(folder: Path, family: str = "llama", **overrides: Any) -> Path:
    """A tiny model that ends some answers by itself."""
    save_tiny_model(folder, family, **overrides)
    causal_lm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        causal_lm.get_output_embeddings().weight[2] *= 2.5  # the end, likelier
    causal_lm.save_pretrained(folder)
    return folder


def kept_keys(output: Path) -> list[str]:
    files = sorted(Path(f"{output}.cache").glob("translations.*"))
    lines = [line for file in files for line in file.read_text().split("\n") if line]
    return [key for line in lines for key in json.loads(line)]


def with_padding(model: Path, folder: Path, change: str) -> Path:
    """A copy of the model with an id for padding, or for the end, that has no embedding."""
    shutil.copytree(model, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    beyond = len(tokenizer)
    settings: dict[str, Any] = {}
    if change == "tokenizer":
        assert tokenizer.add_special_tokens({"pad_token": "<PAD>"}) == 1
        assert tokenizer.pad_token_id == beyond
    elif change == "end":
        tokenizer.pad_token = None
        settings = {"eos_token_id": [beyond + 3, 2], "pad_token_id": None}
    else:
        settings = {"pad_token_id": beyond + 1 if change == "beyond" else int(change)}
        tokenizer.pad_token = None if change == "-1" else "<pad>"
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text()) | settings
        (folder / name).write_text(json.dumps(values))
    return folder
