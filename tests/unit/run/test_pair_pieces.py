"""Pairs that are made in pieces are those of plain lists: tokens, order, counts and errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pair_rows
import pytest
from pairs_plainly import pairs_plainly, values_of
from preference_data import write, write_parquet

from cpo_ds.config import Config
from cpo_ds.data import pair_inputs, pieces
from cpo_ds.data.pair_columns import (
    PairColumns,
    count_directions,
    lengths_of,
    pairs_fingerprint,
    pairs_with_logps,
)
from cpo_ds.errors import UserError
from cpo_ds.run.pairs import prepare_pairs

PLAIN = {"special_tokens": "plain"}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "x-alma": ("x-alma", {}),
    "a part is held out": ("x-alma", {"data": {"eval_fraction": 0.2}}),
    "another seed": ("x-alma", {"data": {"eval_fraction": 0.2}, "train": {"seed": 7}}),
    "short": ("x-alma", {"data": {"max_prompt_tokens": 70, "max_tokens": 120}}),
    "one direction": ("x-alma", {"data": {"directions": ["en-de"], "eval_fraction": 0.1}}),
    "no sharing": ("x-alma", {"batch": {"share_prefix": "none"}}),
    "prompts are shared": ("x-alma", {"batch": {"share_prefix": "prompt"}}),
    "always begins": ("x-alma", {"data": {"add_bos": "always"}}),
    "never begins": ("x-alma", {"data": {"add_bos": "never"}}),
    "as chats": ("x-alma", {"data": {"prompt_style": "chat", "eval_fraction": 0.3}}),
    "alma-r": ("alma-r", {"data": {"eval_fraction": 0.2}}),
    "triplets": ("triplets", {"data": {"scorer": "kiwi", "eval_fraction": 0.1}}),
    "pairs": ("pairs", {"data": PLAIN | {"eval_fraction": 0.1}}),
    "parsed": ("pairs", {"data": {"special_tokens": "parsed"}}),
    "neither": ("pairs", {"data": {}}),
    "chats": ("chats", {"data": {"eval_fraction": 0.1}}),
    "lists": ("lists", {"data": PLAIN | {"eval_fraction": 0.1}}),
    "short lists": ("lists", {"data": PLAIN | {"max_prompt_tokens": 70, "max_tokens": 60}}),
    "lists of chats": ("lists of chats", {"data": {"eval_fraction": 0.1}}),
    "rows of their own": ("x-alma", {"data": {"eval_path": "HELD_OUT"}}),
}


def recipe(folder: Path, name: str, count: int = 120) -> Config:
    kind, sections = SETTINGS[name]
    path = pair_rows.write_rows(folder / "rows.jsonl", kind, count)
    is_format = kind in ("x-alma", "alma-r", "triplets", "pairs")
    data = {"format": kind if is_format else "pairs"} | sections.get("data", {})
    if data.get("eval_path"):
        data["eval_path"] = str(pair_rows.write_rows(folder / "held_out.jsonl", kind, 30, seed=9))
    return pair_rows.make(folder, path, **sections | {"data": data})


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("size", [7, 1000])
def test_pieces_give_the_pairs_of_plain_lists(
    tmp_path: Path,
    name: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = recipe(tmp_path, name)
    monkeypatch.setattr(pair_inputs, "raw_pieces", partial(pieces.raw_pieces, size=size))
    train, held_out, lines = pairs_plainly(config)
    assert len(train) > 20 and any("dropped" in line for line in lines)
    prepared = prepare_pairs(config, prints_counts=True)
    assert capsys.readouterr().out.splitlines() == lines
    for columns, plain in ((prepared.train, train), (prepared.held_out, held_out)):
        assert isinstance(columns, PairColumns) and len(columns) == len(plain)
        assert [values_of(pair) for pair in columns] == [values_of(pair) for pair in plain]
        assert (
            pairs_fingerprint(columns) == pairs_fingerprint(plain) == pairs_fingerprint([*columns])
        )
        assert lengths_of(columns).tolist() == lengths_of(plain).tolist()
        assert count_directions(columns) == count_directions(plain)


def test_columns_are_a_sequence_of_pairs(tmp_path: Path) -> None:
    train = prepare_pairs(recipe(tmp_path, "x-alma"), prints_counts=False).train
    every = list(train)
    assert [p.origin for p in train[3:9:2]] == [p.origin for p in every[3:9:2]]
    assert train[-1].origin == every[-1].origin and train[-len(train)].origin == every[0].origin
    for index in (len(train), -len(train) - 1):
        with pytest.raises(IndexError):
            train[index]
    logps = lengths_of(train)[:, None].astype("float32") * [0.1, 0.2]
    for kind in (train, every):
        scored = pairs_with_logps(kind, logps)
        assert scored[5].reference_logps == tuple(logps[5].tolist())
        assert scored[5].origin == every[5].origin and every[5].reference_logps is None


X_ALMA = {"source": "the old", "chosen": "das alte", "reject": "Haus", "directions": "en-de"}
FAULTS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "a bad row": ([X_ALMA] * 20 + [X_ALMA | {"chosen": ""}, "no object"], {}),
    "no JSON after a bad row": ([X_ALMA] * 3 + [X_ALMA | {"chosen": 1}, X_ALMA, "{"], {}),
    "no JSON": ([X_ALMA] * 9 + ["{"], {}),
    "a bad direction": ([X_ALMA] * 9 + [X_ALMA | {"directions": "german"}], {}),
    "no name": ([X_ALMA] * 9 + [X_ALMA | {"directions": "en-bn"}], {}),
    "no such direction": ([X_ALMA] * 9, {"directions": ["cs-en"]}),
    "nothing left": ([X_ALMA | {"reject": "das alte"}] * 9, {}),
    "all too long": ([X_ALMA] * 9, {"max_prompt_tokens": 1}),
    "nothing to hold out": ([X_ALMA] * 9, {"eval_fraction": 0.5}),
    "no held-out file": ([X_ALMA] * 9, {"eval_path": "gone.jsonl"}),
    "empty": ([], {}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_are_those_of_plain_lists(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = FAULTS[name]
    path = write(tmp_path / "rows.jsonl", rows)
    path.write_bytes(path.read_bytes().replace(b'"{"', b"{"))
    config = pair_rows.make(tmp_path, path, data=settings)
    monkeypatch.setattr(pair_inputs, "raw_pieces", partial(pieces.raw_pieces, size=4))
    errors = []
    for prepare in (pairs_plainly, partial(prepare_pairs, prints_counts=False)):
        with pytest.raises(UserError) as error:
            prepare(config)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_parquet_folders_and_the_sample_give_the_same(tmp_path: Path) -> None:
    rows = [X_ALMA | {"source": f"the old {n}"} for n in range(20)]
    write(tmp_path / "folder" / "b.jsonl.gz", rows)
    write_parquet(tmp_path / "folder" / "a" / "c.parquet", rows)
    for path, format in ((tmp_path / "folder", "x-alma"), (None, "sample")):
        config = pair_rows.make(tmp_path, path, data={"format": format, "eval_fraction": 0.2})
        train, held_out, _ = pairs_plainly(config)
        prepared = prepare_pairs(config, prints_counts=False)
        both = [values_of(pair) for pair in (*prepared.train, *prepared.held_out)]
        assert both == [values_of(pair) for pair in (*train, *held_out)]


def test_a_text_that_no_token_spells_is_named_as_by_plain_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer in Python cannot take special tokens as characters within a template."""
    config = recipe(tmp_path, "as chats")
    monkeypatch.setattr("cpo_ds.data.tokenize.TextEncoder.encode", _encode_or_fail)
    monkeypatch.setattr(pair_inputs, "raw_pieces", partial(pieces.raw_pieces, size=7))
    errors = []
    for prepare in (pairs_plainly, partial(prepare_pairs, prints_counts=False)):
        with pytest.raises(UserError) as error:
            prepare(config)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def _encode_or_fail(self: Any, texts: list[str]) -> list[list[int]]:
    for text in texts:
        if "stará voda" in text:
            raise UserError(f"{text} cannot be taken")
    return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
