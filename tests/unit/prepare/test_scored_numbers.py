"""The numbers of scored rows that the report keeps, in place of the rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_data import write

from cpo_ds.errors import UserError
from cpo_ds.prepare.analyses.scored import read_scored
from cpo_ds.prepare.analyses.view import selecting_metrics

NAN = math.nan


def file_of(folder: Path, *rows: dict[str, Any]) -> str:
    base = {"language_pair": "en-de", "source": "Good morning."}
    return str(write(folder / "scored.jsonl", [base | row for row in rows]))


def test_scores_are_read_and_what_is_missing_is_counted(tmp_path: Path) -> None:
    about = {"model": "Unbabel/XCOMET-XXL", "dtype": "float16", "uses_reference": False}
    path = file_of(
        tmp_path,
        {
            "reference": "Guten Morgen.",
            "candidates": {"b": "Morgen!", "a": "Moin.", "gone": " "},
            "scores": {
                "chrf": {"reference": 100.0, "b": 40.0, "a": None},
                "xcomet": {"b": 0.5, "a": 0.75, "reference": 1, "gone": 0.1},
            },
            "scorers": {"xcomet": about},
        },
        {"candidates": {"a": "Hallo."}},
    )
    scored = read_scored(path)
    xcomet, chrf = scored.metrics
    first, second = scored.row_scores(scored.scores["xcomet"])
    assert list(first.items()) == [("reference", 1.0), ("b", 0.5), ("a", 0.75)] and not second
    assert scored.systems == ("reference", "a", "b")
    assert np.array_equal(scored.table("chrf"), [[NAN, NAN, 40.0], [NAN] * 3], equal_nan=True)
    assert (chrf.uses_reference, chrf.is_lexical, chrf.num_scores, chrf.num_missing) == (
        True, True, 1, 2,
    )  # fmt: skip
    assert (xcomet.uses_reference, xcomet.num_scores, xcomet.num_missing) == (False, 3, 1)
    assert chrf.scorers == (("", 1),) and '"float16"' in xcomet.scorers[0][0]
    assert scored.skipped == {"empty candidate": 1, "score of a translation that is not there": 1}


def test_quality_estimates_choose_unless_others_are_named(tmp_path: Path) -> None:
    scores = {name: {"a": 1.0, "b": 0.0} for name in ("chrf", "kiwi", "x+y", "xcomet")}
    row = {"candidates": {"a": "A", "b": "B"}, "scores": scores, "reference": "R"}
    scored = read_scored(file_of(tmp_path, row))
    assert selecting_metrics(scored, None) == ("kiwi", "x+y", "xcomet")
    assert selecting_metrics(scored, "xcomet+chrf") == ("xcomet", "chrf")
    assert selecting_metrics(scored, "x+y") == ("x+y",)
    with pytest.raises(UserError, match="chrf, kiwi"):
        selecting_metrics(scored, "bleu")
    lexical = read_scored(file_of(tmp_path, row | {"scores": {"chrf": scores["chrf"]}}))
    assert selecting_metrics(lexical, None) == ("chrf",)


def test_the_metrics_of_later_rows_are_missing_in_earlier_ones(tmp_path: Path) -> None:
    """A reference that a metric cannot judge is not missing, by the row's record or its name."""
    names = {"reference": "R", "candidates": {"a": "A", "b": "B"}}
    scores = {"a": 0.5, "b": 0.25, "reference": 1.0}
    compares, judges = ({"late": {"uses_reference": value}} for value in (True, False))
    rows: list[dict[str, Any]] = [
        {"candidates": {"b": "B"}},
        names | {"scorers": compares},
        names | {"scores": {"late": scores, "chrf": scores}, "scorers": judges},
        names | {"scores": {"chrf": {"a": 1.0}}, "scorers": {"chrf": {"uses_reference": False}}},
    ]
    late, chrf = read_scored(file_of(tmp_path, *rows)).metrics
    assert (late.name, late.num_scores, late.num_missing) == ("late", 3, 1 + 2 + 0 + 3)
    assert (chrf.name, chrf.num_scores, chrf.num_missing) == ("chrf", 3, 1 + 2 + 0 + 2)
    backwards = read_scored(file_of(tmp_path, *reversed(rows))).metrics
    assert [metric.num_missing for metric in backwards] == [6, 5]
