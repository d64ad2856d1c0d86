"""Signatures: one line that says from what a score was computed, and by what.

A signature is a list of `key:value`, joined by `|`, after the metric's name. It extends that of
sacreBLEU by checksums of the texts: `BLEU|nrefs:1|...|version:2.6.0|n:3|hyp:...|src:...|ref:...`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, unquote

TEXTS = {"hyp": "the translations", "src": "the sources", "ref": "the references"}


def checksum(texts: Iterable[str]) -> str:
    """16 hexadecimal digits that change with any character of any text, and with their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def make_signature(name: str, settings: Mapping[str, object]) -> str:
    """The signature of a metric's name and settings; a setting that is None is left out."""
    parts = [f"{key}:{_quoted(value)}" for key, value in settings.items() if value is not None]
    return "|".join([_quoted(name), *parts])


def parse_signature(signature: str) -> tuple[str, dict[str, str]]:
    """The name and the settings of a signature. Raises `ValueError` if it is none."""
    name, *parts = signature.split("|")
    settings = {}
    for part in parts:
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"{part!r} is no key:value")
        settings[key] = unquote(value)
    return unquote(name), settings


def text_settings(
    translations: Sequence[str], sources: Sequence[str], references: Sequence[str] | None
) -> dict[str, object]:
    """The number of segments, and checksums of all texts that a score depends on."""
    return {
        "n": len(translations),
        "hyp": checksum(translations),
        "src": checksum(sources),
        "ref": None if references is None else checksum(references),
    }


def mean_signature(signatures: Mapping[str, str]) -> str:
    """The signature of a mean: what its directions have in common, and a checksum of the rest."""
    parsed = {pair: parse_signature(signature) for pair, signature in signatures.items()}
    (name, first), *others = parsed.values()
    common = {
        key: value
        for key, value in first.items()
        if key not in TEXTS and key != "n" and all(o.get(key) == value for _, o in others)
    }
    of = ",".join(signatures)
    return make_signature(name, {**common, "mean": of, "parts": checksum(signatures.values())})


def _quoted(value: object) -> str:
    """A value without the characters that separate the parts of a signature."""
    return quote(str(value), safe=" /,:;=+-._~[]()@#")
