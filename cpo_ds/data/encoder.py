"""Turns text into tokens, in one way for training, for `prepare candidates` and for model cards.

A special token counts only if the tokenizer or a chat template writes it. Text of the data that
spells one, like `</s>` in a source, is plain characters: `TextEncoder.plain` marks it before a
template surrounds it, and `TextEncoder.encode` takes marked text character by character.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

from cpo_ds.errors import UserError
from cpo_ds.settings.data import AddBos

_MARK = "\ufdd0"  # noncharacters of Unicode: no text should hold them
_STAND_IN = "\ufdd1"
_AT_ONCE = 4096  # texts
_MARKED = re.compile(f"{_MARK}(.?)", re.DOTALL)


def is_marked(text: str) -> bool:
    """Whether a text of `TextEncoder.plain` spells a special token."""
    return _MARK in text


def unmarked(text: str) -> str:
    """The text as it was before `TextEncoder.plain` marked it."""
    return _MARKED.sub(r"\1", text)


class TextEncoder:
    """The way from texts to tokens by one tokenizer, with one rule for the beginning.

    `add_bos` says whether a text begins with the beginning-of-sequence token: `auto`, if the
    tokenizer itself puts it before texts (a chat template brings its own); `always`, as TRL does;
    `never`. `stops` are the tokens at which the model ends an answer; by default the tokenizer's
    end-of-sequence token.
    """

    def __init__(
        self, tokenizer: Any, add_bos: AddBos = "auto", stops: Collection[int] = ()
    ) -> None:
        self.tokenizer, self._add_bos = tokenizer, add_bos
        self.stops = frozenset(stops) or frozenset({tokenizer.eos_token_id} - {None})
        self._special = {
            str(token): (index, token)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        # The longest first: of two tokens that begin alike, tokenizers take the longer one.
        longest_first = sorted(self._special, key=len, reverse=True)
        names = "|".join(map(self._pattern, longest_first)) or "(?!)"
        written = f"(?<!{_MARK})(?:{names})"
        self._spelled = re.compile(f"{names}|{_MARK}")
        self._written = re.compile(written)
        self._tail = re.compile(f"{written}(?:\\s*{written})*\\s*$")

    def _pattern(self, name: str) -> str:
        """A pattern of a special token; some are found only as words of their own."""
        is_word = self._special[name][1].single_word
        return rf"(?<!\w){re.escape(name)}(?!\w)" if is_word else re.escape(name)

    def plain(self, text: str) -> str:
        """The text with a mark before each character of what spells a special token."""
        return self._spelled.sub(lambda match: "".join(_MARK + c for c in match[0]), text)

    def parsed(self, text: str) -> str:
        """The text in the form of `plain`, but with the special tokens that it spells."""
        return text.replace(_MARK, _MARK + _MARK)

    def looks_rendered(self, prompt: str, completion: str) -> bool:
        """Whether a prompt begins, or a completion ends, with the text of a special token."""
        begins = self._written.match(unmarked(prompt))
        return bool(begins or self._tail.search(unmarked(completion)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with no others before or after them."""
        whole = [text for text in texts if not is_marked(text)]
        # A tokenizer takes much memory for each text, and rows may have many rejected completions.
        parts = (whole[begin : begin + _AT_ONCE] for begin in range(0, len(whole), _AT_ONCE))
        ids = (
            tokens
            for part in parts
            for tokens in self.tokenizer(part, add_special_tokens=False)["input_ids"]
        )
        return [self._encode_marked(text) if is_marked(text) else next(ids) for text in texts]

    def prompts(self, texts: Sequence[str], *, is_chat: bool) -> list[list[int]]:
        """The tokens of prompts, each text by itself, as a model continues them.

        `is_chat` says that a chat template rendered them.
        """
        return [self.begin(ids, 1, is_chat=is_chat)[0] for ids in self.encode(texts)]

    def begin(self, ids: list[int], fixed: int, *, is_chat: bool) -> tuple[list[int], int]:
        """Adds or removes tokens at the beginning; returns all tokens, and `fixed` moved with them.

        `fixed` is the number of leading tokens that belong to the prompt.
        """
        bos = self.tokenizer.bos_token_id
        has_bos = bos is not None and fixed > 0 and ids[:1] == [bos]
        if self._add_bos == "never":
            return (ids[1:], fixed - 1) if has_bos else (ids, fixed)
        if has_bos or (self._add_bos == "auto" and is_chat):
            return ids, fixed
        first = self._own_beginning if self._add_bos == "auto" else [bos] * (bos is not None)
        return [*first, *ids], fixed + len(first)

    def end_of_turn(self, completion: str) -> tuple[str, bool]:
        """Cuts what a chat template writes after the end of a turn; says whether one was written.

        A template may write white space, or the end of the conversation, after the token that
        ends the turn. A model stops before them.
        """
        tail = self._tail.search(completion)
        if tail is None:
            return completion, False
        ends = list(self._written.finditer(completion, tail.start()))
        stops = (end for end in ends if self._special[end[0]][0] in self.stops)
        return completion[: next(stops, ends[-1]).end()], True

    def name(self, token: int) -> str:
        """A token as text, for messages."""
        return str(self.tokenizer.convert_ids_to_tokens(token))

    @cached_property
    def _own_beginning(self) -> list[int]:
        """The special tokens that the tokenizer itself puts before a text."""
        whole, text = (
            self.tokenizer("a", add_special_tokens=adds)["input_ids"] for adds in (True, False)
        )
        starts = (n for n in range(len(whole)) if whole[n : n + len(text)] == text)
        return whole[: next(starts, 0)]

    def _encode_marked(self, text: str) -> list[int]:
        """The tokens of a text with marks: special ones only where no mark is.

        A copy of the tokenizer takes no special token from text. Those that count are replaced by
        stand-ins, added tokens of the copy with the same properties, so that everything around
        them is tokenized as always.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            if self._written.search(text):
                raise _inseparable(text)
            options = {"add_special_tokens": False, "split_special_tokens": True}
            return self.tokenizer(unmarked(text), **options)["input_ids"]
        backend, stand_ins, originals = self._copy
        replaced, count = self._written.subn(lambda match: stand_ins[match[0]], text)
        ids = backend.encode(unmarked(replaced), add_special_tokens=False).ids
        if sum(token in originals for token in ids) != count:
            raise _inseparable(text)  # its normalizer changes special tokens
        return [originals.get(token, token) for token in ids]

    @cached_property
    def _copy(self) -> tuple[Any, dict[str, str], dict[int | None, int]]:
        """The copy of the tokenizer, stand-ins by special token, and tokens by stand-in."""
        from tokenizers import AddedToken, Tokenizer

        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        texts = {name: _STAND_IN + chr(0xF0000 + n) for n, name in enumerate(self._special)}
        backend.add_tokens([
            AddedToken(
                texts[name],
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
            )
            for name, (_, token) in self._special.items()
        ])  # fmt: skip
        originals = {
            backend.token_to_id(texts[name]): index for name, (index, _) in self._special.items()
        }
        return backend, texts, originals


def _inseparable(text: str) -> UserError:
    """The error for a text whose special tokens cannot be told from those that the text spells."""
    begin = max(0, text.find(_MARK) - 20)
    return UserError(
        f"a text spells a special token (...{unmarked(text[begin:])[:60]!r}...), which this kind "
        "of tokenizer cannot take as characters within a chat template; remove the row, or take "
        "prompts without a template."
    )
