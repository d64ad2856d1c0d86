"""Filters of pairs: each returns the reason to drop a pair, or None to keep it."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from cpo_ds.data.candidates import CandidateRow
from cpo_ds.data.prompts import LANGUAGES, base_code, parse_direction
from cpo_ds.data.sameness import as_seen, same_score, same_text
from cpo_ds.errors import UserError
from cpo_ds.prepare.pairs.choose import EQUAL, SAME, Pair

Filter = Callable[[Pair], str | None]
_REMEMBERED_TEXTS = 2**12
USUAL_CONFIDENCE = 0.7  # of --check-language without a value
# How --check-language is declared; its help says what is dropped.
CONFIDENCE: dict[str, Any] = {
    "nargs": "?", "type": float, "const": USUAL_CONFIDENCE, "metavar": "CONFIDENCE",
}  # fmt: skip
MIN_BYTES = 20  # of UTF-8: a shorter text may well be a name or a number


def check_confidence(confidence: float | None) -> None:
    """Raises `UserError` unless a value of --check-language is a probability, or not given."""
    if confidence is not None and not 0 < confidence <= 1:
        raise UserError(f"--check-language is {confidence}; give a probability, like 0.7.")


def first_reason(pair: Pair, filters: Sequence[Filter]) -> str | None:
    """The reason of the first filter that drops the pair; None if all keep it."""
    return next((reason for keep in filters if (reason := keep(pair))), None)


def not_equal(pair: Pair) -> str | None:
    """Drops pairs with nothing to learn: equal scores or equal texts."""
    if not pair.is_human and pair.has_equal_scores:
        return EQUAL
    return SAME if same_text(pair.chosen, pair.rejected) else None


def margin_filter(least: float) -> Filter:
    """Drops pairs whose mean scores are closer than `least`, unless a person chose."""

    def keep(pair: Pair) -> str | None:
        if pair.is_human or pair.margin is None or same_score(pair.margin, least):
            return None
        return f"margin below {least:g}" if pair.margin < least else None

    return keep


def duplicate_filter() -> Filter:
    """Drops pairs with the same direction, source and texts as a pair before.

    It remembers 16 bytes of a hash of each pair that it keeps: with a billion pairs, the
    probability that two different ones have the same is below 1e-20.
    """
    seen: set[bytes] = set()

    def keep(pair: Pair) -> str | None:
        texts = [pair.direction, *map(as_seen, (pair.source, pair.chosen, pair.rejected))]
        key = hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).digest()
        if key in seen:
            return "duplicate"
        seen.add(key)
        return None

    return keep


def median_ratios(rows: Iterable[CandidateRow]) -> dict[str, float]:
    """For each direction, the median of a translation's characters over its source's."""
    ratios: dict[str, array[float]] = {}
    for row in rows:
        for text in row.translations.values():
            of_direction = ratios.setdefault(row.language_pair, array("d"))
            of_direction.append(len(text) / len(row.source))
    return {direction: statistics.median(values) for direction, values in ratios.items()}


def length_filter(limit: float, medians: Mapping[str, float]) -> Filter:
    """Drops pairs with a text `limit` times longer or shorter than usual for its source.

    `medians` are those of `median_ratios`.
    """

    def keep(pair: Pair) -> str | None:
        usual = medians[pair.direction] * len(pair.source)
        lengths = (len(pair.chosen), len(pair.rejected))
        is_far = any(n > limit * usual or n * limit < usual for n in lengths)
        return f"length {limit:g} times off" if is_far else None

    return keep


def language_filter(confidence: float, directions: Collection[str]) -> Filter:
    """Drops pairs with a text in another language than the target's, or a copy of the source.

    py3langid chooses among the languages that cpo_ds knows and the targets of `directions`. A text
    is in another language if py3langid gives that language a probability of at least `confidence`.
    Close languages share the probability, so Danish is not taken for Norwegian. Raises `UserError`
    without py3langid, and for a target that it does not know.
    """
    targets = {direction: base_code(parse_direction(direction)[1]) for direction in directions}
    identifier = identifier_for(targets)

    # Texts come up again in pairs nearby and identification is slow: remember some outcomes.
    @functools.lru_cache(_REMEMBERED_TEXTS)
    def is_in(text: str, language: str) -> bool:
        if len(text.encode()) < MIN_BYTES:
            return True
        likeliest, probability = identifier.classify(text)
        return likeliest == language or probability < confidence

    # White space does not make a copy another text.
    def keep(pair: Pair) -> str | None:
        target = targets[pair.direction]
        source, *sides = (
            as_seen(text).split() for text in (pair.source, pair.chosen, pair.rejected)
        )
        if source in sides:
            return "copy of the source"
        if is_in(pair.chosen, target) and is_in(pair.rejected, target):
            return None
        return "not in the target language"

    return keep


def identifier_for(targets: Mapping[str, str]) -> Any:
    """py3langid's classifier, limited to the known languages and to `targets` by direction.

    Raises `UserError` without py3langid, and for a target that it does not know.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "--check-language needs the package py3langid; install it by pip install "
            "'cpo-ds[langid]', or leave the option out."
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    for direction, language in targets.items():
        if language not in identifier.nb_classes:
            raise UserError(
                f"--check-language cannot judge {direction}: py3langid does not know the language "
                f"{language!r}; leave the option out, or select other --directions."
            )
    identifier.set_languages({*LANGUAGES, *targets.values()})
    return identifier
