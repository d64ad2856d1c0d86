"""Pairs of a memory's translation and drafts of it: the translation is chosen, drafts rejected."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cpo_ds.data.candidates import REFERENCE
from cpo_ds.data.prompts import Languages, alma_prompt, parse_direction, unnamed
from cpo_ds.data.sameness import is_blank
from cpo_ds.data.selected import SELECTED_BY
from cpo_ds.data.sources import RawRow
from cpo_ds.errors import UserError
from cpo_ds.prepare.memory.cleaning import Tally, example, same_words, shortened
from cpo_ds.prepare.memory.unit import Unit
from cpo_ds.prepare.noise import Noise, noise_row
from cpo_ds.scoring.lexical import score
from cpo_ds.scoring.plan import Item
from cpo_ds.translate.languages import LANGUAGE

_NOISE = Noise(deletion=0.15, swap=0.3, reach=1)  # the defaults of `cpo-ds prepare noise`


@dataclass(frozen=True)
class PairOptions:
    """How pairs are made of units."""

    drafts: Collection[str] | None  # names of the drafts to reject; None for all
    max_chrf: float  # drafts nearer to the target than this are dropped, from 0 to 100
    noise: bool  # whether units without a draft get a noised copy of the target
    seed: int
    prompt_style: str
    languages: Languages
    label: str | None = None  # added to the direction of pairs, as in `en-de_general`


def usable_drafts(unit: Unit, options: PairOptions) -> tuple[dict[str, str], str | None]:
    """The drafts of a unit that teach something, and the reason why the others do not.

    chrF is sacrebleu's, of the single text.
    """
    drafts, reason = {}, None
    seen = {same_words(unit.target)}
    for name, text in unit.drafts.items():
        if options.drafts is not None and name not in options.drafts:
            continue
        if is_blank(text):
            reason = reason or "empty draft"
            continue
        is_new = same_words(text) not in seen
        seen.add(same_words(text))
        if not is_new:
            reason = reason or "draft equals the target"
            continue
        item = Item(unit.source, text, unit.target, unit.language_pair)
        if score("chrf", [item])[0] > options.max_chrf:
            reason = f"draft near the target (chrF above {options.max_chrf:g})"
            continue
        drafts[name] = text
    return drafts, None if drafts else reason


def pairs_of(
    units: Iterable[Unit], options: PairOptions, dropped: Tally
) -> Iterator[dict[str, Any]]:
    """Yields a pair for each unit that has a usable draft, and counts the others by reason.

    Several drafts are a list of rejected texts. Raises `UserError` for a language without a name.
    """
    for unit in units:
        drafts, reason = usable_drafts(unit, options)
        if not drafts and reason is None and options.noise:
            pair = _noised(unit, options)
            if pair is None:
                dropped.add("noise left the target unchanged or empty", example(unit))
            else:
                yield pair
        elif drafts:
            yield _pair(unit, drafts, options)
        else:
            tried = " | ".join(map(shortened, unit.drafts.values()))
            where = example(unit) + (f" | {tried}" if tried else "")
            dropped.add(reason or "no draft", where)


def _pair(unit: Unit, drafts: dict[str, str], options: PairOptions) -> dict[str, Any]:
    """A pair as `cpo-ds prepare select` writes them."""
    if code := unnamed(unit.language_pair, options.languages):
        raise UserError(
            f"{unit.where}: the prompt needs the name of the language {code!r}; give it by "
            f"{LANGUAGE} {code}=NAME."
        )
    codes = parse_direction(unit.language_pair)
    prompt: Any = alma_prompt(unit.source, *codes, options.languages)
    chosen: Any = unit.target
    rejected: list[Any] = list(drafts.values())
    if options.prompt_style == "chat":
        prompt = [{"role": "user", "content": prompt}]
        chosen = [{"role": "assistant", "content": chosen}]
        rejected = [[{"role": "assistant", "content": text}] for text in rejected]
    names = list(drafts)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected if len(rejected) > 1 else rejected[0],
        "direction": "_".join(filter(None, (unit.language_pair, options.label))),
        "chosen_system": REFERENCE,
        "rejected_system": names if len(names) > 1 else names[0],
        SELECTED_BY: [],
    }


def _noised(unit: Unit, options: PairOptions) -> dict[str, Any] | None:
    """The pair of a unit and a noised copy of its target; None if no draw changes it."""
    values = _pair(unit, {"noise": unit.target}, options)
    return noise_row(RawRow(unit.where, "row", 0, values), _NOISE, options.seed)


def row_of(unit: Unit) -> dict[str, Any]:
    """A unit as a row for `cpo-ds prepare candidates`, `translate` and `evaluate`."""
    row: dict[str, Any] = {
        "language_pair": unit.language_pair,
        "source": unit.source,
        REFERENCE: unit.target,
    }
    return row | ({"candidates": unit.drafts} if unit.drafts else {})


def seen_drafts(units: Iterable[Unit]) -> list[str]:
    """The names of all drafts, in the order in which they come up."""
    return list(dict.fromkeys(name for unit in units for name in unit.drafts))
