"""`cpo-ds prepare score` with chrF and BLEU, and an encoder split over ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launch
import pytest
from candidate_rows import ROW, rows_file
from sacrebleu.metrics import BLEU, CHRF
from workers import loading, training

# The command, with metrics that need no model.


def score_lexical(folder: Path, *options: object, ranks: int = 1) -> list[launch.Finished]:
    arguments = ["prepare", "score", "--input", folder / "rows.jsonl", "--output"]
    arguments += [folder / "scored.jsonl", *options]
    return launch.on_ranks(training.cpo_ds_command, [str(a) for a in arguments], ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 3])
def test_chrf_and_bleu_are_those_of_sacrebleu(tmp_path: Path, ranks: int) -> None:
    rows = [
        ROW | {"reference": "the cat sat on the mat", "candidates": {"a": "the cat sat on a mat",
               "b": "a dog"}, "scores": {"kiwi": {"a": 0.5}}, "scorers": {"kiwi": {}}},
        ROW | {"language_pair": "en-zh", "reference": "猫坐在垫子上。", "candidates": {
               "a": "猫坐在地上。"}},
        {"language_pair": "en-bn", "source": "s", "candidates": {"a": "no reference here"}},
    ]  # fmt: skip
    rows_file(tmp_path, *rows)
    done = score_lexical(tmp_path, "--metric", "chrf", "--metric", "bleu", ranks=ranks)
    assert [one.code for one in done] == [0] * ranks, done[0].output
    assert "left out, chrf: no reference: 1" in done[0].output
    assert "chrf: likeness to one reference, not a quality estimate" in done[0].output
    first, second, third = map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU(effective_order=True))):
        expected = {
            key: metric.sentence_score(text, [first["reference"]]).score
            for key, text in ({"reference": first["reference"]} | first["candidates"]).items()
        }
        assert first["scores"][name] == pytest.approx(expected, abs=1e-12)
        assert first["scorers"][name]["uses_reference"] is True
        assert "not a quality estimate" in first["scorers"][name]["note"]
    assert first["scores"]["kiwi"] == {"a": 0.5}, "scores that were there stay"
    chinese = BLEU(effective_order=True, tokenize="zh").sentence_score(
        "猫坐在地上。", ["猫坐在垫子上。"]
    )
    assert second["scores"]["bleu"]["a"] == pytest.approx(chinese.score, abs=1e-12)
    assert third["scores"] == {"chrf": {}, "bleu": {}}


@pytest.mark.parametrize(
    "rows, options, said",
    [
        ([ROW | {"reference": ""}], ["--metric", "chrf"], "compares with a reference, and no row"),
        ([ROW], ["--metric", "chrf", "--metric", "chrf"], "--metric chrf is given twice"),
        ([ROW | {"scores": [1]}], ["--metric", "chrf"], "line 1: field scores is not an object"),
        ([ROW | {"scorers": "x"}], ["--metric", "bleu"], "line 1: field scorers is not an object"),
        ([ROW], ["--metric", "x=/no/model.ckpt"], "there is no checkpoint /no/model.ckpt"),
        ([ROW], ["--metric", "chrf", "--batch-tokens", 0], "numbers above 0"),
    ],
)
def test_what_cannot_be_scored_is_said_once(
    tmp_path: Path, rows: Any, options: list[object], said: str
) -> None:
    rows_file(tmp_path, *rows)
    (done,) = score_lexical(tmp_path, *options)
    assert done.code == 2, done.output
    assert done.output.count("cpo_ds: error: ") == 1 and said in done.output
    assert "Traceback" not in done.output and not (tmp_path / "scored.jsonl").exists()


# Split over ranks.


def test_a_split_encoder_gives_the_same_and_each_rank_holds_its_half(tmp_path: Path) -> None:
    done = launch.on_ranks(loading.split_encoder, [str(tmp_path)], ranks=2)
    assert [one.code for one in done] == [0, 0], done[0].output + done[1].output
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        whole = seen["whole_bytes"]
        assert whole > 150e6 and seen["equal"]
        assert seen["held_bytes"] == pytest.approx(whole / 2, rel=1e-3)
        # While loading and computing: its half, and a layer or two.
        assert 0.45 * whole < seen["grown_bytes"] < 0.8 * whole, seen["grown_bytes"] / whole
