"""`cpo-ds prepare noise`: what becomes of words and characters, in any order of the rows."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import launch
import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st
from preference_data import PAIR, read, render_chat, write
from repository import WMT22

from cpo_ds import cli
from cpo_ds.prepare.noise import (
    Noise,
    delete_units,
    is_unspaced,
    noised,
    split_units,
    swap_units,
)

TALK = Noise(0.15, 0.3, 1)
MIXED = st.text(st.sampled_from("ab é\u0301\u200d 👩👨🇩🇪中文字。、เก้า\t\n1️⃣ไทย한글"), max_size=30)
ANY = MIXED | st.text(max_size=30)
PROBABILITIES = st.sampled_from([0.0, 0.2, 0.7, 1.0])


class Dice(random.Random):
    """Gives what a test lays out, for numbers worked by hand."""

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
    moves = [there - int(word) for there, word in enumerate(swapped)]
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
    """Within five standard deviations of binomial counts.

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
    distances = Counter(abs(int(b) - there) for there, b in enumerate(far))
    assert set(distances) == {0, 1, 2, 3} and min(distances.values()) > 1000


# The command.


def run(folder: Path, rows: list[Any], *options: object) -> list[dict[str, Any]]:
    path, output = write(folder / "pairs.jsonl", rows), folder / "noised.jsonl"
    arguments = ["prepare", "noise", "--input", path, "--output", output, *options]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def pair(number: int, **changes: Any) -> dict[str, Any]:
    chosen = f"This is translation {number} of the same sentence, in so many words."
    return {"prompt": f"Source {number}", "chosen": chosen, "rejected": "Bad."} | changes


def test_rows_keep_their_fields_and_draws_do_not_depend_on_the_order(tmp_path: Path) -> None:
    rows = [pair(n, direction="de-en", chosen_system="a", rejected_system="b") for n in range(20)]
    rows = [row | {"margin": 0.5, "note": "kept"} for row in rows]
    written = run(tmp_path, rows)
    for row, new in zip(rows, written, strict=True):
        assert new["rejected"] not in (row["chosen"], row["rejected"])
        assert not Counter(new["rejected"].split()) - Counter(row["chosen"].split())
        expected = {key: value for key, value in row.items() if key != "margin"}
        assert new == expected | {"rejected": new["rejected"], "rejected_system": "noise"}
    assert run(tmp_path, rows[::-1]) == written[::-1]
    assert run(tmp_path, rows[3:5]) == written[3:5]
    assert run(tmp_path, rows, "--seed", "42") == written
    others = run(tmp_path, rows, "--seed", 7)
    assert sum(a["rejected"] != b["rejected"] for a, b in zip(others, written, strict=True)) > 15
    picked, _ = read(tmp_path / "noised.jsonl", "pairs", directions=["de-en"])
    assert [row.rejected for row in picked] == [row["rejected"] for row in others]


def test_options_do_what_they_say(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(30)]
    words = [row["chosen"].split() for row in rows]
    swapped = [row["rejected"].split() for row in run(tmp_path, rows, "--deletion", 0)]
    assert all(sorted(a) == sorted(b) and a != b for a, b in zip(words, swapped, strict=True))
    deleted = [row["rejected"].split() for row in run(tmp_path, rows, "--swap", 0)]
    for kept, all_words in zip(deleted, words, strict=True):
        rest = iter(all_words)
        assert all(word in rest for word in kept) and len(kept) < len(all_words)  # in order
    far = [
        row["rejected"].split()
        for row in run(tmp_path, rows, "--deletion", 0, "--swap", 0.9, "--range", 4)
    ]
    moves = {abs(b.index(w) - a.index(w)) for a, b in zip(words, far, strict=True) for w in a}
    assert moves == {0, 1, 2, 3, 4}


