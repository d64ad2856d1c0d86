"""Everything that is wrong with a file of rounds is said before the first stage, by its setting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from documentation import table_after
from repository import ROOT
from rounds_files import inputs, rounds_file, text_rows

from cpo_ds import cli
from cpo_ds.errors import UserError
from cpo_ds.recipe import default_text, flatten
from cpo_ds.rounds.checks import guard
from cpo_ds.rounds.settings import RoundsSettings, load_rounds
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.shipped import RECIPES


def refused(folder: Path, recipe: dict[str, Any] | None = None, **sections: Any) -> str:
    with pytest.raises(UserError) as error:
        inputs(folder, recipe, **sections)
    return str(error.value)


def test_the_example_is_valid() -> None:
    settings = load_rounds(ROOT / "examples" / "rounds.yaml")
    assert settings.select.check_language == 0.7 and settings.train.recipe == "own-pairs"


@pytest.mark.parametrize("name", RECIPES.names())
def test_every_shipped_recipe_can_be_trained_in_rounds(tmp_path: Path, name: str) -> None:
    (tmp_path / "adapter").mkdir()
    made = inputs(tmp_path, train={"recipe": name}, policy={"adapter": str(tmp_path / "adapter")})
    assert [recipe.data.format for recipe in made.recipes] == ["pairs", "pairs"]
    assert made.recipes[1].model.adapter != made.recipes[0].model.adapter


def test_the_page_has_every_setting() -> None:
    ((header, *rows),) = table_after(ROOT / "docs" / "rounds.md", "rounds settings")
    assert header == ["section", "setting", "default", "meaning"]
    named = {f"{row[0]}.{row[1]}".lstrip("."): row for row in rows}
    fields = flatten(RoundsSettings)
    assert list(named) == list(fields)
    for name, field in fields.items():
        default = default_text(field).removeprefix("default ")
        assert named[name][2:] == [default, field.description], name


def test_all_is_checked_and_nothing_is_written(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    assert [metric.name for metric in made.deciding] == ["chrf"] and made.warnings == ()
    assert len(made.sources) == 7 and len(made.recipes) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"sampel": {"num": 2}}, "unknown key sampel (did you mean sample?)"),
        ({"sample": {"nums": 2}}, "unknown key sample.nums (did you mean num?)"),
        ({"select": {"metric": ["x"]}}, "unknown key select.metric (did you mean metrics?)"),
        ({"per_round": 4}, "unknown key per_round (did you mean sources.per_round?)"),
        ({"optim": {"learning_rate": 1}}, "under train.overrides"),
        ({"policy": None}, "policy is missing; add it."),
        ({"rounds": 0}, "rounds: must be greater than 0"),
        ({"rounds": "two"}, "rounds: must be a whole number"),
        ({"sample": {"num": 1}}, "sample.num: must be greater than or equal to 2"),
        ({"sample": {"temperature": 0}}, "sample.temperature"),
        ({"sample": {"top_p": 1.5}}, "sample.top_p"),
        ({"select": {"rejected": "most"}}, "must be worst, all, spread or a number of texts"),
        ({"select": {"max_length_ratio": 1}}, "select.max_length_ratio"),
        ({"select": {"directions": ["ende"]}}, "select.directions"),
        ({"select": {"directions": ["de-en"]}}, "de-en is not in the sources, which have en-de"),
        ({"sources": {"test_set": "wmt22:en-de"}}, "give either path or test_set"),
        ({"watch": {"path": None}}, "give either path or test_set"),
        ({"translate": {"vllm": True, "ranks": 2}}, "translate.vllm runs on one process"),
        ({"translate": {"vllm": True}, "watch": {"beams": 4}}, "no beam search"),
        ({"translate": {"hostfile": "nowhere"}}, "translate.hostfile: nowhere does not exist"),
        ({"train": {"gpus": 2, "hostfile": "h"}}, "train.gpus or train.hostfile, not both"),
        ({"sources": {"path": "nowhere.jsonl"}}, "sources: "),
        ({"policy": {"model": "./nowhere"}}, "no model ./nowhere"),
        ({"policy": {"languages": {"bn": ""}}}, "policy.languages"),
        ({"train": {"recipe": "own-pear"}}, "no recipe own-pear (did you mean own-pairs?)"),
        ({"train": {"overrides": {"optim.learning_rat": 1}}}, "(did you mean learning_rate?)"),
        ({"train": {"overrides": {"optim.learning_rate": -1}}}, "optim.learning_rate"),
        ({"train": {"recipe": "alma-7b-r-full"}}, "the policy has no adapter; name it by policy."),
        ({"train": {"overrides": {"data.path": "x"}}}, "each round sets for itself"),
        ({"train": {"overrides": {"model": {"adapter": "x"}}}}, "policy names the model"),
        ({"train": {"overrides": {"checkpoint.resume": "never"}}}, "rounds resume their"),
        ({"train": {"overrides": {"checkpoint.export": False}}}, "starts from the export"),
        ({"train": {"overrides": {"deepspeed": "zero4"}}}, "zero4"),
        ({"train": {"overrides": {"loss.reference": "adapter", "loss.name": "dpo"}}}, "in round 2"),
        ({"select": {"metrics": ["kiwy"]}}, "select.metrics: kiwy: there is no metric"),
        ({"watch": {"metrics": []}}, "watch.metrics"),
    ],
)
def test_faults_are_named(tmp_path: Path, sections: dict[str, Any], says: str) -> None:
    assert says in refused(tmp_path, **sections)


def test_references_and_names_of_languages_are_needed(tmp_path: Path) -> None:
    plain = text_rows(tmp_path / "plain.jsonl", ["x"], reference=False)
    said = refused(tmp_path, watch={"path": str(plain)})
    assert said.startswith("watch: ") and "line 1 has no reference, which the metric chrf" in said
    plain.write_text('{"language_pair": "en-xx", "source": "x", "reference": "y"}\n')
    assert "policy.languages: {xx: NAME}" in refused(tmp_path, watch={"path": str(plain)})
    assert inputs(tmp_path, watch={"path": str(plain)}, policy={"languages": {"xx": "Newish"}})


def test_a_candidate_with_a_samples_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "taken.jsonl"
    file.write_text('{"language_pair": "en-de", "source": "x", "candidates": {"policy-2": "y"}}\n')
    assert "a candidate policy-2" in refused(tmp_path, sources={"path": str(file)})


def test_comets_environment_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPO_DS_COMET_PYTHON", str(tmp_path / "none"))
    assert "COMET's environment is missing" in refused(tmp_path, select={"metrics": ["kiwi"]})


def test_watched_texts_among_the_sources_are_told(tmp_path: Path) -> None:
    both = text_rows(tmp_path / "both.jsonl", ["a", "z"])
    (warning,) = inputs(tmp_path, watch={"path": str(both)}).warnings
    assert warning.startswith("1 of 2 watched sources are among the sources")


def metrics(*names: str) -> list[Metric]:
    return parse_metrics(list(names))


def test_a_metric_that_selects_is_not_watched(tmp_path: Path) -> None:
    for select, watch in (("chrf", "chrf"), ("kiwi", "mine=Unbabel/wmt23-cometkiwi-da-xxl")):
        with pytest.raises(UserError, match="selects the pairs too"):
            guard(metrics(select), metrics(watch, "bleu"))
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="selects the pairs too"):
        guard(metrics(f"one={tmp_path / 'c'}"), metrics(f"two={os.path.relpath(tmp_path / 'c')}"))


def test_relatives_are_shown_and_decide_nothing() -> None:
    deciding, warnings = guard(metrics("kiwi", "xcomet"), metrics("comet-22", "chrf", "metricx-24"))
    assert [metric.name for metric in deciding] == ["chrf", "metricx-24"]
    assert len(warnings) == 1 and "comet-22 is a relative" in warnings[0]
    for select, watch in (("kiwi", "comet-22"), ("chrf", "bleu")):
        with pytest.raises(UserError, match="relatives of the selecting metrics"):
            guard(metrics(select), metrics(watch))


def test_the_command_says_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rounds_file(tmp_path, watch={"metrics": ["metricx-24-qe"]})
    assert cli.main(["rounds", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cpo_ds: error: watch.metrics: metricx-24-qe") and said.count("\n") == 1
    assert cli.main(["rounds", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "there is no configuration" in capsys.readouterr().err
