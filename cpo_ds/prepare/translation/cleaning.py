"""Extracts the translation from a model's answer, as in the ALMA evaluation: a pure function."""

from __future__ import annotations

import re

PROMPT, REASONING, LABEL = "repeated prompt removed", "reasoning removed", "label removed"
FIRST_LINE, SPACES = "cut after the first line", "spaces around it removed"


def clean(text: str, target_language: str, prompt: str = "") -> tuple[str, tuple[str, ...]]:
    """The translation in `text`, and the cleaning steps that it took; "" if there is none.

    As for ALMA, the translation is the first line that is not empty, without spaces around it. Some
    models repeat the prompt first, or begin with `German:` (the target language's name), or reason
    before they answer. All of this is removed, too.
    """
    # Remove everything before the translation.
    done = []
    if prompt and text.lstrip().startswith(prompt.strip()):
        text = text.lstrip().removeprefix(prompt.strip())
        done.append(PROMPT)
    if "</think>" in text or text.lstrip().startswith("<think>"):
        _, ended, answer = text.rpartition("</think>")
        text = answer if ended else ""
        done.append(REASONING)
    if label := re.match(rf"(\s*(### )?{re.escape(target_language)}:)+", text):
        text = text[label.end() :]
        done.append(LABEL)

    # Take the first line that holds anything.
    lines = text.split("\n")
    filled = [line for line in lines if line.strip()]
    if not filled:
        return "", tuple(done)
    translation = filled[0].strip()
    if len(filled) > 1:
        done.append(FIRST_LINE)
    if translation != (lines[0] if len(filled) > 1 else text):
        done.append(SPACES)
    return translation, tuple(done)
