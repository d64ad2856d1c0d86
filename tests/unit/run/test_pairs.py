"""The format of prompt, chosen and rejected: as strings, or as conversations as TRL takes them."""

from pathlib import Path
from typing import Any

import pytest
from preference_data import PAIR, read, write, write_parquet

from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow

CHAT_TEMPLATE = (
    "<s>{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def test_plain_pairs_are_kept_as_they_are(tmp_path: Path) -> None:
    rows_in = [PAIR, PAIR | {"direction": "en-de"}, PAIR | {"language_pair": "de-en"}]
    path = write(tmp_path / "p.jsonl", rows_in)
    rows, _ = read(path, "pairs", render=None)
    assert rows[0] == PreferenceRow("Translate: Hi ->", " Hallo", (" He",), "", f"{path}:1")
    assert [row.direction for row in rows] == ["", "en-de", "de-en"]
    with pytest.raises(UserError, match=r"line 1: field direction is missing, and data\.dir"):
        read(path, "pairs", directions=["en-de"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(PAIR, "prompt"), "field prompt is missing"),
        (PAIR | {"prompt": "  "}, "field prompt is empty"),
        (PAIR | {"chosen": "\n"}, "field chosen is empty"),
        (PAIR | {"rejected": 3}, "field rejected is not a string but 3"),
        (PAIR | {"direction": "en_xy"}, "field direction has an unknown direction 'en_xy'"),
        (
            PAIR | {"chosen": [{"role": "assistant", "content": "x"}]},
            "must be of the same kind as chosen",
        ),
    ],
)
def test_plain_pair_errors(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "p.jsonl", [PAIR, row])
    with pytest.raises(UserError, match=f"p.jsonl, line 2: .*{message}"):
        read(path, "pairs")


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, GOOD, BAD = message("user", "Hi?"), message("assistant", "Hallo"), message("assistant", "He")
CONVERSATIONS = [
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [message("system", ""), USER], "chosen": [GOOD, USER, BAD], "rejected": [BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
    {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
    {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("row", CONVERSATIONS)
def test_conversations_render_as_trl_does(
    tmp_path: Path, row: dict[str, Any], thinking: bool, kind: str
) -> None:
    data_utils = pytest.importorskip("trl.data_utils", reason="TRL is not installed")
    tokenizer = tiny_tokenizer(
        CHAT_TEMPLATE.replace("{% endif %}", "<think>{% endif %}") if thinking else CHAT_TEMPLATE
    )

    def render(messages: list[dict[str, str]], generate: bool) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate
        )

    theirs = data_utils.maybe_apply_chat_template(data_utils.maybe_extract_prompt(row), tokenizer)
    path = tmp_path / f"p.{kind}"
    write_parquet(path, [row]) if kind == "parquet" else write(path, [row])
    (ours,), report = read(path, "pairs", render=render)
    assert report.rewritten == thinking
    assert ("with another prompt than a model gets" in "\n".join(report.lines())) == thinking
    assert {"prompt": ours.prompt, "chosen": ours.chosen, "rejected": ours.rejected[0]} == theirs
    whole = (
        row["chosen"] if isinstance(row.get("prompt", ""), str) else row["prompt"] + row["chosen"]
    )
    assert ours.prompt + ours.chosen == render(whole, False)


def tiny_tokenizer(template: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            {"chosen": [USER], "rejected": [GOOD]},
            "field prompt is missing, and chosen and rejected",
        ),
        ({"prompt": [], "chosen": [GOOD], "rejected": [BAD]}, "field prompt is empty"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "field chosen is empty"),
        ({"prompt": [GOOD], "chosen": [GOOD], "rejected": [BAD]}, "with a turn of 'assistant'"),
        ({"prompt": [USER], "chosen": ["x"], "rejected": [BAD]}, r"chosen\[0\] is not a message"),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [message("assistant", " ")]},
            r"field rejected\[0\].content is empty",
        ),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [message("assistant", None)]},
            r"field rejected\[0\].content is not a string",
        ),
        (
            {"prompt": [message(None, "x")], "chosen": [GOOD], "rejected": [BAD]},
            r"field prompt\[0\].role is not a string",
        ),
        (CONVERSATIONS[0] | {"chat_template_kwargs": {"x": 1}}, "kwargs is not supported"),
    ],
)
def test_conversation_errors(tmp_path: Path, row: Any, problem: str) -> None:
    path = write(tmp_path / "p.jsonl", [row])
    with pytest.raises(UserError, match=f"p.jsonl, line 1: .*{problem}"):
        read(path, "pairs")


def test_conversation_needs_a_template_that_takes_it(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", CONVERSATIONS[:1])
    with pytest.raises(UserError, match=r"line 1: field chosen is .* has no chat template"):
        read(path, "pairs", render=None)
    tokenizer = tiny_tokenizer("{{ raise_exception('roles must alternate') }}")

    def render(messages: list[dict[str, str]], generate: bool) -> str:
        return tokenizer.apply_chat_template(messages, tokenize=False)

    with pytest.raises(UserError, match=r"line 1: .*refuses this conversation .roles must alter"):
        read(path, "pairs", render=render)
    with pytest.raises(UserError, match="line 1: field prompt is empty after"):
        read(
            path,
            "pairs",
            render=lambda messages, generate: "x" if generate else messages[-1]["content"],
        )
