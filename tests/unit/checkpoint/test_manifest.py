"""Checkpoint folders: what a manifest finds, which checkpoint is taken, what a crash leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpo_ds.checkpoint import manifest
from cpo_ds.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    FileEntry,
    Manifest,
    checkpoint_name,
    checkpoints,
    damage,
    latest_problem,
    prune,
    publish,
    read_entry,
    read_manifest,
    resume_candidates,
    unfinished_name,
    write_manifest,
)
from cpo_ds.storage.files import sync

SMALL = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
SECTIONS = st.dictionaries(st.text(), VALUES, max_size=4)
ENTRIES = st.builds(FileEntry, st.integers(0, 2**50), st.text("0123456789abcdef", max_size=64))
MANIFESTS = st.builds(
    Manifest,
    step=st.integers(0, 10**9),
    ranks=st.integers(1, 1024),
    zero_stage=st.integers(0, 3),
    identity=SECTIONS,
    weights_before=st.text(),
    configuration=SECTIONS,
    data=SECTIONS,
    files=st.dictionaries(st.text(), ENTRIES, max_size=4),
)


@SMALL
@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(tmp_path: Path, written: Manifest) -> None:
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written
    assert written.size == sum(entry.bytes for entry in written.files.values())


def test_every_changed_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    written = Manifest(
        step=3,
        ranks=2,
        zero_stage=3,
        identity={"loss": {"beta": 0.1, "größe": None}},
        files={"a.pt": FileEntry(5, "ab")},
    )
    write_manifest(tmp_path, written)
    path = tmp_path / MANIFEST
    good = path.read_bytes()
    found = 0
    for place in range(len(good)):
        changed = bytearray(good)
        for byte in (good[place] ^ 1, good[place] ^ 64, 0, ord(" "), ord('"'), ord("9")):
            if byte == good[place]:
                continue
            changed[place] = byte
            path.write_bytes(changed)
            try:
                assert read_manifest(tmp_path) == written  # white space, say
            except DamagedCheckpoint as error:
                assert str(path) in str(error)
                found += 1
    assert found > 5 * len(good) * 0.8
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(DamagedCheckpoint, match=MANIFEST):
            read_manifest(tmp_path)
    path.unlink()
    with pytest.raises(DamagedCheckpoint, match="not there"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[]", "1", "null", '{"checksum": 1}', "{}"])
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DamagedCheckpoint, match=MANIFEST):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"format": 2}, "another version"),
        ({"unknown": 1}, "cannot be read"),
        ({"files": {"a": {"bytes": 1}}}, "cannot be read"),
    ],
)
def test_a_manifest_of_another_version_is_refused(
    tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    """One whose own checksum fits."""
    write_manifest(tmp_path, Manifest(1, 1, 0))
    content = json.loads((tmp_path / MANIFEST).read_text()) | change
    del content["checksum"]
    content["checksum"] = manifest._checksum(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DamagedCheckpoint, match=part):
        read_manifest(tmp_path)


@SMALL
@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_damage_to_a_file_is_found_and_named(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "shard.pt"
    path.write_bytes(content)
    about = Manifest(1, 1, 0, files={"shard.pt": read_entry(path)})
    assert damage(tmp_path, about) == []
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    for changed in (bytes(flipped), content[:-1], content + b"\0", b""):
        path.write_bytes(changed)
        (problem,) = damage(tmp_path, about)
        assert str(path) in problem
    path.unlink()
    assert damage(tmp_path, about) == [f"{path} is not there"]
    path.mkdir()
    (problem,) = damage(tmp_path, about)
    assert str(path) in problem
    path.rmdir()
    assert damage(tmp_path, about, []) == []


def test_large_files_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHUNK", 7)
    path = tmp_path / "f"
    path.write_bytes(bytes(range(50)))
    entry = read_entry(path)
    monkeypatch.setattr(manifest, "_CHUNK", 1000)
    assert entry == read_entry(path) and entry.bytes == 50


def make(folder: Path, *steps: int, latest: str | bytes | None = None) -> None:
    for step in steps:
        (folder / checkpoint_name(step)).mkdir(parents=True)
    if latest is not None:
        text = latest if isinstance(latest, bytes) else latest.encode()
        (folder / "latest").write_bytes(text)


@pytest.mark.parametrize(
    ("steps", "latest", "order", "problem", "certain"),
    [
        ((), None, [], None, None),
        ((), "step-00000003", [], None, None),
        ((3, 6), "step-00000006", [6, 3], None, None),
        ((3, 6), "step-00000006\n", [6, 3], None, None),
        ((3,), None, [3], "latest is not there", False),  # killed before it was written
        ((3, 6), None, [6, 3], "latest is not there", True),
        ((3, 6), "", [6, 3], "names no checkpoint", True),
        ((3, 6), b"\xff\xfe", [6, 3], "names no checkpoint", True),
        ((3, 6), "step-0000", [6, 3], "names no checkpoint", True),
        ((3, 6), "../step-00000003", [6, 3], "names no checkpoint", True),
        ((3, 6), "step-00000009", [6, 3], "step-00000009, which is not there", True),
        ((3, 6), "step-00000004", [3], "step-00000004, which is not there", True),
        ((3, 6), "step-00000001", [6, 3], "step-00000001, which is not there", True),
        ((3, 6, 9), "step-00000006", [6, 3], "though step-00000009 is there", False),
        ((99999999, 100000000), "step-100000000", [100000000, 99999999], None, None),
    ],
)
def test_candidates_in_order(
    tmp_path: Path,
    steps: tuple[int, ...],
    latest: str | bytes | None,
    order: list[int],
    problem: str | None,
    certain: bool | None,
) -> None:
    make(tmp_path, *steps, latest=latest)
    for other in ("tmp-step-00000007", "step-7", "step-00000008.bak", "universal-step-00000003"):
        (tmp_path / other).mkdir()
    assert [path.name for path in resume_candidates(tmp_path)] == list(map(checkpoint_name, order))
    found = latest_problem(tmp_path)
    assert (found is None) == (problem is None)
    if found is not None and problem is not None:
        assert problem in found[0] and str(tmp_path / "latest") in found[0]
        assert found[1] is certain


def test_no_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert resume_candidates(tmp_path / "absent") == [] == checkpoints(tmp_path / "absent")
    assert latest_problem(tmp_path / "absent") is None


def save(folder: Path, step: int, keep_last: int = 2, content: str = "shard") -> None:
    """What `Saver` does on rank 0."""
    name = checkpoint_name(step)
    unfinished = folder / unfinished_name(name)
    manifest.remove_unfinished(folder)
    unfinished.mkdir(parents=True)
    for file in ("a.pt", "b.pt"):
        (unfinished / file).write_text(f"{content} {step}")
        sync(unfinished / file)
    files = {file.name: read_entry(file) for file in unfinished.iterdir()}
    write_manifest(unfinished, Manifest(step, 2, 3, files=files))
    publish(unfinished, folder / name)
    prune(folder, name, keep_last)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(path: Path) -> None:
    assert damage(path, read_manifest(path)) == []


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep_last: int) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep_last)
        assert (tmp_path / "latest").read_text() == checkpoint_name(step)
        assert resume_candidates(tmp_path)[0].name == checkpoint_name(step)
    kept = [checkpoint_name(step) for step in (2, 4, 6, 8)[-keep_last:]]
    assert names(tmp_path) == ["latest", *kept]
    for name in kept:
        assert_whole(tmp_path / name)


def test_what_is_newer_than_the_run_goes_with_its_next_save(tmp_path: Path) -> None:
    """A run that was resumed from step 2 although 4 and 6 were there."""
    for step in (2, 4, 6):
        save(tmp_path, step, keep_last=3)
    (tmp_path / "universal-step-00000002").mkdir()
    (tmp_path / "tmp-step-00000007").mkdir()
    save(tmp_path, 4, keep_last=3, content="again")
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000004"]
    assert (tmp_path / "step-00000004" / "a.pt").read_text() == "again 4"
    assert_whole(tmp_path / "step-00000004")


def test_pruning_minds_no_leftovers_of_the_same_name(tmp_path: Path) -> None:
    save(tmp_path, 2)
    for left in ("tmp-old-step-00000002", "tmp-replaced-step-00000004"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "x").write_text("left over")
    prune(tmp_path, save_only(tmp_path, 4), keep_last=1)
    assert names(tmp_path) == ["latest", "step-00000004"]


def save_only(folder: Path, step: int) -> str:
    name = checkpoint_name(step)
    (folder / unfinished_name(name)).mkdir()
    write_manifest(folder / unfinished_name(name), Manifest(step, 1, 0))
    publish(folder / unfinished_name(name), folder / name)
    return name


class Killed(BaseException):
    """Nothing that code may catch."""


# What a save asks the system for; after any of these the process may be gone.
CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


def killed_after(
    calls: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> list[str] | None:
    """Runs `action` until so many calls are made; what was called, None where it came to its end.

    What is written to files before the call is there, as after kill -9.
    """
    called: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if len(called) == calls:
                raise Killed
            result = real(*arguments, **options)
            called.append(name)
            return result

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name))
        try:
            action()
        except Killed:
            return called
    return None


@pytest.mark.parametrize("keep_last", [1, 2])
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_killed_anywhere_in_a_save_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_last: int, again: bool
) -> None:
    """After every call of a save: what was reported is whole, and the next save tidies up."""
    seen: set[str] = set()
    calls = 0
    while True:
        folder = tmp_path / str(calls)
        for step in (2, 4):
            save(folder, step, keep_last=2)
        step = 6
        if again:  # resumed from 2, so that 4 is saved a second time
            (folder / "latest").write_text("step-00000002")
            step = 4
        called = killed_after(calls, lambda: save(folder, step, keep_last, "new"), monkeypatch)  # noqa: B023
        if called is None:
            break
        assert len(called) == calls
        seen |= set(called)
        best = resume_candidates(folder)[0]
        assert_whole(best)
        assert int(best.name[5:]) >= (2 if again else 4)
        for path in checkpoints(folder):
            assert_whole(path)
        if "rename" not in called:
            assert best.name == ("step-00000002" if again else "step-00000004")
        save(folder, 8, keep_last)
        kept = [p.name for p in checkpoints(folder)]
        assert names(folder) == ["latest", *kept] and kept[-1] == "step-00000008"
        assert len(kept) <= keep_last
        calls += 1
    assert calls > 10 and seen >= {"mkdir", "fsync", "rename", "replace"}
    assert keep_last == 2 or seen == set(CALLS)
    assert resume_candidates(folder)[0].name == checkpoint_name(step)
    assert (folder / checkpoint_name(step) / "a.pt").read_text() == f"new {step}"


def test_negative_control_another_order_of_a_save_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`latest` moved, or the older one removed, before the new one is whole."""

    def careless(folder: Path) -> None:
        (folder / "step-00000006").mkdir()
        (folder / "latest").write_text("step-00000006")
        sync(folder / "latest")
        write_manifest(folder / "step-00000006", Manifest(6, 1, 0))

    save(tmp_path, 4)
    assert killed_after(1, lambda: careless(tmp_path), monkeypatch) == ["mkdir"]
    with pytest.raises(DamagedCheckpoint):
        assert_whole(resume_candidates(tmp_path)[0])


