"""`cpo-ds prepare noise`: replaces each pair's rejected text by a noised copy of the chosen one.

This is the baseline of the CPO paper's analysis of dis-preferred data: words are deleted at random,
then words swap places with a near one. In scripts without spaces the units are characters as people
see them (grapheme clusters), and words of other scripts among them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import regex

from cpo_ds.data.candidates import left_out, write_rows
from cpo_ds.data.pair_rows import are_many
from cpo_ds.data.pair_scores import CHOSEN_SCORE, REJECTED_SCORE
from cpo_ds.data.prompts import base_code, parse_direction
from cpo_ds.data.sameness import as_seen, is_blank, same_text
from cpo_ds.data.sources import RawRow, read_raw
from cpo_ds.errors import UserError
from cpo_ds.storage.results import content_key

UNSPACED = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo")  # languages without spaces
DRAWS = 20  # at most, for a text that stays unchanged or becomes empty
_OF_OLD_TEXTS = (CHOSEN_SCORE, REJECTED_SCORE, "margin")  # fields of a pair
_UNSPACED_LETTER = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
)
_WORD_CHARACTER = regex.compile(r"[\p{L}\p{M}\p{N}]")


@dataclass(frozen=True)
class Noise:
    """Probabilities of a deletion and a swap, and how many places a swap reaches."""

    deletion: float
    swap: float
    reach: int


def is_unspaced(text: str, direction: str) -> bool:
    """Whether the units to noise are characters and not words.

    The target language of `direction` decides; without a direction, most of the text's letters do.
    """
    if direction:
        return base_code(parse_direction(direction)[1]) in UNSPACED
    letters = regex.findall(r"\p{L}", text)
    return 2 * sum(1 for letter in letters if _UNSPACED_LETTER.match(letter)) > len(letters)


def split_units(text: str, *, unspaced: bool) -> tuple[list[str], list[str]]:
    """Splits a text into units to noise and the white space before, between and after them.

    There is one white space more than units, and each may be empty. Units are the words between
    white space, or with `unspaced` single characters. Grapheme clusters stay whole.
    """

    def kind(cluster: str) -> str:
        if cluster.isspace():
            return "space"
        if unspaced and (_UNSPACED_LETTER.match(cluster) or not _WORD_CHARACTER.match(cluster)):
            return "alone"
        return "word"

    units: list[str] = []
    spaces = [""]
    for kind_of_group, group in groupby(regex.findall(r"\X", text), key=kind):
        clusters = list(group)
        if kind_of_group == "space":
            spaces[-1] = "".join(clusters)
            continue
        new_units = clusters if kind_of_group == "alone" else ["".join(clusters)]
        units += new_units
        spaces += [""] * len(new_units)
    return units, spaces


def delete_units(units: list[str], probability: float, rng: random.Random) -> list[int]:
    """Indices of the units that stay; each is deleted with the same probability."""
    return [index for index in range(len(units)) if rng.random() >= probability]


def swap_units(units: list[str], probability: float, reach: int, rng: random.Random) -> list[str]:
    """The units after swaps: from left to right, each may swap places with one of the next `reach`.

    A unit that came from the left is not swapped again, so no unit moves further than `reach`.
    """
    swapped, last = list(units), len(units) - 1
    from_the_left = [False] * len(units)
    for left in range(last):
        if not from_the_left[left] and rng.random() < probability:
            right = rng.choice(range(left + 1, min(left + reach, last) + 1))
            swapped[left], swapped[right] = swapped[right], swapped[left]
            from_the_left[right] = True
    return swapped


def noised(text: str, noise: Noise, rng: random.Random, *, unspaced: bool) -> str:
    """The text after deletions and swaps. A deleted unit takes white space beside it along."""
    units, spaces = split_units(text, unspaced=unspaced)
    kept = delete_units(units, noise.deletion, rng)
    if not kept:
        return ""
    swapped = swap_units([units[index] for index in kept], noise.swap, noise.reach, rng)
    after = [*(spaces[index + 1] for index in kept[:-1]), spaces[-1]]
    return spaces[0] + "".join(unit + space for unit, space in zip(swapped, after, strict=True))


def noise_row(raw: RawRow, noise: Noise, seed: int) -> dict[str, Any] | None:
    """The row with a noised rejected text; None if no draw gives a changed text with words left.

    A list of rejected texts becomes one of different draws, at most as many as it had.

    Draws depend on the seed and on the row's prompt and chosen text, not on its place in the file.
    Raises `UserError` for a row that is not a pair.
    """
    # Draw until the text is neither empty nor the chosen one.
    prompt, chosen, text = raw.values.get("prompt"), raw.values.get("chosen"), _last_text(raw)
    rng = random.Random(content_key(str(seed), json.dumps([prompt, chosen], sort_keys=True)))
    unspaced = is_unspaced(text, _direction(raw))
    draws = (noised(text, noise, rng, unspaced=unspaced) for _ in range(DRAWS))
    changed = (draw for draw in draws if not is_blank(draw) and not same_text(draw, text))
    before = raw.values.get("rejected")
    is_many = are_many(chosen, before)
    texts = list(islice(_different(changed), len(before or ()) if is_many else 1))
    if not texts:
        return None

    # The scores, the margins and the systems belonged to the old texts. A chosen text's score says
    # nothing without the others.
    values = {key: value for key, value in raw.values.items() if key not in _OF_OLD_TEXTS}
    rejected: list[Any] = list(texts)
    if isinstance(chosen, list):
        rejected = [[*chosen[:-1], chosen[-1] | {"content": draw}] for draw in texts]
    if "rejected_system" in values:
        values["rejected_system"] = ["noise"] * len(texts) if is_many else "noise"
    return values | {"rejected": rejected if is_many else rejected[0]}


def _different(texts: Iterable[str]) -> Iterator[str]:
    """The texts that look different from all before them."""
    seen: set[str] = set()
    for text in texts:
        if as_seen(text) not in seen:
            seen.add(as_seen(text))
            yield text


def _direction(raw: RawRow) -> str:
    """The row's translation direction; "" if it has none."""
    for column in ("direction", "language_pair"):
        if raw.values.get(column) is None:
            continue
        direction = raw.text(column)
        try:
            parse_direction(direction)
        except UserError as error:
            raise raw.error(column, f"has an {error}") from None
        return direction
    return ""


