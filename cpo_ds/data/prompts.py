"""Languages, translation prompts and chat templates, as pure functions of strings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from cpo_ds.errors import UserError

Message = dict[str, str]
RenderChat = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text

LANGUAGES: dict[str, str] = {
    "en": "English",
    "da": "Danish",
    "nl": "Dutch",
    "de": "German",
    "is": "Icelandic",
    "no": "Norwegian",
    "sv": "Swedish",
    "af": "Afrikaans",
    "ca": "Catalan",
    "ro": "Romanian",
    "gl": "Galician",
    "it": "Italian",
    "pt": "Portuguese",
    "es": "Spanish",
    "bg": "Bulgarian",
    "mk": "Macedonian",
    "sr": "Serbian",
    "uk": "Ukrainian",
    "ru": "Russian",
    "id": "Indonesian",
    "ms": "Malay",
    "th": "Thai",
    "vi": "Vietnamese",
    "mg": "Malagasy",
    "fr": "French",
    "hu": "Hungarian",
    "el": "Greek",
    "cs": "Czech",
    "pl": "Polish",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "ka": "Georgian",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "fi": "Finnish",
    "et": "Estonian",
    "gu": "Gujarati",
    "hi": "Hindi",
    "mr": "Marathi",
    "ne": "Nepali",
    "ur": "Urdu",
    "az": "Azerbaijani",
    "kk": "Kazakh",
    "ky": "Kyrgyz",
    "tr": "Turkish",
    "uz": "Uzbek",
    "ar": "Arabic",
    "he": "Hebrew",
    "fa": "Persian",
}


def alma_prompt(source: str, source_code: str, target_code: str) -> str:
    """The prompt of ALMA and ALMA-R; the translation follows directly after its last colon.

    Raises `UserError` for a language code that is not in `LANGUAGES`.
    """
    target = _language(target_code)
    return f"{_opening(_language(source_code), target)}{source}\n{target}:"


def few_shot_prompt(
    source: str, source_code: str, target_code: str, examples: Iterable[tuple[str, str]]
) -> str:
    """ALMA's few-shot prompt, with (source, translation) pairs before the source.

    Without examples it equals `alma_prompt`. Raises `UserError` for an unknown language code.
    """
    names = (_language(source_code), _language(target_code))
    shots = "".join(f"\n{names[0]}: {first}\n{names[1]}: {second}" for first, second in examples)
    opening = f"Translate this from {names[0]} to {names[1]}:"
    return f"{opening}{shots}\n{names[0]}: {source}\n{names[1]}:"


def gpt4_messages(source: str, source_code: str, target_code: str) -> list[Message]:
    """The conversation that made GPT-4 translate for ALMA-R (arXiv 2401.08417, appendix B).

    Raises `UserError` for an unknown language code.
    """
    names = (_language(source_code), _language(target_code))
    request = (
        f"### Translate this from {names[0]} to {names[1]}, {names[0]}: {source} ### {names[1]}:"
    )
    return [
        {"role": "system", "content": "You are a helpful translator and only output the result."},
        {"role": "user", "content": request},
    ]


def source_of(prompt: str, direction: str) -> str | None:
    """The source text in an ALMA prompt, the inverse of `alma_prompt`; None in any other prompt.

    `direction` is like `"en-de"`. A chat template may surround the ALMA prompt.
    """
    codes = direction.split("-")
    if len(codes) != 2 or not all(code in LANGUAGES for code in codes):
        return None
    source_name, target_name = (LANGUAGES[code] for code in codes)
    opening = _opening(source_name, target_name)
    start, end = prompt.find(opening), prompt.rfind(f"\n{target_name}:")
    if start < 0 or end < start + len(opening):
        return None
    return prompt[start + len(opening) : end]


def parse_direction(direction: str) -> tuple[str, str]:
    """`"en-de"` -> `("en", "de")`, the source's and the target's code.

    Raises `UserError` for anything else, with the closest known direction if there is one.
    """
    codes = direction.split("-")
    if len(codes) == 2 and codes[0] != codes[1] and all(code in LANGUAGES for code in codes):
        return codes[0], codes[1]
    problem = f"unknown direction {direction!r}"
    unknown = [code for code in codes if code not in LANGUAGES]
    if len(codes) == 2 and unknown:
        problem += f": there is no language {unknown[0]!r}"

    # Guess from codes or names of languages: "German to english" is close to de-en.
    words = [word for word in re.split(r"[^a-z]+", direction.lower()) if word]
    closest = [_closest_code(word) for word in words]
    if len(closest) == 2 and None not in closest and closest[0] != closest[1]:
        raise UserError(f"{problem}; did you mean {closest[0]}-{closest[1]}?")
    raise UserError(
        f"{problem}; write source-target, like en-de. Known languages: {', '.join(LANGUAGES)}."
    )


def split_conversations(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Splits two conversations into their common beginning and the two remainders.

    No remainder is empty: if one conversation is the beginning of the other, the last common
    message is part of both remainders. The common beginning is empty if the first messages differ.
    """
    shortest = min(len(chosen), len(rejected))
    common = next((i for i in range(shortest) if chosen[i] != rejected[i]), shortest - 1)
    return chosen[:common], chosen[common:], rejected[common:]


def render_pair(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], render_chat: RenderChat
) -> tuple[str, str, str]:
    """Renders prompt, chosen and rejected by a chat template; prompt + completion is the whole.

    Some templates render a prompt differently if a completion follows. So the prompt text is the
    common beginning of three texts: the prompt alone, and both whole conversations.
    """
    whole = [render_chat(prompt + completion, False) for completion in (chosen, rejected)]
    text = _common_beginning(render_chat(prompt, True), _common_beginning(*whole))
    return text, whole[0][len(text) :], whole[1][len(text) :]


def _common_beginning(first: str, second: str) -> str:
    """The longest text with which both begin."""
    shortest = min(len(first), len(second))
    differing = (i for i in range(shortest) if first[i] != second[i])
    return first[: next(differing, shortest)]


def _opening(source_name: str, target_name: str) -> str:
    return f"Translate this from {source_name} to {target_name}:\n{source_name}: "


def _language(code: str) -> str:
    """The English name of a language. Raises `UserError` for an unknown code."""
    if code in LANGUAGES:
        return LANGUAGES[code]
    closest = _closest_code(code)
    hint = f"did you mean {closest}?" if closest else f"known codes: {', '.join(LANGUAGES)}."
    raise UserError(f"unknown language code {code!r}; {hint}")


def _closest_code(word: str) -> str | None:
    """The code whose spelling, or whose English name, is closest to `word`."""
    spellings = {name.lower(): code for code, name in LANGUAGES.items()}
    spellings |= {code: code for code in LANGUAGES}
    matches = difflib.get_close_matches(word.lower(), list(spellings), n=1, cutoff=0.4)
    return spellings[matches[0]] if matches else None
