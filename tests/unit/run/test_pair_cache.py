"""Tokenized pairs are kept: found again only if nothing that made them has changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pair_rows
import pytest
from pair_rows import Starts, append, changed, edit, settle
from pairs_plainly import pairs_plainly, values_of
from preference_data import write, write_parquet

from cpo_ds.config import Config
from cpo_ds.data import identity
from cpo_ds.data.pair_file import Damaged, checksum_of, map_file, read_pairs
from cpo_ds.errors import UserError
from cpo_ds.run import pair_cache
from cpo_ds.run.pair_cache import Kept, cache_folder
from cpo_ds.run.pairs import open_inputs


@pytest.fixture
def start() -> Starts:
    return Starts()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = pair_rows.write_rows(tmp_path / "rows.jsonl", "x-alma", 60)
    return pair_rows.make(tmp_path, path, data={"eval_fraction": 0.2})


def pairs_of(kept: Kept, config: Config) -> list[list[Any]]:
    data = kept.data if kept.data is not None else map_file(kept.path)
    _, train, held_out = read_pairs(data, open_inputs(config, print).places())
    return [values_of(pair) for pair in (*train, *held_out)]


def test_a_second_start_reads_the_pairs_and_not_the_rows(
    config: Config, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(config)
    assert first.is_new and start.said[0].startswith("read 60 rows, kept 5")
    monkeypatch.setattr("cpo_ds.data.pair_inputs.raw_rows_of", None)
    times = first.path.stat()
    second = start(config)
    assert first.path.stat().st_mtime_ns == times.st_mtime_ns  # a finished run rewrites nothing
    assert first.path.stat().st_atime_ns > times.st_atime_ns
    assert second == first._replace(is_new=False) and start.said == []
    train, held_out, _ = pairs_plainly(config)
    assert pairs_of(second, config) == [values_of(pair) for pair in (*train, *held_out)]


def test_equal_contents_are_found_wherever_they_are(
    config: Config, tmp_path: Path, start: Starts
) -> None:
    shared = changed(config, "data", cache=str(tmp_path / "shared"))
    first = start(shared)
    touched = tmp_path / "rows.jsonl"
    settle(touched)
    assert start(shared).path == first.path
    copy = tmp_path / "elsewhere" / "copy.jsonl"
    copy.parent.mkdir()
    shutil.copy(touched, copy)
    other = changed(shared, "data", path=str(copy))
    other = other.model_copy(update={"output_dir": str(tmp_path / "other")})
    kept = start(other)
    assert kept == first._replace(is_new=False)
    assert f"{copy}:1" in pairs_of(kept, other)[0]  # origins name the file as it is now


@pytest.mark.parametrize("kind", ["folder", "saved", "sample"])
def test_folders_are_found_again_and_their_changes_seen(
    tmp_path: Path, kind: str, start: Starts
) -> None:
    import datasets

    rows = [
        {"source": f"a {n}", "chosen": "das", "reject": "x", "directions": "en-de"}
        for n in range(9)
    ]
    data, path = {}, tmp_path / "data"
    if kind == "folder":
        write(path / "a.jsonl", rows)
        write_parquet(path / "b" / "c.parquet", rows)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        data, path = {"format": "sample"}, None
    config = pair_rows.make(tmp_path, path, data=data)
    first = start(config)
    again = start(config)
    assert again == first._replace(is_new=False) and pairs_of(first, config) == pairs_of(
        again, config
    )
    if kind == "folder":
        (path / "a.jsonl").rename(path / "d.jsonl")  # other origins and another order
        assert start(config).path != first.path
    elif kind == "saved":
        shutil.rmtree(path)
        datasets.Dataset.from_list(rows[::-1]).save_to_disk(str(path))
        assert start(config).path != first.path


def test_held_out_files_count_too(config: Config, tmp_path: Path, start: Starts) -> None:
    held_out = pair_rows.write_rows(tmp_path / "held_out.jsonl", "x-alma", 9, seed=1)
    both = changed(config, "data", eval_path=str(held_out), eval_fraction=0.0)
    first = start(both)
    assert not start(both).is_new
    edit(held_out, b"the", b"thy", both)
    assert start(both).path != first.path


def test_a_missing_file_is_an_error_though_its_pairs_are_kept(
    config: Config, tmp_path: Path, start: Starts
) -> None:
    start(config)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"data path .*rows\.jsonl' does not exist"):
        start(config)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 3
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda _: b"x" * 99,
    ],
)
def test_a_damaged_file_is_said_and_made_again(
    config: Config, start: Starts, damage: Callable[[bytes], bytes]
) -> None:
    first = start(config)
    whole = first.path.read_bytes()
    first.path.write_bytes(damage(whole))
    with pytest.raises(Damaged):
        checksum_of(first.path)
    assert start(config).is_new
    assert start.said[0] == f"{first.path} is damaged; the pairs are read and tokenized again"
    assert first.path.read_bytes() == whole and not start(config).is_new


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "{}", '{"x": 3}', "[" * 100_000, "NaN"])
def test_checksums_of_files_that_are_damaged_are_taken_again(
    config: Config, start: Starts, text: str, tmp_path: Path
) -> None:
    first = start(config)
    file = first.path.parent / "files.json"
    for content in (text, f'{{"{tmp_path / "rows.jsonl"}": {text or 1}}}'):
        file.write_text(content)
        assert start(config) == first._replace(is_new=False)


def test_contents_are_read_once_while_nothing_changes(
    config: Config, start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "_SETTLED_NS", -(10**12))  # as if it were an hour old
    first, checksums = start(config), []
    monkeypatch.setattr(identity, "_read_checksum", lambda path: checksums.append(path) or "0" * 64)
    assert start(config).path == first.path and checksums == []
    settle(tmp_path / "rows.jsonl")
    assert start(config).path != first.path and checksums


def test_contents_of_a_file_that_was_just_changed_are_read_again(
    config: Config, start: Starts
) -> None:
    """Two changes within a tick of the clock leave the same times."""
    first = start(config)
    assert identity.KnownFiles(first.path.parent)._known == {}


def test_data_that_changes_while_it_is_read_is_not_kept_under_its_old_name(
    config: Config, start: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    inputs = open_inputs(config, print)
    key = pair_cache._key(inputs, cache_folder(config))
    read = pair_cache.made_once

    def change_and_read(*arguments: Any) -> Any:
        append(path, config)
        return read(*arguments)

    monkeypatch.setattr(pair_cache, "made_once", change_and_read)
    kept = start(config)
    assert kept.is_new and kept.path.stem != key
    monkeypatch.undo()
    assert start(config).is_new  # nothing is trusted that cannot be named


def test_a_runs_own_folder_keeps_two_files_and_a_shared_one_all_in_use(
    config: Config, start: Starts, tmp_path: Path
) -> None:
    settings = [changed(config, "data", max_tokens=200 + n) for n in range(4)]
    files = [start(each).path for each in settings]
    assert sorted(files[0].parent.glob("*.arrow")) == sorted(files[2:])
    shared = [changed(each, "data", cache=str(tmp_path / "shared")) for each in settings]
    kept = [start(each).path for each in shared]
    assert sorted(kept[0].parent.glob("*.arrow")) == sorted(kept)
    month = time.time() - 31 * 24 * 3600
    os.utime(kept[1], (month, month))
    start(shared[0])
    assert sorted(kept[0].parent.glob("*.arrow")) == sorted({*kept} - {kept[1]})


def test_what_a_killed_start_left_is_removed(config: Config, start: Starts) -> None:
    folder = cache_folder(config)
    left = folder / ".unfinished-abc"
    left.mkdir(parents=True)
    (left / "pairs").write_bytes(b"half of them")
    kept = start(config)
    assert sorted(path.name for path in folder.iterdir()) == [kept.path.name, "files.json"]


def test_a_few_pairs_need_no_room_on_the_disk(
    config: Config, start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(pair_cache, "sync", fill)
    kept = start(config)
    assert "cannot be kept in" in start.said[-1] and "No space left" in start.said[-1]
    train, held_out, _ = pairs_plainly(config)
    assert pairs_of(kept, config) == [values_of(pair) for pair in (*train, *held_out)]
    monkeypatch.setattr(pair_cache, "FEW", 1)
    monkeypatch.setattr(pair_cache, "make_in_processes", fill)
    with pytest.raises(UserError, match=r"pairs cannot be written: No space left on device; make"):
        start(config)
