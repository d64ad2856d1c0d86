"""Kinds of tokenizer and chat template: their tokens in training and for candidates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from doors import tokenizers as kinds
from helpers import sequences

from cpo_ds.data.prompts import alma_prompt
from cpo_ds.errors import UserError, one_line
from cpo_ds.model.load import check_token_ids, read_model_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.recipe import parse_config
from cpo_ds.run.pairs import prepare_pairs
from cpo_ds.translate.tokens import PromptSettings, tokenize_prompts

SOURCE, ANSWERS = "the old  house", ("das alte Haus", "ein Haus")
DAY = "2026-01-31"
_SENTENCEPIECE = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}

Ids = list[int]


@dataclass(frozen=True)
class Kind:
    """A model's folder, the settings of its prompts, and the tokens that are right.

    `text` and `chat` are independent of cpo_ds: they make the tokens of a prompt and answer by
    transformers, or by SentencePiece, alone.
    """

    name: str
    make: Callable[[Path], Any]
    style: str = "chat"
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = SOURCE
    answers: tuple[str, str] = ANSWERS
    ends: str = ""  # what the template writes after the end of a turn; tokens of it do not count
    sentencepiece: bool = False


def _of(tokenizer: Any, **more: Any) -> Callable[[Path], Any]:
    return lambda folder: kinds.save_folder(folder, tokenizer, **more)


def _with(tokenizer: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(tokenizer, name, value)
    return tokenizer


def _broken(folder: Path) -> None:
    kinds.save_folder(folder, kinds.byte_level())
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


BYTES = kinds.byte_level
LONG_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}
TWO = {"default": kinds.CHATML, "short": kinds.LLAMA2}
NO_DEFAULT = {"rag": kinds.CHATML, "tool_use": kinds.CHATML}
SPELLED = "a </s> and <s>, <|im_end|>"
KINDS = (
    Kind("byte-level BPE that puts no `<s>`, plain prompt", _of(BYTES()), "alma"),
    Kind("byte-level BPE that puts `<s>`, plain prompt", _of(BYTES(puts_bos=True)), "alma"),
    Kind("the same with `data.add_bos: never`", _of(BYTES(puts_bos=True)), "alma",
         {"add_bos": "never"}),
    Kind("BPE that puts none, with `data.add_bos: always`", _of(BYTES()), "alma",
         {"add_bos": "always"}),
    Kind("BPE that puts `<s>` and `</s>` around texts",
         _of(BYTES(puts_bos=True, puts_eos=True)), "alma"),
    Kind("text that spells special tokens, plain prompt", _of(BYTES(puts_bos=True)), "alma",
         source=SPELLED, answers=("das </s>", SPELLED)),
    Kind("`tokenizer.model` alone", lambda f: kinds.save_sentencepiece(f, _SENTENCEPIECE),
         "alma", sentencepiece=True),
    Kind("`tokenizer.model` alone, of a Mistral",
         lambda f: kinds.save_sentencepiece(f, _SENTENCEPIECE, model_type="mistral"),
         "alma", sentencepiece=True),
    Kind("`tokenizer.model` alone, with `add_prefix_space: false`",
         lambda f: kinds.save_sentencepiece(f, _SENTENCEPIECE | {"add_prefix_space": False}),
         "alma", sentencepiece=True),
    Kind("ChatML", _of(BYTES(kinds.CHATML, eos_token="<|im_end|>")), ends="\n"),
    Kind("ChatML, text that spells special tokens",
         _of(BYTES(kinds.CHATML, eos_token="<|im_end|>")), ends="\n",
         source=SPELLED, answers=("das <|im_end|>", SPELLED)),
    Kind("Gemma's template", _of(BYTES(kinds.GEMMA), stops=["</s>", "<end_of_turn>"]), ends="\n"),
    Kind("Llama-2's template", _of(BYTES(kinds.LLAMA2, puts_bos=True))),
    Kind("Llama-3's template", _of(BYTES(kinds.LLAMA3, puts_bos=True))),
    Kind("a template that prints the day", _of(BYTES(kinds.DATED)),
         settings={"template_date": DAY}),
    Kind("Phi-3's template, which ends conversations too",
         _of(BYTES(kinds.PHI3), stops=["</s>", "<|end|>"]), ends="\n</s>"),
    Kind("Qwen3's template", _of(BYTES(kinds.QWEN3, eos_token="<|im_end|>")), ends="\n"),
    Kind("Qwen3's template, `enable_thinking: false`",
         _of(BYTES(kinds.QWEN3, eos_token="<|im_end|>")), settings=LONG_THOUGHT, ends="\n"),
    Kind("an argument that the template lacks", _of(BYTES(kinds.CHATML)), settings=LONG_THOUGHT),
    Kind("a template that opens a thought in the prompt alone", _of(BYTES(kinds.OPEN_THOUGHT))),
    Kind("several templates, one the default", _of(BYTES(TWO)), ends="\n"),
    Kind("several templates, one chosen", _of(BYTES(TWO)),
         settings={"chat_template_kwargs": {"chat_template": "short"}}),
    Kind("several templates without a default", _of(BYTES(NO_DEFAULT))),
    Kind("a template that needs a system message", _of(BYTES(kinds.NEEDS_SYSTEM))),
    Kind("a template for parts of messages", _of(BYTES(kinds.PARTS))),
    Kind("no template", _of(BYTES())),
    Kind("no end-of-sequence token", _of(_with(BYTES(), eos_token=None)), "alma"),
    Kind("no end-of-sequence token, a template that ends turns",
         _of(_with(BYTES(kinds.CHATML), eos_token=None), stops=["<|im_end|>"]), ends="\n"),
    Kind("added tokens beyond the embeddings, not in the texts", _of(BYTES(), embeddings=400),
         "alma"),
    Kind("added tokens beyond the embeddings, in the template",
         _of(BYTES(kinds.CHATML), embeddings=400)),
    Kind("padding beyond the embeddings", _of(BYTES(pad_token="<PAD>"), embeddings=412), "alma"),
    Kind("the end beyond the embeddings", _of(BYTES(eos_token="<END>"), embeddings=412), "alma"),
    Kind("another model's tokenizer", _of(BYTES(), embeddings=100), "alma"),
    Kind("a damaged `tokenizer.json`", _broken, "alma"),
)  # fmt: skip


def outcomes(kind: Kind, folder: Path) -> tuple[str, str]:
    """What training and candidates make of a kind: whether the tokens are right, or the refusal."""
    kind.make(folder / "model")

    def refusal(error: UserError) -> str:
        return one_line(error).replace(str(folder) + "/", "")

    right = None
    try:
        trained = _trained(kind, folder)
        right = _right(kind, folder / "model", trained)
        training = "as transformers" if trained == right else f"wrong: {trained} not {right}"
    except UserError as error:
        training = refusal(error)
    try:
        prompt = _candidate(kind, folder / "model")
        if right is None:
            candidates = "served"
        else:
            same = all(ids[: len(prompt)] == prompt for ids in trained)
            candidates = "as training" if same else f"wrong: {prompt}"
    except UserError as error:
        candidates = refusal(error)
    return training, candidates


def _trained(kind: Kind, folder: Path) -> list[Ids]:
    """Both sequences of a pair, by the run's own way."""
    chosen, rejected = kind.answers
    row = {
        "language_pair": "en-de",
        "source": kind.source,
        "candidates": {"a": chosen, "b": rejected},
        "scores": {"kiwi_xcomet": {"a": 1.0, "b": 0.0}},
    }
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    data = {"format": "triplets", "path": str(path), "prompt_style": kind.style}
    config = {"model": {"name_or_path": str(folder / "model")}, "data": data | kind.settings}
    (pair,) = prepare_pairs(parse_config(config, "the table"), prints_counts=False).train
    return list(sequences(pair))