def test_conversations(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Translate: Good morning to you."}
    bot = {"role": "assistant", "content": "Einen schönen guten Morgen wünsche ich dir."}
    bad = {"role": "assistant", "content": "Schlecht."}
    explicit = {"prompt": [user], "chosen": [bot], "rejected": [bad]}
    whole = {"chosen": [user, bot], "rejected": [user, bad]}
    written = run(tmp_path, [explicit, whole])
    assert written[0]["prompt"] == [user] and written[1]["rejected"][0] == user
    for row in written:
        assert row["chosen"][-1] == bot
        assert row["rejected"][-1]["role"] == "assistant"
        text = row["rejected"][-1]["content"]
        assert text != bot["content"] and set(text.split()) <= set(bot["content"].split())
    picked, _ = read(tmp_path / "noised.jsonl", "pairs", render_chat)
    assert [row.rejected for row in picked] == [
        render_chat([row["rejected"][-1]], False).removeprefix("<s><assistant>") for row in written
    ]


def test_what_cannot_be_noised_is_dropped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(1), pair(2, chosen="Hallo"), pair(3, chosen="ja ja"), pair(4, rejected=None)]
    written = run(tmp_path, [*rows, pair(5, chosen="你好", direction="en-zh")])
    assert [row["prompt"] for row in written] == ["Source 1", "Source 3", "Source 4", "Source 5"]
    assert written[1]["rejected"] == "ja"
    assert written[3]["rejected"] in ("好你", "你", "好")
    assert capsys.readouterr().out == (
        f"read 5 rows, wrote 4 pairs to {tmp_path / 'noised.jsonl'}\n"
        "  left out, unchanged or empty in 20 draws: 1\n"
    )


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"translation": {}}, [], "line 2: field chosen is missing; noise takes pairs"),
        (
            {"source": "s", "chosen": "c c"},
            [],
            "line 2: field prompt is missing; noise takes pairs",
        ),
        ({"prompt": "p", "chosen": " "}, [], "line 2: field chosen is empty"),
        ({"prompt": "p", "chosen": 3}, [], "line 2: field chosen is not a string but 3"),
        ({"prompt": "p", "chosen": []}, [], "line 2: field chosen is missing"),
        ({"prompt": [], "chosen": ["x"]}, [], "line 2: field chosen[0] is not a message"),
        ({"prompt": [], "chosen": [{"role": "user"}]}, [], "field chosen[0].content is not a str"),
        (PAIR | {"direction": "de"}, [], "line 2: field direction has an unknown direction 'de'"),
        (PAIR | {"language_pair": 5}, [], "line 2: field language_pair is not a string but 5"),
        (PAIR, ["--deletion", "1.5"], "--deletion is 1.5; give a probability"),
        (PAIR, ["--swap", "nan"], "--swap is nan; give a probability"),
        (PAIR, ["--range", "0"], "--range is 0; give 1 or more"),
        (PAIR, ["--output", "x.jsonl.gz"], "--output x.jsonl.gz does not end in .jsonl"),
        (pair(2), ["--deletion", "0", "--swap", "0"], "no pair is left of 2 rows: no draw changes"),
    ],
)
def test_errors_say_what_and_where(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    path = write(tmp_path / "pairs.jsonl", [pair(1), row])
    arguments = ["--input", str(path), "--output", str(tmp_path / "noised.jsonl"), *options]
    assert cli.main(["prepare", "noise", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_the_command_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [pair(n) for n in range(5)])
    expected = run(tmp_path, [pair(n) for n in range(5)])
    command = [sys.executable, "-m", "cpo_ds.cli", "prepare", "noise", "--input", str(path)]
    output = tmp_path / "again.jsonl"
    done = launch.finish(launch.start([*command, "--output", str(output)]))
    assert (done.code, done.output) == (0, f"read 5 rows, wrote 5 pairs to {output}\n")
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected


def test_real_text_in_ten_directions(tmp_path: Path) -> None:
    if not WMT22.exists():
        pytest.skip(f"{WMT22} is not there")
    rows = []
    with gzip.open(WMT22, "rt", encoding="utf-8") as lines:
        for line in list(lines)[::40]:
            row = json.loads(line)
            texts = {"prompt": row["source"], "chosen": row["reference"]}
            rows.append(texts | {"rejected": "", "direction": row["language_pair"]})
    written = run(tmp_path, rows)
    assert len(written) > 0.98 * len(rows)
    sizes: dict[bool, list[int]] = {True: [0, 0], False: [0, 0]}
    for row in written:
        assert row["chosen"] != row["rejected"] and row["rejected"].strip()
        assert not Counter(clusters(row["rejected"])) - Counter(clusters(row["chosen"]))
        unspaced = row["direction"].endswith("zh")
        for index, text in enumerate((row["chosen"], row["rejected"])):
            sizes[unspaced][index] += len(split_units(text, unspaced=unspaced)[0])
    for chosen, rejected in sizes.values():
        assert 0.83 < rejected / chosen < 0.87  # .85, of thousands of words
