"""Signs of life: work that counts, bytes that move, ranks that wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from counted_work import counted
from helpers import tiny_model, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.checkpoint import manifest
from cpo_ds.data.rows import read_rows
from cpo_ds.data.tokenize import tokenize_rows
from cpo_ds.model.fingerprint import weights_fingerprint
from cpo_ds.ranks.liveness import Beat, ByteWatch, own_beat, ranks_behind
from cpo_ds.settings.data import DataConfig


def test_reading_and_tokenizing_count_as_they_go() -> None:
    rows, report = read_rows(DataConfig(format="sample"), None)
    assert counted(lambda: read_rows(DataConfig(format="sample"), None)) >= report.read > 200

    def tokenize(times: int) -> Callable[[], object]:
        return lambda: tokenize_rows(
            rows * times, tiny_tokenizer(), max_prompt_tokens=400, max_tokens=800, sharing="common"
        )

    assert counted(tokenize(20)) > counted(tokenize(1)) > 0


def test_verifying_and_taking_fingerprints_count_as_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    monkeypatch.setattr(manifest, "_CHUNK", 1_000)
    assert counted(lambda: manifest.read_entry(tmp_path / "file")) == 10
    model = tiny_model()
    assert counted(lambda: weights_fingerprint(model, lambda sums: None)) >= len(
        list(model.parameters())
    )


def test_bytes_that_are_read_or_written_show(tmp_path: Path) -> None:
    watch, file = ByteWatch(), tmp_path / "file"
    assert not watch.has_moved(1.0)
    file.write_bytes(bytes(2**20))
    assert watch.has_moved(1.0)
    assert not watch.has_moved(1.0)
    file.read_bytes()
    assert watch.has_moved(1.0)
    file.write_bytes(b"a few: what ranks say of themselves each second")
    assert not watch.has_moved(1.0)


def test_bytes_that_threads_without_python_write_show(tmp_path: Path) -> None:
    """safetensors writes an export in one call, without any Python in between."""
    from safetensors.torch import save_file

    watch = ByteWatch()
    weights = {
        name: p.detach().clone() for name, p in tiny_model(vocab_size=4000).named_parameters()
    }
    save_file(weights, tmp_path / "file.safetensors")
    assert watch.has_moved(1.0)


BEATS = st.dictionaries(
    st.integers(0, 9),
    st.builds(
        Beat, st.just(0.0), st.integers(0, 99), st.integers(0, 3), st.booleans(), st.just("x")
    ),
    min_size=1,
)


@given(BEATS)
def test_who_holds_up_the_others(beats: dict[int, Beat]) -> None:
    behind = ranks_behind(beats)
    working = [rank for rank, beat in beats.items() if not beat.waits]
    assert len(behind) < len(beats)
    if 0 < len(working) < len(beats):
        assert behind == working
    elif behind:
        most = max(beats[rank].common_work for rank in behind)
        assert all(most < b.common_work for rank, b in beats.items() if rank not in behind)
    else:
        assert len({beat.common_work for beat in beats.values()}) == 1


@pytest.mark.parametrize(
    ("module", "waits"),
    [("torch.distributed.distributed_c10d", True), ("deepspeed.comm.torch", True), ("slow", False)],
)
def test_a_rank_inside_an_exchange_waits(module: str, waits: bool) -> None:
    names: dict[str, object] = {"__name__": module}
    exec("import time\ndef collective(): time.sleep(0.5)", names)
    seen: list[Beat] = []
    looker = threading.Timer(0.2, lambda: seen.append(own_beat()))
    looker.start()
    names["collective"]()  # type: ignore[operator]
    looker.join()
    assert seen[0].waits is waits
    assert not own_beat().waits
