"""Hostfiles: read as the launcher reads them, and names of many hosts in short."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpo_ds.doctor.hostfile import (
    Host,
    fold,
    has_byte_order_mark,
    hostfile_text,
    parse_hostfile,
    read_hostfile,
)
from cpo_ds.doctor.reachable import usable_hosts
from cpo_ds.ranks.relaunch import _without_mark

NAME = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(\.x)?", fullmatch=True)
HOSTS = st.lists(st.builds(Host, NAME, st.integers(1, 16)), min_size=1, unique_by=lambda h: h.name)


@settings(deadline=None)  # the first import of DeepSpeed takes seconds
@given(HOSTS, st.lists(st.sampled_from(["# gpu7 slots=8", "", "   "]), max_size=3))
def test_a_hostfile_is_read_as_the_launcher_reads_it(hosts: list[Host], between: list[str]) -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    lines = [*between, *hostfile_text(hosts).splitlines(), *between]
    read = parse_hostfile("\n".join(lines))
    assert [(host.name, host.slots) for host in read] == [(h.name, h.slots) for h in hosts]
    assert [lines[host.line - 1].split()[0] for host in read] == [host.name for host in hosts]
    assert dict(_parse_hostfile(lines)) == {host.name: host.slots for host in hosts}


@pytest.mark.parametrize(
    "text, said",
    [
        ("a slots=1\nb\n", r":2: 'b': no slots; write a line"),
        ("a slots = 2\n", ":1: .*: slots has to follow the name, not 'slots'"),
        ("a slots=x\n", ":1: .*not 'slots=x'"),
        ("\n\na slots=0\n", ":3: .*a host needs a slot"),
        ("slots=4\n", ":1: 'slots=4': no slots"),
        ("-oProxyCommand=x slots=1\n", ":1: .*a host needs a name"),
        ("a slots=1\n# b\na slots=2\n", ":3: a is on line 1 already"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_bad_hostfile_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_hostfile(text)


def test_a_byte_order_mark_is_skipped_and_told(tmp_path: Path) -> None:
    """Some editors write it, and lines that end in a carriage return."""
    from deepspeed.launcher.runner import fetch_hostfile

    plain, marked = tmp_path / "plain", tmp_path / "marked"
    plain.write_bytes(b"gpu1 slots=2\r\ngpu2 slots=1\r\n")
    marked.write_bytes(codecs.BOM_UTF8 + plain.read_bytes())
    assert read_hostfile(marked) == read_hostfile(plain) == (Host("gpu1", 2, 1), Host("gpu2", 1, 2))
    assert has_byte_order_mark(marked) and not has_byte_order_mark(plain)
    # The launcher of `prepare` gets the hostfile without it.
    assert dict(fetch_hostfile(_without_mark(str(marked)))) == {"gpu1": 2, "gpu2": 1}
    assert _without_mark(str(plain)) == str(plain)
    assert "\ufeffgpu1" in fetch_hostfile(str(marked))  # negative control


@given(st.lists(NAME, unique=True))
def test_folded_names_unfold(names: list[str]) -> None:
    unfolded = []
    for part in filter(None, fold(names).split(", ")):
        match = re.fullmatch(r"(.*)\[(\d+)-(\d+)\](.*)", part)
        if match is None:
            unfolded.append(part)
            continue
        stem, first, last, rest = match.groups()
        numbers = range(int(first), int(last) + 1)
        unfolded += [f"{stem}{n:0{len(first)}}{rest}" for n in numbers]
    assert unfolded == names


def test_names_in_a_row_are_folded() -> None:
    assert fold(["gpu08", "gpu09", "gpu10", "x", "gpu12"]) == "gpu[08-10], x, gpu12"


@given(st.lists(st.tuples(st.integers(1, 8), st.one_of(st.integers(0, 8), st.just("it is off")))))
def test_hosts_that_are_left_keep_their_order(drawn: list[tuple[int, int | str]]) -> None:
    counts = {Host(f"h{i}", slots): count for i, (slots, count) in enumerate(drawn)}
    left, reasons = usable_hosts(counts)
    any_gpu = any(isinstance(count, int) and count for count in counts.values())
    expected = {
        host.name: min(host.slots, count) if any_gpu else host.slots
        for host, count in counts.items()
        if isinstance(count, int) and (count or not any_gpu)
    }
    assert [(host.name, host.slots) for host in left] == list(expected.items())
    changed = [host for host in counts if expected.get(host.name) != host.slots]
    assert len(reasons) == len(changed)
