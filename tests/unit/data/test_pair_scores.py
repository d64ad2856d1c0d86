"""Scores of the completions in the format `pairs`: what is read, refused, dropped and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import save_tiny_model, tiny_tokenizer
from preference_data import PAIR, TRIPLET, alma, render_chat, write

from cpo_ds.config import Config
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.data.pack import pack
from cpo_ds.data.pair_columns import pairs_fingerprint, pairs_with_logps
from cpo_ds.data.pair_file import map_file, read_pairs
from cpo_ds.data.rows import RowReport, read_rows
from cpo_ds.data.tokenize import PairRules, outcomes
from cpo_ds.errors import UserError
from cpo_ds.recipe import parse_config
from cpo_ds.run import pair_cache
from cpo_ds.run.pair_cache import keep_pairs
from cpo_ds.run.pairs import open_inputs
from cpo_ds.schema import PreferenceRow
from cpo_ds.settings.data import DataConfig

MANY = [" He", " Hej", " Ho"]
Scores = tuple[float, ...]


def scored(rejected: Any, chosen_score: Any, rejected_score: Any, **others: Any) -> dict[str, Any]:
    scores = {"chosen_score": chosen_score, "rejected_score": rejected_score}
    return PAIR | {"rejected": rejected} | scores | others


def scores_of(folder: Path, *rows: dict[str, Any]) -> tuple[list[Scores | None], RowReport]:
    """The scores of each kept row, and the report."""
    data = DataConfig(format="pairs", path=str(write(folder / "p.jsonl", list(rows))))
    kept, report = read_rows(data, render_chat, with_scores=True)
    return [row.scores for row in kept], report


def test_scores_of_one_text_and_of_several(tmp_path: Path) -> None:
    kept, report = scores_of(
        tmp_path, scored(" He", 0.5, -1), scored(MANY, 4, [3, 1.5, 2]), scored([" He"], 1, [0])
    )
    assert kept == [(0.5, -1.0), (4.0, 3.0, 1.5, 2.0), (1.0, 0.0)]
    assert not any("score" in line for line in report.lines())


def test_scores_of_conversations(tmp_path: Path) -> None:
    chosen, *rejected = ([{"role": "assistant", "content": text}] for text in ("Ja", "He", "Ho"))
    row = {"prompt": [{"role": "user", "content": "Hi?"}], "chosen": chosen}
    one = row | {"rejected": rejected[0], "chosen_score": 2, "rejected_score": 1}
    several = row | {"rejected": rejected, "chosen_score": 2, "rejected_score": [1, 0]}
    assert scores_of(tmp_path, one, several)[0] == [(2.0, 1.0), (2.0, 1.0, 0.0)]


def test_scores_of_a_csv_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,chosen,rejected,chosen_score,rejected_score\nHi ->, Ja, No,0.75,1e-1\n")
    rows, _ = read_rows(DataConfig(format="pairs", path=str(path)), None, with_scores=True)
    assert [row.scores for row in rows] == [pytest.approx((0.75, 0.1), rel=1e-6)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (scored(MANY, 4, [3, 2]), "rejected_score has 2 scores, but rejected has 3 completions"),
        (scored(MANY, 4, []), "rejected_score is missing, but the row has chosen_score"),
        (scored(MANY, 4, 3), "rejected_score is 3, but rejected is a list; give a list"),
        (scored(" He", 4, [3]), r"rejected_score is not a number but \[3\]"),
        (scored(MANY, [4], [3, 2, 1]), r"chosen_score is not a number but \[4\]"),
        (scored(MANY, 4, [3, True, 1]), r"rejected_score\[1\] is not a number but True"),
        (scored(MANY, 4, [3, "good", 1]), r"rejected_score\[1\] is not a number but 'good'"),
        (scored(MANY, 4, [3, None, 1]), r"rejected_score\[1\] is not a number but None"),
        (scored(" He", float("nan"), 1), "chosen_score is nan; give it a finite number"),
        (scored(" He", 1, float("-inf")), "rejected_score is -inf; give it a finite number"),
        (scored(" He", 1, 10**400), "rejected_score is 1000.*; give it a finite number"),
        (scored(" He", 1e31, 1), r"chosen_score is 1e\+31; give it a finite number"),
        (scored(" He", 1, None), "rejected_score is missing, but the row has chosen_score"),
        (scored(" He", None, 1), "chosen_score is missing, but the row has rejected_score"),
    ],
)
def test_a_bad_score_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"p\.jsonl, line 2: field {message}"):
        scores_of(tmp_path, scored(" He", 1, 0), row)


def with_scores(folder: Path, row: dict[str, Any], format: str, **settings: Any) -> Any:
    data = DataConfig(format=format, path=str(write(folder / "p.jsonl", [row])), **settings)
    kept, report = read_rows(data, render_chat, with_scores=True)
    return [(row.direction, row.chosen, row.rejected, row.scores) for row in kept], report


def test_triplets_have_the_means_that_picked_them(tmp_path: Path) -> None:
    """By the metrics a, b, c have 0.5, 0.15 and 0.65; negated, one that counts errors."""
    kept, _ = with_scores(tmp_path, TRIPLET, "triplets", scorer="kiwi+xcomet")
    assert kept == [("en-de", "Servus", ("He",), pytest.approx((0.65, 0.15)))]
    errors = TRIPLET | {"scorers": {"kiwi": {"lower_is_better": True}}}
    kept, _ = with_scores(tmp_path, errors, "triplets", scorer="kiwi")
    assert kept == [("en-de", "He", ("Hallo",), pytest.approx((-0.1, -0.9)))]
    large = TRIPLET | {"scores": {"kiwi": {"a": 1e31, "b": 0, "c": 1}}}
    with pytest.raises(UserError, match=r"line 1: field scores give a text 1e\+31"):
        with_scores(tmp_path, large, "triplets", scorer="kiwi")
    data = DataConfig(format="triplets", path=str(tmp_path / "p.jsonl"), scorer="kiwi")
    assert len(read_rows(data, None)[0]) == 1  # other objectives take it


def test_alma_rows_have_the_scores_of_the_scorer(tmp_path: Path) -> None:
    kept, report = with_scores(tmp_path, alma(), "alma-r")
    assert kept == [
        ("de-en", "Hello, world.", ("Hello the world.",), pytest.approx((0.9, 0.3))),
        ("en-de", "Hallo Welt.", ("Grüß dich Welt.",), pytest.approx((0.9, 0.5))),
    ]
    assert not report.unscored


def test_alma_rows_with_a_verdict_need_scores_that_agree_with_it(tmp_path: Path) -> None:
    verdict = {"Delta": 1.0, "required_directions": "de-en"}
    kept, _ = with_scores(tmp_path, alma(**verdict), "alma-r")
    assert kept == [("de-en", "Hello, world.", ("Hello the world.",), pytest.approx((0.9, 0.3)))]
    with pytest.raises(UserError, match=r"a rejected completion scores above the chosen one: 1"):
        with_scores(tmp_path, alma(**verdict | {"Delta": -1.0}), "alma-r")
    none = {"gpt4_en_kiwi_xcomet": None, "alma_en_kiwi_xcomet": None}
    message = r"1 of 1 pairs have no scores.*data\.scorer \(kiwi_xcomet\) in rows with a human ver"
    with pytest.raises(UserError, match=message):
        with_scores(tmp_path, alma(**verdict, **none), "alma-r")
    with pytest.raises(UserError, match=r"alma_en_kiwi_xcomet is missing"):
        with_scores(tmp_path, alma(**verdict, alma_en_kiwi_xcomet=None), "alma-r")


def test_scores_in_some_rows_only_are_refused(tmp_path: Path) -> None:
    nulls = scored(MANY, None, [None] * 3)
    rows = [scored(" He", 1, 0), PAIR, scored(" He", 1, 0), nulls]
    with pytest.raises(UserError, match=r"2 of 4 pairs have no scores, the first .*line 2\. loss"):
        scores_of(tmp_path, *rows)
    with pytest.raises(UserError, match=r"p\.jsonl: 2 of 4 pairs have no scores.*p\.jsonl, line 2"):
        keep_pairs(open_inputs(config_of(tmp_path, rows), print), print)


def test_other_names_of_the_fields_are_told(tmp_path: Path) -> None:
    row = PAIR | {"score_chosen": 2, "score_rejected": 1}
    message = "line 1 .rename score_chosen to chosen_score and score_rejected to rejected_score.: "
    with pytest.raises(UserError, match=message.replace(": ", r"\. loss.name: plackett-luce")):
        scores_of(tmp_path, row)


def test_scores_are_not_read_without_need(tmp_path: Path) -> None:
    """Other objectives train on rows with scores of any kind, as before."""
    path = write(tmp_path / "p.jsonl", [scored(MANY, "good", {"a": 1}), PAIR])
    rows, _ = read_rows(DataConfig(format="pairs", path=str(path)), None)
    assert [row.scores for row in rows] == [None, None]


def test_a_rejected_text_above_the_chosen_one_is_dropped_and_counted(tmp_path: Path) -> None:
    data = [scored(MANY, 2, [1, 3, 2]), scored(" He", 1, 1 + 1e-6), scored(MANY, 2, [1, 1, 1])]
    kept, report = scores_of(tmp_path, *data)
    assert kept == [(2.0, 1.0, 2.0), (2.0, 1.0, 1.0, 1.0)]
    assert report.dropped == {"a rejected completion scores above the chosen one": 1}
    assert report.above == 1 and report.tied == 1
    lines = report.lines()
    line = "  rejected completions dropped from pairs, scored above the chosen one: 1"
    assert (
        line in lines
        and "  comparisons with equal scores, which have no margin and no order in a ranking: 1"
        in lines
    )
    with pytest.raises(UserError, match=r"above the chosen one: 1.*Of scores, higher ones must"):
        scores_of(tmp_path, data[1])


def test_scores_that_differ_by_rounding_are_equal(tmp_path: Path) -> None:
    """0.1 + 0.2 is above 0.3 in the last digit, and is a tie."""
    kept, report = scores_of(tmp_path, scored(MANY, 0.3, [0.1 + 0.2, 0.3 - 1e-16, 0.3 - 1e-7]))
    (scores,) = kept
    assert scores is not None and scores[0] == scores[1] == scores[2] > scores[3]
    assert report.tied == 2 and report.above == 0
    assert all(score == float(np.float32(score)) for score in scores)


def test_scores_stay_with_their_completions(tmp_path: Path) -> None:
    """Also if others are dropped: equal texts as they are read, long ones as they are tokenized."""
    kept, _ = scores_of(tmp_path, scored([" He", " Hallo", " He", " Ho"], 9, [1, 2, 3, 4]))
    assert kept == [(9.0, 1.0, 4.0)]
    texts = (" c", " q7" * 90, " e", " c")
    row = PreferenceRow("a", " b", texts, "", "r:1", scores=(9.0, 1.0, 2.0, 3.0, 4.0))
    (outcome,) = outcomes([row], TextEncoder(tiny_tokenizer()), PairRules(99, 99))
    assert outcome.pair is not None and outcome.pair.scores == (9.0, 1.0, 3.0)


def config_of(folder: Path, rows: list[dict[str, Any]], **loss: Any) -> Config:
    model = folder / "model"
    if not model.exists():
        save_tiny_model(model)
    return parse_config(
        {
            "model": {"name_or_path": str(model)},
            "data": {"format": "pairs", "path": str(write(folder / "p.jsonl", rows))},
            "loss": loss or {"name": "plackett-luce"},
            "output_dir": str(folder / "run"),
        },
        "test",
    )


def rows_with_scores(shift: float = 0.0) -> list[dict[str, Any]]:
    words = ["He", "Hej", "Ho", "Hu", "Ha"]
    return [
        scored(words[: 1 + n % 5], 9, [n / 7 + shift] * (1 + n % 5), prompt=f"Say {n}: Hi ->")
        for n in range(12)
    ]


def pairs_in_file(config: Config) -> tuple[Any, list[str], bytes]:
    """The training pairs of a start, what it says, and the bytes of the file."""
    said: list[str] = []
    inputs = open_inputs(config, said.append)
    kept = keep_pairs(inputs, said.append)
    _, train, _ = read_pairs(map_file(kept.path), inputs.places())
    return train, said, kept.path.read_bytes()


def test_the_file_keeps_them_for_an_objective_that_needs_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, rows_with_scores())
    train, said, _ = pairs_in_file(config)
    assert said[0] == "read 12 rows, kept 12 pairs"
    for number, pair in enumerate(train):
        expected = [9.0, *[float(np.float32(number / 7))] * (1 + number % 5)]
        assert list(pair.scores) == expected
    assert pairs_fingerprint(train) == pairs_fingerprint(list(train))
    with_logps = pairs_with_logps(train, np.zeros((12, 6)))
    assert with_logps[3].scores == train[3].scores and with_logps[3].reference_logps is not None
    # A second start finds the file; other scores are other pairs.
    assert pairs_in_file(config)[1] == []
    other = pairs_in_file(config_of(tmp_path, rows_with_scores(shift=0.5)))
    assert other[1] and pairs_fingerprint(other[0]) != pairs_fingerprint(train)


def test_other_objectives_have_the_pairs_of_rows_without_scores(tmp_path: Path) -> None:
    rows = rows_with_scores()
    train, _, content = pairs_in_file(config_of(tmp_path, rows, name="cpo"))
    assert all(pair.scores is None for pair in train)
    bare = [{key: value for key, value in row.items() if "score" not in key} for row in rows]
    without, _, same = pairs_in_file(config_of(tmp_path, bare, name="cpo"))
    assert pairs_fingerprint(train) == pairs_fingerprint(without) and content == same
    # A change of the objective makes the pairs anew.
    ranked, said, _ = pairs_in_file(config_of(tmp_path, rows))
    assert said and all(pair.scores for pair in ranked)


def test_processes_that_share_the_work_read_scores_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, rows_with_scores())
    train, _, content = pairs_in_file(config)
    monkeypatch.setattr(pair_cache, "FEW", 0)
    other = config.model_copy(update={"output_dir": str(tmp_path / "other")})
    again, said, same = pairs_in_file(other)
    assert said and content == same
    assert [pair.scores for pair in again] == [pair.scores for pair in train]


def test_a_file_of_an_older_version_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, rows_with_scores(), name="cpo")
    assert pairs_in_file(config)[1] and not pairs_in_file(config)[1]
    monkeypatch.setattr(pair_cache, "FORMAT", pair_cache.FORMAT - 1)
    assert pairs_in_file(config)[1]


def test_a_micro_batch_holds_them_by_completion(tmp_path: Path) -> None:
    train, _, _ = pairs_in_file(config_of(tmp_path, rows_with_scores()))
    batch = pack(train, (2, 0))
    assert batch.scores is not None and batch.scores.dtype == torch.float32
    two = float(np.float32(2 / 7))
    assert batch.scores.tolist() == [[9.0, two, two, two], [9.0, 0.0, 0.0, 0.0]]
    logps = batch.logps(torch.zeros(2), torch.zeros(2, 3))
    assert logps.scores is batch.scores
    assert "scores" in batch.tensors()
