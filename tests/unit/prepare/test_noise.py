"""Noise: words and characters that are deleted and swapped."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st

from cpo_ds.prepare.noise import Noise, delete_units, is_unspaced, noised, split_units, swap_units

TALK = Noise(0.15, 0.3, 1)
MIXED = st.text(st.sampled_from("ab é\u0301\u200d 👩👨🇩🇪中文字。、เก้า\t\n1️⃣ไทย한글"), max_size=30)
ANY = MIXED | st.text(max_size=30)
PROBABILITIES = st.sampled_from([0.0, 0.2, 0.7, 1.0])


class Dice(random.Random):
    """Random numbers that a test lays out, for results worked by hand."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self._numbers = list(numbers)

    def random(self) -> float:
        return self._numbers.pop(0)

    def choice(self, sequence: Any) -> Any:
        return sequence[0]


def clusters(text: str) -> list[str]:
    return regex.findall(r"\X", text)


def test_the_talk_s_example() -> None:
    deletions, swaps = (0.1, 0.9, 0.9, 0.9), (0.9, 0.2)  # I goes; eating and apples swap
    dice = Dice(*deletions, *swaps)
    assert noised("I like eating apples", TALK, dice, unspaced=False) == "like apples eating"


def test_white_space_stays_in_place_and_goes_with_a_deleted_word() -> None:
    text = " one  two\nthree\tfour "
    assert noised(text, TALK, Dice(0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9), unspaced=False) == (
        " two  one\nthree\tfour "
    )
    assert noised(text, TALK, Dice(0.9, 0.1, 0.9, 0.1, 0.9, 0.9), unspaced=False) == " one  three "


@pytest.mark.parametrize(
    ("text", "unspaced", "units"),
    [
        ("Well, it's (very) good.", False, ["Well,", "it's", "(very)", "good."]),
        ("我用 iPhone 15，好。", True, [*"我用", "iPhone", "15", *"，好。"]),
        ("我用 iPhone 15，好。", False, ["我用", "iPhone", "15，好。"]),
        ("ブランドNFCです", True, [*"ブランド", "NFC", *"です"]),
        ("ก็ดีที่สุด", True, ["ก็", "ดี", "ที่", "สุ", "ด"]),  # vowels and tones stay with consonants
        ("か\u3099た", True, ["か\u3099", "た"]),
        ("e\u0301a 👩‍👩‍👧 🇩🇪🇫🇷 𠮷野", True, ["e\u0301a", "👩‍👩‍👧", "🇩🇪", "🇫🇷", "𠮷", "野"]),
        ("", True, []),
    ],
)
def test_units(text: str, unspaced: bool, units: list[str]) -> None:
    assert split_units(text, unspaced=unspaced)[0] == units


@pytest.mark.parametrize(
    ("text", "direction", "expected"),
    [
        ("Guten Morgen", "en-de", False),
        ("GitHub", "en-zh", True),
        ("天气很好", "zh-en", False),
        ("天气很好 Guten", "", False),  # five of nine letters are Latin
        ("天气很好吗 OK", "", True),
        ("สวัสดี", "", True),
        ("ありがとう", "", True),
        ("감사합니다 여러분", "", False),
        ("12:30", "", False),
    ],
)
def test_characters_by_language_or_by_script(text: str, direction: str, expected: bool) -> None:
    assert is_unspaced(text, direction) == expected


@given(ANY, st.booleans())
def test_units_and_spaces_are_the_text_and_tear_no_cluster(text: str, unspaced: bool) -> None:
    units, spaces = split_units(text, unspaced=unspaced)
    assert len(spaces) == len(units) + 1
    pieces = [spaces[0], *(piece for pair in zip(units, spaces[1:], strict=True) for piece in pair)]
    assert "".join(pieces) == text
    assert [cluster for piece in pieces for cluster in clusters(piece)] == clusters(text)
    assert not any(space.strip() for space in spaces) and all(unit.strip() for unit in units)


@given(ANY, st.booleans(), st.integers(1, 4), st.integers())
def test_probability_0_leaves_the_text_and_1_empties_it(
    text: str, unspaced: bool, reach: int, seed: int
) -> None:
    rng = random.Random(seed)
    assume(text.strip())
    assert noised(text, Noise(0, 0, reach), rng, unspaced=unspaced) == text
    assert noised(text, Noise(1, 0.5, reach), rng, unspaced=unspaced) == ""


@given(st.integers(0, 40), PROBABILITIES, st.integers(1, 5), st.integers())
def test_swaps_keep_the_words_and_move_none_too_far(
    count: int, probability: float, reach: int, seed: int
) -> None:
    words = [str(number) for number in range(count)]
    swapped = swap_units(words, probability, reach, random.Random(seed))
    assert sorted(swapped) == sorted(words)
    moves = [index - int(word) for index, word in enumerate(swapped)]
    assert all(abs(move) <= reach for move in moves) and sum(moves) == 0
    if reach == 1 and probability == 1:  # every pair of neighbours
        assert sum(move != 0 for move in moves) == count // 2 * 2


@given(ANY, st.booleans(), PROBABILITIES, PROBABILITIES, st.integers(1, 3), st.integers())
def test_noise_only_takes_away(
    text: str, unspaced: bool, deletion: float, swap: float, reach: int, seed: int
) -> None:
    noise = Noise(deletion, swap, reach)
    changed = noised(text, noise, random.Random(seed), unspaced=unspaced)
    assert changed == noised(text, noise, random.Random(seed), unspaced=unspaced)
    assert not Counter(changed) - Counter(text)
    if deletion == 0:
        assert Counter(changed) == Counter(text if text.strip() else "")


def test_rates_on_a_long_text_are_the_nominal_ones() -> None:
    """Counts lie within five standard deviations of binomial ones.

    With range 1 the word after a swap has come from the left and stays: swaps per word, p/(1+p).
    """
    count = 20_000
    kept = delete_units(["w"] * count, 0.15, random.Random(1))
    assert abs(count - len(kept) - 0.15 * count) < 5 * (count * 0.15 * 0.85) ** 0.5
    words = [str(number) for number in range(count)]
    swapped = swap_units(words, 0.3, 1, random.Random(1))
    moved = sum(a != b for a, b in zip(words, swapped, strict=True))
    assert abs(moved / 2 - count * 0.3 / 1.3) < 5 * (count * 0.3 * 0.7) ** 0.5
    far = swap_units(words, 0.3, 3, random.Random(1))
    distances = Counter(abs(int(b) - index) for index, b in enumerate(far))
    assert set(distances) == {0, 1, 2, 3} and min(distances.values()) > 1000