def test_names_come_after_their_content_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was waited for: files, the folder, then its name, then `latest`."""
    events: list[str] = []
    fsync, rename, replaced = os.fsync, os.rename, os.replace

    def name_of(path: Any) -> str:
        return Path(path).name

    def watched_sync(descriptor: int) -> None:
        events.append(f"sync {name_of(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def watched(kind: str, real: Any) -> Any:
        def call(a: Any, b: Any, **options: Any) -> None:
            events.append(f"{kind} {name_of(b)}")
            real(a, b, **options)

        return call

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "rename", watched("rename", rename))
    monkeypatch.setattr(os, "replace", watched("replace", replaced))
    folder = tmp_path / "checkpoints"
    save(folder, 2)
    assert events == [
        "sync a.pt",
        "sync b.pt",
        "sync manifest.json",
        "sync latest.tmp",
        "sync tmp-step-00000002",
        "rename step-00000002",
        "sync checkpoints",
        "replace latest",
        "sync checkpoints",
    ]


def test_a_full_disk_while_publishing_leaves_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)
    unfinished = tmp_path / "tmp-step-00000004"
    unfinished.mkdir()
    write_manifest(unfinished, replace(read_manifest(tmp_path / "step-00000002"), step=4))

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        publish(unfinished, tmp_path / "step-00000004")
    assert [path.name for path in resume_candidates(tmp_path)] == ["step-00000002"]
    assert not (tmp_path / "step-00000004").exists()
