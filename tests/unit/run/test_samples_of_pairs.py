"""The choice of sources to translate, the texts of pairs, and the file of translations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import random_pairs, sequences
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cpo_ds.run.monitor import Monitor
from cpo_ds.run.samples import completions, spread
from cpo_ds.storage.metrics_file import cut_back_metrics


def test_sources_are_spread_over_directions_and_stay_the_same() -> None:
    directions = ["en-de"] * 50 + ["zh-en"] * 3 + ["cs-en"]
    state = np.random.get_state()[1].copy()
    numbers = spread(directions, 6, seed=1)
    assert numbers == spread(directions, 6, seed=1) != spread(directions, 6, seed=2)
    assert len(set(numbers)) == 6
    names = [directions[number] for number in numbers]
    assert sorted(names) == ["cs-en", *["en-de"] * 3, *["zh-en"] * 2] or sorted(names) == [
        "cs-en", *["en-de"] * 2, *["zh-en"] * 3
    ]  # fmt: skip
    assert sorted(spread(directions, 99, seed=1)) == list(range(54))
    assert spread([], 3, seed=1) == []
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("sharing", ["prompt", "common"])
def test_completions_are_the_ends_of_both_sequences(sharing: str) -> None:
    for pair in random_pairs(8, seed=4, sharing=sharing):
        chosen, rejected = sequences(pair)
        assert completions(pair) == (chosen[pair.chosen_start :], rejected[pair.rejected_start :])


def sample(step: int, text: str) -> dict[str, object]:
    return {"step": step, "language_pair": "en-de", "translation": text}


def test_samples_are_appended_shown_and_cut_back(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=True, first_step=0, total_steps=4)
    for step in (0, 2, 4):
        monitor.write_samples([sample(step, "Grüße\u2028*a*"), sample(step, "b")])
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (first, _, _) = events.Tensors("eval/samples/text_summary")
    assert "translation: Grüße" in first.tensor_proto.string_val[0].decode()

    # The evaluation of the step that a run resumes from is made again.
    cut_back_metrics(tmp_path, 2)
    file = tmp_path / "samples.jsonl"
    kept = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["step"] for line in kept] == [0, 0]
    assert kept[0]["translation"] == "Grüße\u2028*a*"
