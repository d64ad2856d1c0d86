"""`cpo-ds prepare noise`: the rows it writes, in any order of the rows."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import regex
from noise_runs import pair, run
from preference_data import PAIR, read, render_chat, write
from repository import WMT22

from cpo_ds import cli
from cpo_ds.prepare.noise import split_units


def clusters(text: str) -> list[str]:
    return regex.findall(r"\X", text)


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
    assert [row.rejected[0] for row in picked] == [row["rejected"] for row in others]


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
    assert [row.rejected[0] for row in picked] == [
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
        (
            pair(2),
            ["--deletion", "0", "--swap", "0"],
            "no pair is left of 2 rows: every draw leaves",
        ),
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


def test_a_list_of_rejected_texts_becomes_one_of_different_draws(tmp_path: Path) -> None:
    row = PAIR | {"chosen": "eins zwei drei vier fünf", "rejected": ["a", "b", "c"]}
    systems = {"rejected_system": ["x", "y", "z"], "margin": [1, 2, 3]}
    systems |= {"chosen_score": 4, "rejected_score": [3, 2, 1]}
    turn = [{"role": "assistant", "content": row["chosen"]}]
    chat = {"prompt": [{"role": "user", "content": "Hi?"}], "chosen": turn, "rejected": [turn] * 2}
    first, second = run(tmp_path, [row | systems, chat])
    assert len(set(first["rejected"])) == 3 and row["chosen"] not in first["rejected"]
    assert first["rejected_system"] == ["noise"] * 3
    assert not {"margin", "chosen_score", "rejected_score"} & set(first)
    texts = [answer["content"] for [answer] in second["rejected"]]
    assert len(set(texts)) == 2 and row["chosen"] not in texts
