"""Languages, translation prompts and chat templates, as pure functions of strings."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from cpo_ds.errors import UserError

Message = dict[str, str]
RenderChat = Callable[[list[Message], bool], str]  # (messages, add_generation_prompt) -> text
Languages = Mapping[str, str]  # code -> English name

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


# A code like bn, ben, pt-BR, zh_Hans or ben_Beng.
_CODE = r"[a-z]{2,3}(?:-(?:[A-Z]{2}|[A-Z][a-z]{3}|[0-9]{3})|_[A-Za-z0-9]+)*"
_DIRECTION = re.compile(f"({_CODE})-({_CODE})")


def with_names(names: Languages, setting: str) -> dict[str, str]:
    """`LANGUAGES` with more names, or with other ones.

    Raises `UserError`, naming the `setting`, for a code or a name that no prompt could hold.
    """
    for code, name in names.items():
        if re.fullmatch(_CODE, code) is None:
            raise UserError(f"{setting}: {code!r} is no code of a language; write one like bn.")
        if not name.strip() or not name.isprintable():
            raise UserError(f"{setting}: the name of {code} is {name!r}; write one like Bengali.")
    return LANGUAGES | {code: name.strip() for code, name in names.items()}


def unnamed(direction: str, languages: Languages) -> str | None:
    """The first code of a direction that has no name in `languages`; None if both have one."""
    return next((code for code in parse_direction(direction) if code not in languages), None)


def check_names(direction: str, languages: Languages, where: str, setting: str) -> None:
    """Raises `UserError` unless both languages of a direction have a name.

    `where` names the row, and `setting` a way to give a name to the language in its `{}`.
    """
    code = unnamed(direction, languages)
    if code is not None:
        closest = difflib.get_close_matches(code, languages, n=1, cutoff=0.75)
        raise UserError(
            f"{where}: the prompt needs the name of the language {code!r} of {direction}, which is "
            f"not known{f' (did you mean {closest[0]}?)' if closest else ''}; give it by "
            f"{setting.format(code)}."
        )


def alma_prompt(
    source: str, source_code: str, target_code: str, languages: Languages = LANGUAGES
) -> str:
    """The prompt of ALMA and ALMA-R; the translation follows directly after its last colon.

    Raises `UserError` for a language code that is not in `languages`.
    """
    target = _language(target_code, languages)
    return f"{_opening(_language(source_code, languages), target)}{source}\n{target}:"


def few_shot_prompt(
    source: str,
    source_code: str,
    target_code: str,
    examples: Iterable[tuple[str, str]],
    languages: Languages = LANGUAGES,
) -> str:
    """ALMA's few-shot prompt, with (source, translation) pairs before the source.

    Without examples it equals `alma_prompt`. Raises `UserError` for an unknown language code.
    """
    names = (_language(source_code, languages), _language(target_code, languages))
    shots = "".join(f"\n{names[0]}: {first}\n{names[1]}: {second}" for first, second in examples)
    opening = f"Translate this from {names[0]} to {names[1]}:"
    return f"{opening}{shots}\n{names[0]}: {source}\n{names[1]}:"


def gpt4_messages(
    source: str, source_code: str, target_code: str, languages: Languages = LANGUAGES
) -> list[Message]:
    """The conversation that made GPT-4 translate for ALMA-R (arXiv 2401.08417, appendix B).

    Raises `UserError` for an unknown language code.
    """
    names = (_language(source_code, languages), _language(target_code, languages))
    request = (
        f"### Translate this from {names[0]} to {names[1]}, {names[0]}: {source} ### {names[1]}:"
    )
    return [
        {"role": "system", "content": "You are a helpful translator and only output the result."},
        {"role": "user", "content": request},
    ]


def source_of(prompt: str, direction: str, languages: Languages = LANGUAGES) -> str | None:
    """The source text in an ALMA prompt, the inverse of `alma_prompt`; None in any other prompt.

    `direction` is like `"en-de"`. A chat template may surround the ALMA prompt.
    """
    codes = _DIRECTION.fullmatch(direction)
    if codes is None or not all(code in languages for code in codes.groups()):
        return None
    source_name, target_name = (languages[code] for code in codes.groups())
    opening = _opening(source_name, target_name)
    start, end = prompt.find(opening), prompt.rfind(f"\n{target_name}:")
    if start < 0 or end < start + len(opening):
        return None
    return prompt[start + len(opening) : end]


def parse_direction(direction: str) -> tuple[str, str]:
    """`"en-de"` -> `("en", "de")`, the source's and the target's code; any codes will do.

    Raises `UserError` for anything else, with the closest known direction if there is one.
    """
    codes = _DIRECTION.fullmatch(direction)
    if codes is not None and codes[1] != codes[2]:
        return codes[1], codes[2]
    problem = f"unknown direction {direction!r}"

    # Guess from codes or names of languages: "German to english" is close to de-en.
    words = [word for word in re.split(r"[^a-z]+", direction.lower()) if word]
    closest = [_closest_code(word) for word in words]
    if len(closest) == 2 and None not in closest and closest[0] != closest[1]:
        raise UserError(f"{problem}; did you mean {closest[0]}-{closest[1]}?")
    raise UserError(f"{problem}; write the codes of two languages, source first, like en-de.")


def base_code(code: str) -> str:
    """The code without script and region: `pt-BR` and `pt_BR` -> `pt`."""
    return re.split("[-_]", code, maxsplit=1)[0]


def split_conversations(*conversations: list[Message]) -> tuple[list[Message], ...]:
    """Splits conversations into their common beginning and the remainder of each.

    No remainder is empty: if one conversation is the beginning of another, the last common message
    is part of all remainders. The common beginning is empty if the first messages differ.
    """
    together = enumerate(zip(*conversations, strict=False))
    differing = (i for i, (first, *others) in together if any(other != first for other in others))
    common = next(differing, min(map(len, conversations)) - 1)
    return conversations[0][:common], *(one[common:] for one in conversations)


def render_completions(
    prompt: list[Message], completions: Sequence[list[Message]], render_chat: RenderChat
) -> tuple[str, ...]:
    """Renders a prompt and its completions by a chat template; prompt + completion is the whole.

    Some templates render a prompt differently if a completion follows. So the prompt text is the
    common beginning of the prompt alone and of all whole conversations.
    """
    whole = [render_chat(prompt + completion, False) for completion in completions]
    text = functools.reduce(_common_beginning, [render_chat(prompt, True), *whole])
    return text, *(one[len(text) :] for one in whole)


def _common_beginning(first: str, second: str) -> str:
    """The longest text with which both begin."""
    shortest = min(len(first), len(second))
    differing = (i for i in range(shortest) if first[i] != second[i])
    return first[: next(differing, shortest)]


def _opening(source_name: str, target_name: str) -> str:
    return f"Translate this from {source_name} to {target_name}:\n{source_name}: "


def _language(code: str, languages: Languages) -> str:
    """The English name of a language. Raises `UserError` for an unknown code."""
    if code in languages:
        return languages[code]
    closest = _closest_code(code)
    hint = f"did you mean {closest}?" if closest else f"known codes: {', '.join(LANGUAGES)}."
    raise UserError(f"unknown language code {code!r}; {hint}")


def _closest_code(word: str) -> str | None:
    """The code whose spelling, or whose English name, is closest to `word`."""
    spellings = {name.lower(): code for code, name in LANGUAGES.items()}
    spellings |= {code: code for code in LANGUAGES}
    matches = difflib.get_close_matches(word.lower(), list(spellings), n=1, cutoff=0.4)
    return spellings[matches[0]] if matches else None