def _last_text(raw: RawRow) -> str:
    """The chosen text: a string, or the last message of a conversation."""
    chosen = raw.values.get("chosen")
    if not chosen or (isinstance(chosen, str) and raw.values.get("prompt") is None):
        raise raw.error(
            "prompt" if chosen else "chosen",
            "is missing; noise takes pairs, of prompt and chosen. Rows with scores become pairs by "
            "`cpo-ds prepare select`.",
        )
    if not isinstance(chosen, list):
        return raw.text("chosen")
    # A conversation: noise goes into its last message.
    where = f"chosen[{len(chosen) - 1}]"
    if not isinstance(chosen[-1], dict):
        raise raw.error(where, "is not a message with role and content")
    return raw.checked_text(chosen[-1].get("content"), f"{where}.content")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare noise`."""
    add = parser.add_argument
    add("--input", required=True, type=Path, help="pairs, as select writes them")
    add("--output", required=True, type=Path, help="the same pairs with noise, jsonl")
    add("--deletion", type=float, default=0.15, help="probability of deleting a word (0.15)")
    add("--swap", type=float, default=0.3, help="probability of swapping a word (0.3)")
    add("--range", type=int, default=1, help="how many positions a swap moves a word at most (1)")
    add("--seed", type=int, default=42, help="seed of the random draws (42)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the noised pairs; returns the exit code. Raises `UserError`."""
    # Check the options.
    noise = Noise(arguments.deletion, arguments.swap, arguments.range)
    for name, probability in (("deletion", noise.deletion), ("swap", noise.swap)):
        if not 0 <= probability <= 1:
            raise UserError(f"--{name} is {probability}; give a probability from 0 to 1.")
    if noise.reach < 1:
        raise UserError(f"--range is {noise.reach}; give 1 or more, or --swap 0 for no swaps.")
    if arguments.output.suffix != ".jsonl":
        raise UserError(f"--output {arguments.output} does not end in .jsonl; name it so.")

    # Write row by row, then print the counts.
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    rows = _noised_rows(str(arguments.input), noise, arguments.seed, counts, skipped)
    write_rows(arguments.output, rows)
    print(f"read {counts['read']} rows, wrote {counts['written']} pairs to {arguments.output}")
    print("".join(f"{line}\n" for line in left_out(skipped)), end="")
    return 0


def _noised_rows(
    path: str, noise: Noise, seed: int, counts: Counter[str], skipped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yields the rows with noise; counts those read and written, and the skipped ones by reason.

    Raises `UserError` for a row that is not a pair, and at the end if there was no row to yield.
    """
    for raw in read_raw(path, "train"):
        if raw is None:
            skipped["blank line"] += 1
            continue
        counts["read"] += 1
        row = noise_row(raw, noise, seed)
        if row is None:
            skipped[f"unchanged or empty in {DRAWS} draws"] += 1
        else:
            counts["written"] += 1
            yield row
    if not counts["written"]:
        raise UserError(
            f"{path}: no pair is left of {counts['read']} rows: every draw leaves a text "
            "unchanged or empty; raise --deletion or --swap, or give longer texts. Nothing was "
            "written."
        )
