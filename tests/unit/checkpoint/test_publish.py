"""Saving a checkpoint: names come after content, and a kill anywhere leaves one to resume from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpo_ds.checkpoint.manifest import (
    DamagedCheckpoint,
    Manifest,
    damage,
    read_entry,
    read_manifest,
    write_manifest,
)
from cpo_ds.checkpoint.publish import (
    checkpoint_name,
    checkpoints,
    prune,
    publish,
    remove_unfinished,
    resume_candidates,
    unfinished_name,
)
from cpo_ds.storage.files import sync


def save(folder: Path, step: int, keep_last: int = 2, content: str = "shard") -> None:
    """Saves a checkpoint as `Saver` does on rank 0."""
    name = checkpoint_name(step)
    unfinished = folder / unfinished_name(name)
    remove_unfinished(folder)
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
    """A run resumed from step 2, although checkpoints of 4 and 6 existed."""
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
    """A kill, which no code may catch."""


# What a save asks the system for; after any of these the process may be gone.
CALLS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


def killed_after(
    calls: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> list[str] | None:
    """Runs `action` until `calls` calls of the file system; returns the last one, None at the end.

    Files keep everything that was written before the call, as after kill -9.
    """
    # Each call of the file system is counted; the one after the last allowed one kills.
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
    """After a kill at any call, reported checkpoints are whole and the next save tidies up."""
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
    """Syncs come in an order that survives a power cut: files, folder, its name, then `latest`."""
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

    # A save, with its syncs and renames noted.
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