def _candidate(kind: Kind, model: Path) -> Ids:
    """The tokens of the prompt for a candidate, checked as `prepare candidates` does."""
    text = alma_prompt(kind.source, "en", "de")
    prompt: Any = text if kind.style == "alma" else [{"role": "user", "content": text}]
    settings = PromptSettings(**kind.settings)
    ids = tokenize_prompts([prompt], load_tokenizer(str(model)), settings)
    check_token_ids(ids, read_model_config(str(model)))
    return ids[0]


def _right(kind: Kind, model: Path, trained: list[Ids]) -> list[Ids]:
    """Both sequences by transformers, or by SentencePiece, alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    prompt = alma_prompt(kind.source, "en", "de")
    if kind.style == "alma":
        return [_right_text(kind, tokenizer, prompt + answer) for answer in kind.answers]
    return [_right_chat(kind, tokenizer, prompt, answer) for answer in kind.answers]


def _right_text(kind: Kind, tokenizer: Any, text: str) -> Ids:
    bos = {"auto": None, "never": [], "always": [1]}[kind.settings.get("add_bos", "auto")]
    if kind.sentencepiece:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_proto=kinds.sentencepiece_model())
        return [1, *model.encode(text), 2]
    ids = tokenizer(text, add_special_tokens=bos is None, split_special_tokens=True)["input_ids"]
    ids = [*(bos or []), *ids]
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def _right_chat(kind: Kind, tokenizer: Any, prompt: str, answer: str) -> Ids:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    options = dict(kind.settings.get("chat_template_kwargs", {}))
    if "template_date" in kind.settings:
        dated = tokenizer.chat_template.replace("strftime_now('%d %b %Y')", "'31 Jan 2026'")
        options["chat_template"] = dated
    ids = tokenizer.apply_chat_template(
        messages, return_dict=False, sanitize_control_tokens=True, **options
    )
    after = tokenizer(kind.ends, add_special_tokens=False)["input_ids"] if kind.ends else []
    return ids[: len(ids) - len(after)]


def table() -> str:
    """The table of docs/models.md."""
    lines = ["| tokenizer or template | training | candidates |", "|---|---|---|"]
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            training, candidates = outcomes(kind, Path(folder))
        cells = [text.replace("|", "\\|") for text in (kind.name, training, candidates)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
