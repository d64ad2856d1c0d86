"""Manifests of checkpoints: read as written, and every damage is found."""

from __future__ import annotations

import json
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
    damage,
    read_entry,
    read_manifest,
    write_manifest,
)

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
    refused = 0
    for index in range(len(good)):
        changed = bytearray(good)
        for byte in (good[index] ^ 1, good[index] ^ 64, 0, ord(" "), ord('"'), ord("9")):
            if byte == good[index]:
                continue
            changed[index] = byte
            path.write_bytes(changed)
            try:
                assert read_manifest(tmp_path) == written  # white space, say
            except DamagedCheckpoint as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 5 * len(good) * 0.8
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
    """The manifest's own checksum fits its content."""
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
