"""Files, folders and data sets as sources of rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from preference_data import ALMA, PAIR, TRIPLET, X_ALMA, alma, pairs_of, read, write, write_parquet

from cpo_ds.errors import UserError


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f"\ufeff{json.dumps(PAIR)}\r\n\n  \n{json.dumps(PAIR)}", encoding="utf-8")
    rows, report = read(path, "pairs")
    assert [row.origin for row in rows] == [f"{path}:1", f"{path}:4"]
    assert report.read == 2 and report.dropped == {"blank line": 2}


def test_folder_is_read_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/d.jsonl", ".cache/e.jsonl"):
        write(tmp_path / name, [PAIR | {"prompt": name}, PAIR | {"prompt": name.upper()}])
    write_parquet(tmp_path / "c.parquet", [PAIR | {"prompt": "c.parquet"}])
    (tmp_path / "readme.txt").write_text("not data")
    rows, _ = read(tmp_path, "pairs")
    assert [row.prompt for row in rows] == [
        *("a.jsonl.gz", "A.JSONL.GZ", "b.jsonl", "B.JSONL"),
        *("c.parquet", "sub/d.jsonl", "SUB/D.JSONL"),
    ]
    assert rows[3].origin == f"{tmp_path}/b.jsonl:2"


def test_parquet_rows_are_numbered(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [alma(), alma(alma_en_kiwi_xcomet=None)])
    with pytest.raises(UserError, match=r"a.parquet, row 2: .*alma_en_kiwi_xcomet is missing"):
        read(path, "alma-r")
    other = TRIPLET | {"candidates": {"x": "Na", "y": "Hoi"}, "scores": {"kiwi": {"x": 1, "y": 0}}}
    path = write_parquet(tmp_path / "t.parquet", [TRIPLET, other])  # nulls for names that differ
    assert [pair[1:] for pair in pairs_of(path, "triplets", scorer="kiwi")] == [
        ("Hallo", "He"),
        ("Na", "Hoi"),
    ]


def test_saved_dataset(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list([X_ALMA, X_ALMA | {"chosen": "Moin"}])
    dataset.save_to_disk(str(tmp_path / "one"))
    assert [pair[1] for pair in pairs_of(tmp_path / "one", "x-alma")] == ["Hallo", "Moin"]
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "two"))
    rows, _ = read(tmp_path / "two", "x-alma")
    assert rows[1].origin == f"{tmp_path / 'two'}:2"
    with pytest.raises(UserError, match=r"has no split 'test'; set data.split to one of: train"):
        read(tmp_path / "two", "x-alma", split="test")
    (tmp_path / "two" / "train" / "state.json").write_text("{")
    with pytest.raises(UserError, match="not a whole saved dataset"):
        read(tmp_path / "two", "x-alma")


def test_dataset_by_name_loads_all_configurations_where_none_is_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def load(name: str, config: str, split: str) -> Any:
        assert split == "train"
        pair = dict.fromkeys(["language_pair", "required_directions"], config)
        moved = {key.replace("_de", f"_{config[:2]}"): value for key, value in ALMA.items()}
        return datasets.Dataset.from_list([{"translation": moved | {config[:2]: "x"} | pair}])

    monkeypatch.setattr(datasets, "get_dataset_default_config_name", lambda name: None)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["de-en", "cs-en"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    rows, _ = read("someone/preferences", "alma-r")
    assert [(row.direction, row.origin) for row in rows] == [
        ("cs-en", "someone/preferences/cs-en:1"),
        ("de-en", "someone/preferences/de-en:1"),
    ]
    monkeypatch.setattr(datasets, "get_dataset_default_config_name", lambda name: "de-en")
    rows, _ = read("someone/preferences", "alma-r")
    assert [row.origin for row in rows] == ["someone/preferences:1"]


@pytest.mark.parametrize(
    "path", ["gone.jsonl", "a/gone.parquet", "./x", "../x", "/no/such", "~/no/such", "a/b/c", "x y"]
)
def test_missing_local_path_is_not_looked_up_as_a_dataset(path: str) -> None:
    with pytest.raises(UserError, match=f"data path '{path}' does not exist"):
        read(path, "pairs")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.jsonl", b"", "p.jsonl is empty"),
        ("p.jsonl", b"\n \n", "p.jsonl is empty"),
        ("p.jsonl", b"\n{]", "p.jsonl, line 2: not valid JSON"),
        ("p.jsonl", b"\n\n[1]", r"p.jsonl, line 3: not a JSON object but \[1\]"),
        ("p.jsonl", b'\n{"a": "\xff"}', "p.jsonl, line 2: not valid UTF-8 at byte 8"),
        ("p.jsonl.gz", b"plain", "p.jsonl.gz is a damaged gzip file after line 0"),
        # mtime: two pytest processes must come to the same name for the same test.
        ("p.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:20], "p.jsonl.gz is a damaged gzip file"),
        ("p.parquet", b"plain", "p.parquet is not a valid parquet file"),
        ("p.pairs", b"{}", "p.pairs does not end in .jsonl, .csv, .tsv, .parquet, .json, .tmx"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read(path, "pairs")


def test_folder_without_data_and_empty_member(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no file ending in"):
        read(tmp_path, "pairs")
    write(tmp_path / "a.jsonl", [PAIR])
    write(tmp_path / "b.jsonl", [])
    with pytest.raises(UserError, match=r"b\.jsonl is empty"):
        read(tmp_path, "pairs")


def test_a_date_out_of_range_stops_only_rows_that_need_it(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = {name: ["a", f"{name} text"] for name in ("prompt", "chosen", "rejected")}
    dates = pyarrow.array([0, 2**62], pyarrow.timestamp("us"))
    path = tmp_path / "dated.parquet"
    pyarrow.parquet.write_table(pyarrow.table(texts | {"when": dates}), path)
    rows, report = read(path, "pairs")
    assert [row.chosen for row in rows] == ["chosen text"] and report.read == 2
    pyarrow.parquet.write_table(pyarrow.table(texts | {"chosen": dates}), path)
    with pytest.raises(UserError, match=r"dated.parquet, row 1: field chosen is not a string"):
        read(path, "pairs")
    only_bad = pyarrow.table(texts | {"chosen": dates}).slice(1)
    pyarrow.parquet.write_table(only_bad, path)
    with pytest.raises(UserError, match=r"is not a string but an unreadable value \("):
        read(path, "pairs")
