"""Named test sets, read from the caches of the libraries that hold them."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from cached_test_sets import cache_dataset, cache_wmt
from sacrebleu.utils import DATASETS

from cpo_ds.errors import UserError
from cpo_ds.translate.test_sets import read_test_set


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path


def read(name: str) -> list[dict[str, str]]:
    sources = read_test_set(name)
    assert all(row.where.startswith(f"{name}, line ") for row in sources.rows)
    return [row.values for row in sources.rows]


def row(pair: str, source: str, reference: str) -> dict[str, str]:
    return {"language_pair": pair, "source": source, "reference": reference}


def test_a_wmt_test_set_of_sacrebleu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DATASETS["wmt22"], "_outdir", str(tmp_path))
    monkeypatch.setattr(DATASETS["wmt22"], "_rawdir", str(tmp_path / "raw"))
    cache_wmt(tmp_path, "wmt22", "en-de", [("One &amp; two.", "Eins."), ("Three.", "Drei.")])
    rows = read("wmt22:en-de")
    assert rows == [row("en-de", "One & two.", "Eins."), row("en-de", "Three.", "Drei.")]


def test_wmt24pp_leaves_bad_sources_out(cache: Path) -> None:
    texts = [("One.", "Um.", False), ("@@@", "x", True), ("Two.", "Dois.", False)]
    rows = [{"source": s, "target": t, "is_bad_source": bad} for s, t, bad in texts]
    cache_dataset(cache, "google/wmt24pp", "en-pt_BR", "train", rows)
    sources = read_test_set("wmt24pp:en-pt_BR")
    assert sources.skipped == {"marked as a bad source": 1}
    assert [r.values for r in sources.rows] == [
        row("en-pt", "One.", "Um."), row("en-pt", "Two.", "Dois.")
    ]  # fmt: skip


def test_flores_is_aligned_by_id(cache: Path) -> None:
    for code, texts in {"deu_Latn": "Zwei. Eins.", "cmn_Hans": "一。 二。"}.items():
        ids = (2, 1) if code == "deu_Latn" else (1, 2)
        rows = [{"id": i, "text": t} for i, t in zip(ids, texts.split(), strict=True)]
        cache_dataset(cache, "openlanguagedata/flores_plus", code, "devtest", rows)
    expected = [row("de-zh", "Zwei.", "二。"), row("de-zh", "Eins.", "一。")]
    assert read("flores+:de-zh") == read("flores+:deu_Latn-cmn_Hans") == expected


def test_ntrex_has_a_column_for_each_language(cache: Path) -> None:
    cache_dataset(
        cache, "mteb/NTREX", "default", "test",
        [{"eng_Latn": "One.", "est_Latn": "Üks.", "bos_Latn": "Jedan."}],
    )  # fmt: skip
    assert read("ntrex:et-en") == [row("et-en", "Üks.", "One.")]
    assert read("ntrex:en-bos_Latn") == [row("en-bos_Latn", "One.", "Jedan.")]
    with pytest.raises(UserError, match="mteb/NTREX has no language deu_Latn"):
        read("ntrex:en-de")


@pytest.mark.parametrize(
    "name, said",
    [
        ("wmt22", "write SET:DIRECTION"),
        ("wmt22:", "write SET:DIRECTION"),
        ("wmt222:en-de", r"there is no test set wmt222 \(did you mean wmt22"),
        ("wmt22:en-is", "wmt22 has no direction en-is; it has cs-en, "),
        ("wmt24pp:en-de_DE", "HF_HUB_OFFLINE is set|hub is not asked|does not answer"),
        ("wmt24pp:English", "unknown direction 'English'"),
        ("flores+:en-bos", "write 'bos' as the test set names it, with its script"),
        ("flores+:en-de", r"the test set flores\+:en-de \(dataset openlanguagedata/flores_plus, "),
    ],
)
def test_what_cannot_be_read_is_said(cache: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_test_set(name)


def test_a_test_set_that_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own downloader finds no server."""
    monkeypatch.setattr(DATASETS["wmt23"], "_outdir", str(tmp_path))
    monkeypatch.setattr(DATASETS["wmt23"], "_rawdir", str(tmp_path / "raw"))
    monkeypatch.setattr(DATASETS["wmt23"], "data", ["http://127.0.0.1:9/none.tar.gz"])
    with pytest.raises(UserError, match=r"wmt23:en-de is not on this machine and cannot be down"):
        read_test_set("wmt23:en-de")
