"""Selecting, counting and holding out preference rows; the built-in sample."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_data import PAIR, alma, read, write

from cpo_ds.data.held_out import split_held_out
from cpo_ds.data.prompts import alma_prompt
from cpo_ds.data.rows import read_rows
from cpo_ds.errors import UserError
from cpo_ds.schema import PreferenceRow
from cpo_ds.settings.data import DataConfig


def test_directions_are_selected_and_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [alma(), alma(required_directions="en-de")])
    rows, report = read(path, "alma-r", directions=["en-de"])
    assert [row.direction for row in rows] == ["en-de", "en-de"]
    assert report.dropped == {"direction not selected": 1}
    with pytest.raises(UserError, match=r"en-cs is not in .* its directions: de-en, en-de"):
        read(path, "alma-r", directions=["en-de", "en-cs"])
    with pytest.raises(UserError, match=r"data\.directions: unknown direction 'en_de'.*en-de\?"):
        read(path, "alma-r", directions=["en_de"])


def test_no_pair_left_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [PAIR | {"rejected": PAIR["chosen"]}])
    with pytest.raises(UserError, match=r"no pair is left of 1 rows.*chosen equals rejected: 1"):
        read(path, "pairs")


def test_other_path_overrides_the_configured_one(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [PAIR])
    rows, _ = read_rows(DataConfig(format="pairs", path="gone.jsonl"), None, str(path))
    assert len(rows) == 1


# The built-in sample.


def test_sample_is_whole() -> None:
    rows, report = read_rows(DataConfig(format="sample"), None)
    assert report.read == len(rows) >= 240 and not report.dropped
    others = ["cs", "de", "is", "ru", "zh"]
    assert set(report.kept) == {f"{x}-en" for x in others} | {f"en-{x}" for x in others}
    assert min(report.kept.values()) >= 20
    assert len({row.prompt for row in rows}) == len(rows)
    assert len({row.chosen for row in rows}) == len(rows)
    for row in rows:
        for text in (row.chosen, row.rejected[0]):
            assert text == text.strip() and "\n" not in text and text not in row.prompt
    assert rows[0].origin == "sample/cs-en.jsonl:1"
    assert [row.origin.split(":")[0] for row in rows] == sorted(
        row.origin.split(":")[0] for row in rows
    )


# The held-out split.


def some_row(prompt: str, direction: str, origin: str) -> PreferenceRow:
    return PreferenceRow(prompt, "good", ("bad",), direction, origin)


ROWS = st.lists(
    st.builds(
        some_row,
        st.integers(0, 12).map(str),
        st.sampled_from(["", "en-de", "de-en"]),
        st.integers(0, 40).map(str),
    ),
    min_size=2,
    max_size=60,
)


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_split_is_a_deterministic_partition_that_shares_nothing(
    rows: list[PreferenceRow], fraction: float, seed: int
) -> None:
    try:
        train, held = split_held_out(rows, fraction, seed)
    except UserError:
        return
    assert train and held and Counter(train) + Counter(held) == Counter(rows)
    assert not {row.prompt for row in train} & {row.prompt for row in held}
    assert not {row.origin for row in train} & {row.origin for row in held}
    assert split_held_out(rows, fraction, seed) == (train, held)


@given(st.lists(st.sampled_from(["", "en-de", "cs-en"]), min_size=2), st.floats(0.01, 0.99))
def test_split_takes_each_directions_share_of_separate_rows(
    directions: list[str], fraction: float
) -> None:
    rows = [some_row(f"p{i}", direction, f"o{i}") for i, direction in enumerate(directions)]
    train, held = split_held_out(rows, fraction, 3)
    size = len(rows)
    assert len(held) == min(max(1, round(fraction * size)), size - 1)
    for direction, count in Counter(directions).items():
        taken = sum(row.direction == direction for row in held)
        assert abs(taken - fraction * count) <= 1
    order = [rows.index(row) for row in train], [rows.index(row) for row in held]
    assert all(indices == sorted(indices) for indices in order)


def test_split_keeps_a_source_together_across_directions() -> None:
    def row(text: str, direction: str, origin: str) -> PreferenceRow:
        return some_row(alma_prompt(text, *direction.split("-")), direction, origin)

    rows = []
    for i in range(20):
        rows += [row(f"English {i}", "en-de", f"de:{i}"), row(f"Deutsch {i}", "de-en", f"de:{i}")]
        rows += [row(f"English {i}", "en-cs", f"cs:{i}"), row(f"Cesky {i}", "cs-en", f"cs:{i}")]
    train, held = split_held_out(rows, 0.25, 0)
    assert Counter(r.direction for r in held) == dict.fromkeys(
        ["en-de", "de-en", "en-cs", "cs-en"], 5
    )
    assert not {r.origin[3:] for r in train} & {r.origin[3:] for r in held}
    assert split_held_out(rows, 0.25, 1)[1] != held


def test_split_keeps_sources_together_that_look_the_same() -> None:
    forms = ("Gr\u00fc\u00dfe {}", "Gru\u0308\u00dfe\u200b {} ")
    rows = [some_row(form.format(i), "", f"{i}{form}") for i in range(20) for form in forms]
    train, held = split_held_out(rows, 0.25, 0)
    numbers = [{row.prompt.split()[1] for row in part} for part in (train, held)]
    assert len(held) == 10 and not numbers[0] & numbers[1]


def test_split_of_nothing_and_the_impossible() -> None:
    rows = [some_row("same", "", str(i)) for i in range(5)]
    assert split_held_out(rows, 0.0, 1) == (rows, [])
    with pytest.raises(UserError, match=r"data\.eval_fraction: 0.2 of 5 pairs in 1 groups"):
        split_held_out(rows, 0.2, 1)


def test_split_does_not_take_a_group_far_above_the_share() -> None:
    rows = [some_row("shared", "", f"o{i}") for i in range(5)]
    rows += [some_row(f"p{i}", "", f"o{i + 5}") for i in range(15)]
    for seed in range(20):
        held = split_held_out(rows, 0.1, seed)[1]
        assert len(held) == 2 and "shared" not in {row.prompt for row in held}
