"""Whether a text is in its target language: by py3langid if it is installed, else by its script."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import regex

from cpo_ds.data.prompts import LANGUAGES

IsIn = Callable[[str, str], bool]  # (text, code of a language) -> whether it may be in it

BY_SCRIPT = (
    "wrong language: judged by script alone, which cannot tell German from English; install "
    "cpo-ds[langid] for languages"
)
_MIN_BYTES = 20  # of UTF-8: a shorter text may well be a name or a number
_CONFIDENCE = 0.7  # below it, close languages share the probability
_LETTER = regex.compile(r"\p{L}")

# Scripts by language, of those that are not written in Latin letters alone.
_SCRIPTS = {
    **dict.fromkeys(("zh", "yue", "zho", "cmn"), r"\p{Han}"),
    **dict.fromkeys(("ja", "jpn"), r"[\p{Han}\p{Hiragana}\p{Katakana}ー]"),
    **dict.fromkeys(("ko", "kor"), r"[\p{Hangul}\p{Han}]"),
    **dict.fromkeys(("bg", "mk", "uk", "ru", "ky", "rus", "ukr"), r"\p{Cyrillic}"),
    **dict.fromkeys(("sr", "kk", "uz", "az"), r"[\p{Cyrillic}\p{Latin}]"),
    **dict.fromkeys(("ar", "fa", "ur"), r"\p{Arabic}"),
    **dict.fromkeys(("hi", "mr", "ne"), r"\p{Devanagari}"),
    "el": r"\p{Greek}",
    "he": r"\p{Hebrew}",
    "th": r"\p{Thai}",
    "ka": r"\p{Georgian}",
    "gu": r"\p{Gujarati}",
}


def language_check(targets: Iterable[str]) -> tuple[IsIn, list[str]]:
    """The check for texts in `targets`, codes without script and region; and notes on its limits.

    A text is in another language if py3langid gives that one a probability of 0.7 or more. By
    script, it is if most of its letters are of another one. Texts of less than 20 bytes pass.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return _in_script, [BY_SCRIPT]
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = {code for code in {*LANGUAGES, *targets} if code in identifier.nb_classes}
    identifier.set_languages(known)
    unknown = sorted(set(targets) - known)

    @functools.cache
    def is_in(text: str, language: str) -> bool:
        if language not in known:
            return _in_script(text, language)
        if len(text.encode()) < _MIN_BYTES:
            return True
        likeliest, probability = identifier.classify(text)
        return likeliest == language or probability < _CONFIDENCE

    notes = [f"wrong language: {code} is judged by its script alone" for code in unknown]
    return is_in, notes


def _in_script(text: str, language: str) -> bool:
    """Whether at least half of a text's letters are of the language's script."""
    script = _SCRIPTS.get(language)
    if script is None:
        script = r"\p{Latin}" if language in LANGUAGES else r"\p{L}"
    letters = _LETTER.findall(text)
    if len(text.encode()) < _MIN_BYTES or not letters:
        return True
    return 2 * sum(bool(regex.match(script, letter)) for letter in letters) >= len(letters)
