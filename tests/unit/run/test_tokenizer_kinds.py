"""The kinds of tokenizer in docs/models.md, from a folder and rows to tokens, and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import transformers
from doors import tokenizers as kinds
from doors.tokenizers_table import KINDS, Kind, outcomes
from helpers import sequences

from cpo_ds.checkpoint.manifest import Manifest, write_manifest
from cpo_ds.config import Config
from cpo_ds.data.pair_columns import pairs_fingerprint
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run import pairs as run_pairs
from cpo_ds.run.pairs import prepare_pairs, with_template_date


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_tokens_are_right_or_refused(tmp_path: Path, kind: Kind) -> None:
    training, candidates = outcomes(kind, tmp_path)
    assert "wrong" not in training + candidates
    if training == "as transformers":
        assert candidates == "as training"


def make(tmp_path: Path, rows: list[dict[str, Any]], tokenizer: Any, **data: Any) -> Config:
    kinds.save_folder(tmp_path / "model", tokenizer)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model": {"name_or_path": str(tmp_path / "model")},
        "data": {"format": "pairs", "path": str(path)} | data,
        "output_dir": str(tmp_path / "run"),
    }
    return parse_config(values, "test")


def conversation(content: str, *answers: str) -> dict[str, Any]:
    bots = [[{"role": "assistant", "content": answer}] for answer in answers]
    user = {"role": "user", "content": content}
    return {"prompt": [user], "chosen": bots[0], "rejected": bots[1]}


CHATML = {"template": kinds.CHATML, "eos_token": "<|im_end|>"}


@pytest.mark.parametrize("text", ["the old house", "a </s> b <|im_end|>\n<|im_start|>"])
@pytest.mark.parametrize("options", [CHATML, {"template": kinds.GEMMA}, {"template": kinds.LLAMA3}])
def test_conversations_end_once_as_the_template_ends_a_turn(
    tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    tokenizer = kinds.byte_level(**options)
    row = conversation(text, f"das {text}", "ein")
    (pair,) = prepare_pairs(make(tmp_path, [row], tokenizer), prints_counts=False).train
    for ids, side in zip(sequences(pair), ("chosen", "rejected"), strict=True):
        whole = tokenizer.apply_chat_template(
            row["prompt"] + row[side], return_dict=False, sanitize_control_tokens=True
        )
        after = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
        ends_with_space = options["template"] != kinds.LLAMA3
        assert ids == (whole[:-after] if ends_with_space else whole)
        assert ids[-1] in tokenizer.all_special_ids or tokenizer.decode(ids[-1]).endswith(">")


PLAIN = {"prompt": "x </s> <s>:", "chosen": " das</s>", "rejected": " ein"}
RENDERED = {"prompt": "<s>[user] x", "chosen": " das</s>", "rejected": " ein</s>"}


def test_text_of_pairs_is_characters_unless_the_recipe_says_so(tmp_path: Path) -> None:
    tokenizer = kinds.byte_level(puts_bos=True)

    def ids(*rows: dict[str, Any], **data: Any) -> list[int]:
        config = make(tmp_path, list(rows), tokenizer, **data)
        return sequences(prepare_pairs(config, prints_counts=False).train[-1])[0]

    def plain(text: str, split: bool = True) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]

    expected = plain(PLAIN["prompt"] + PLAIN["chosen"])
    other = {"prompt": "x", "chosen": " a", "rejected": " b"}
    assert ids(other, other, PLAIN) == [1, *expected, 2]
    parsed = plain(PLAIN["prompt"] + PLAIN["chosen"], split=False)
    assert ids(PLAIN, special_tokens="parsed") == [1, *parsed] and parsed[-1] == 2
    # Most rows look rendered: nobody can tell what is meant.
    with pytest.raises(UserError, match=r"jsonl:1: .* as do 2 of 3 pairs\. Set data\.special_tok"):
        ids(RENDERED, RENDERED, other)
    assert ids(RENDERED, special_tokens="parsed") == plain("<s>[user] x das</s>", split=False)
    rendered = plain("<s>[user] x das</s>")
    assert ids(RENDERED, special_tokens="plain") == [1, *rendered, 2]


def test_the_report_counts_what_is_unusual(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [conversation("a </s>", "b", "c"), conversation("a", "b", "c")]
    prepare_pairs(make(tmp_path, rows, kinds.byte_level(kinds.GEMMA)), prints_counts=True)
    printed = capsys.readouterr().out
    assert "text of a special token, taken as characters: 1 rows" in printed
    # The folder's configuration says that generation ends at </s> alone.
    assert "completions end with <end_of_turn>, at which the model's generation does" in printed


class Tomorrow(run_pairs.date):
    """A calendar that is a day ahead."""

    @classmethod
    def today(cls) -> Any:
        return cls(2031, 1, 2)


def test_a_run_that_goes_on_prints_the_day_of_its_first_start(tmp_path: Path) -> None:
    config = make(tmp_path, [conversation("a", "b", "c")], kinds.byte_level(kinds.DATED))

    def tokens(a_config: Config) -> str:
        return pairs_fingerprint(prepare_pairs(a_config, prints_counts=False).train)

    first = with_template_date(config)
    assert first.data.template_date == run_pairs.date.today().isoformat()
    step = tmp_path / "run" / "checkpoints" / "step-00000002"
    step.mkdir(parents=True)
    write_manifest(step, Manifest(2, 1, 0, configuration=first.model_dump(mode="json")))
    with mock.patch.object(run_pairs, "date", Tomorrow):
        assert with_template_date(config) == first
        never = config.model_copy(
            update={"checkpoint": config.checkpoint.model_copy(update={"resume": "never"})}
        )
        fresh = with_template_date(never)
        assert fresh.data.template_date == "2031-01-02" and tokens(fresh) != tokens(first)
    fixed = config.data.model_copy(update={"template_date": "2020-02-20"})
    fixed_config = config.model_copy(update={"data": fixed})
    assert with_template_date(fixed_config) == fixed_config


def test_a_template_without_a_day_leaves_the_recipe_as_it_is(tmp_path: Path) -> None:
    config = make(tmp_path, [conversation("a", "b", "c")], kinds.byte_level(kinds.CHATML))
    assert with_template_date(config) is config


def test_templates_arguments_change_the_tokens_of_a_run(tmp_path: Path) -> None:
    rows, tokenizer = [conversation("a", "b", "c")], kinds.byte_level(kinds.QWEN3)
    prints = set()
    for arguments in ({}, {"enable_thinking": False}):
        config = make(tmp_path, rows, tokenizer, chat_template_kwargs=arguments)
        pair = prepare_pairs(config, prints_counts=False).train[0]
        prints.add((pair.starts[0], pairs_fingerprint([pair])))
    assert len(prints) == 2  # the empty thought is of the completion, or of the prompt
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert "<think>" not in reloaded.all_special_tokens
