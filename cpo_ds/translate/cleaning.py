"""Extracts the translation from a model's answer, as in the ALMA evaluation: a pure function."""

from __future__ import annotations

import re

from cpo_ds.data.sameness import is_blank

PROMPT, REASONING, LABEL = "repeated prompt removed", "reasoning removed", "label removed"
FENCE, FIRST_LINE = "code fence removed", "cut after the first line"
SPACES = "spaces around it removed"


def clean(text: str, target_language: str, prompt: str = "") -> tuple[str, tuple[str, ...]]:
    """The translation in `text`, and the cleaning steps that it took; "" if there is none.

    As for ALMA, the translation is the first line that is not empty, without spaces around it. Some
    models repeat the prompt first, or begin with `German:` (the target language's name), or reason
    before they answer, or put the answer into a fenced block. All of this is removed, too.
    """
    # Remove everything before the translation. A label may stand before the block or in it.
    done = []
    if prompt and text.lstrip().startswith(prompt.strip()):
        text = text.lstrip().removeprefix(prompt.strip())
        done.append(PROMPT)
    if "</think>" in text or text.lstrip().startswith("<think>"):
        _, ended, answer = text.rpartition("</think>")
        text = answer if ended else ""
        done.append(REASONING)
    text, had_label = _without_label(text, target_language)
    text, had_fence = _without_fence(text)
    if had_fence:
        text, had_inner_label = _without_label(text, target_language)
        had_label |= had_inner_label
    done += [LABEL] * had_label + [FENCE] * had_fence

    # Take the first line that shows anything.
    lines = text.split("\n")
    filled = [line for line in lines if not is_blank(line)]
    if not filled:
        return "", tuple(done)
    translation = filled[0].strip()
    if len(filled) > 1:
        done.append(FIRST_LINE)
    if translation != (lines[0] if len(filled) > 1 else text):
        done.append(SPACES)
    return translation, tuple(done)


def clean_as_alma(text: str) -> tuple[str, tuple[str, ...]]:
    """The translation in `text` by ALMA's own rule, and the cleaning steps that it took.

    It is the first of the first three lines that is not blank, without spaces around it, or "".
    """
    lines = text.rstrip().split("\n")
    translation = next((line.strip() for line in lines[:3] if line.strip()), "")
    done = [FIRST_LINE] * (len([line for line in lines if line.strip()]) > bool(translation))
    if translation and translation != (lines[0] if len(lines) > 1 else text):
        done.append(SPACES)
    return translation, tuple(done)


def _without_label(text: str, language: str) -> tuple[str, bool]:
    """The text without `German:` at its beginning, and whether that was there.

    `language` is "" if it is not known.
    """
    if not language:
        return text, False
    label = re.match(rf"(\s*(### )?{re.escape(language)}:)+", text)
    return (text[label.end() :], True) if label else (text, False)


def _without_fence(text: str) -> tuple[str, bool]:
    """The content of a fenced block, as of Markdown, if the text begins with one; and whether so.

    A line that ends in a colon may stand before it, and the block's first line may name a language.
    An answer that was cut off may lack the block's end.
    """
    opening = re.match(r"\s*(?:[^\n]*:\s*\n\s*)?(`{3,}|~{3,})", text)
    if opening is None:
        return text, False
    block, end, _ = text[opening.end() :].partition(opening[1])
    first_line, line_break, content = block.partition("\n")
    if not line_break:  # all in one line, in which no language is named
        content = first_line if end else ""
    return _without_fence(content)[0], True
