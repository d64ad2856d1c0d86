"""Stages of rounds: the commands, the recipes, the seeds and what counts as complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rounds_files import inputs, rounds_file

from cpo_ds import cli
from cpo_ds.data.candidates import read_candidates
from cpo_ds.errors import UserError
from cpo_ds.recipe import load_config
from cpo_ds.rounds.layout import sample_seed, sources_of_round, system_of
from cpo_ds.rounds.record import check_record, write_record
from cpo_ds.rounds.stages import Stage, stages_of, write_inputs

ALL = {
    "policy": {"languages": {"tlh": "Klingon"}, "prompt": "chat"},
    "translate": {"dtype": "float32", "batch_tokens": 99, "ranks": 2, "shard": True},
    "sample": {"num": 3, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1},
    "score": {"dtype": "bfloat16", "shard": True, "use_reference": True},
    "select": {
        "metrics": ["metricx-24-qe", "qe=google/metricx-24-hybrid-large-v2p6:qe"], "rejected": 2,
        "min_margin": 0.1, "directions": ["en-de"], "check_language": 0.5, "max_length_ratio": 3,
    },
    "train": {"gpus": 2, "overrides": {"data": {"chat_template_kwargs": {"a": 1}}}},
}  # fmt: skip


def option(stage: Stage, name: str) -> str:
    return stage.argv[stage.argv.index(name) + 1]


@pytest.mark.parametrize("sections", [{}, ALL], ids=["few", "all"])
def test_every_command_is_one_of_the_program(tmp_path: Path, sections: dict[str, Any]) -> None:
    made = inputs(tmp_path, **sections)
    names = []
    for number in range(3):
        for stage in stages_of(made, number, "start"):
            arguments = cli._parsed(list(stage.argv))
            assert arguments.takes_recipe == (stage.name == "train")
            assert set(arguments.recipe[::2]) <= {"--config"}
            assert not stage.is_complete()
            names.append(f"{stage.round} {stage.name}")
    each = ["sample", "score", "select", "train", "translate", "evaluate"]
    assert names == ["0 translate", "0 evaluate", *(f"{n} {s}" for n in (1, 2) for s in each)]


def test_options_go_to_the_stages_that_have_them(tmp_path: Path) -> None:
    made = inputs(tmp_path, **ALL)
    sample, score, select, train, translate, evaluate = stages_of(made, 1, "start")
    assert option(sample, "--samples") == "3" and option(sample, "--temperature") == "0.7"
    for stage in (sample, translate):
        assert option(stage, "--chat-template-kwargs") == '{"a": 1}'
        assert option(stage, "--language") == "tlh=Klingon" and "--shard" in stage.argv
    assert option(translate, "--beam") == "5" and "--samples" not in translate.argv
    assert option(score, "--dtype") == option(evaluate, "--dtype") == "bfloat16"
    assert option(select, "--rejected") == "2" and option(select, "--check-language") == "0.5"
    assert select.argv.count("--metric") == 2 and "qe" in select.argv
    assert option(train, "--gpus") == "2"
    assert option(evaluate, "--baseline") == "start" and "--paired-bs" in evaluate.argv


def test_a_round_starts_from_the_last_ones_export(tmp_path: Path) -> None:
    made, out = inputs(tmp_path, rounds=3), tmp_path / "out"
    first, second, third = made.recipes
    assert (first.model.name_or_path, first.model.adapter) == (str(tmp_path / "model"), None)
    assert second.model.name_or_path == third.model.name_or_path == str(tmp_path / "model")
    assert second.model.adapter == str(out / "round-1" / "run" / "export")
    assert third.model.adapter == str(out / "round-2" / "run" / "export")
    assert second.continues_adapter and third.data.path == str(out / "round-3/pairs/pairs.jsonl")
    policies = [option(stages_of(made, n, "start")[0], "--model") for n in (1, 2, 3)]
    assert policies == [str(tmp_path / "model"), str(out / "round-1/run"), str(out / "round-2/run")]


def test_a_full_model_takes_the_bases_place(tmp_path: Path) -> None:
    made, export = inputs(tmp_path, {"lora": None}), tmp_path / "out" / "round-1" / "run" / "export"
    assert made.recipes[1].model.name_or_path == str(export)
    assert made.recipes[1].model.adapter is None


def test_a_merged_start_becomes_a_full_model_under_a_new_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    made = inputs(
        tmp_path,
        rounds=3,
        policy={"adapter": str(tmp_path / "adapter")},
        train={"overrides": {"model.adapter_mode": "merge"}},
    )
    first, second, third = made.recipes
    assert first.model.adapter_mode == "merge" and first.model.adapter is not None
    export = str(tmp_path / "out" / "round-1" / "run" / "export")
    assert (second.model.name_or_path, second.model.adapter) == (export, None)
    assert (third.model.name_or_path, third.model.adapter) == (
        export,
        export.replace("round-1", "round-2"),
    )
    assert third.continues_adapter


def test_the_files_that_a_round_begins_with(tmp_path: Path) -> None:
    made = inputs(tmp_path, sources={"per_round": 3})
    for number in range(3):
        write_inputs(made, number)
    out = tmp_path / "out"
    assert [row.source for row in read_candidates(str(out / "round-0/texts.jsonl"))[0]] == [
        "x",
        "y",
    ]
    rows = [read_candidates(str(out / f"round-{n}/sources.jsonl"))[0] for n in (1, 2)]
    assert [len(part) for part in rows] == [3, 3]
    assert not {row.source for row in rows[0]} & {row.source for row in rows[1]}
    config, _ = load_config(["--config", str(out / "round-2" / "recipe.yaml")])
    assert config == made.recipes[1]
    before = (out / "round-1" / "sources.jsonl").stat().st_mtime_ns
    write_inputs(made, 1)
    assert (out / "round-1" / "sources.jsonl").stat().st_mtime_ns == before


def test_a_stage_is_complete_when_its_last_file_is_there(tmp_path: Path) -> None:
    sample = stages_of(inputs(tmp_path), 1, "start")[0]
    output = Path(option(sample, "--output"))
    output.parent.mkdir(parents=True)
    output.write_text("")
    assert not sample.is_complete()  # the settings beside are written after the rows
    output.with_name("samples.jsonl.settings.json").write_text("")
    assert sample.is_complete()


def test_seeds_differ_between_rounds_and_seeds() -> None:
    seeds = {(seed, number): sample_seed(seed, number) for seed in range(20) for number in range(9)}
    assert len(set(seeds.values())) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert sample_seed(0, 1) == 488889680  # the same on every machine


def test_rounds_take_all_sources_in_turn() -> None:
    rows = [{"source": str(number)} for number in range(10)]
    parts = [sources_of_round(rows, 4, 7, number) for number in range(1, 6)]
    assert all(len({row["source"] for row in part}) == 4 for part in parts)
    assert all(part == sorted(part, key=lambda row: int(row["source"])) for part in parts)
    assert len({row["source"] for part in parts[:3] for row in part}) == 10
    assert parts[0] != sources_of_round(rows, 4, 8, 1)
    assert parts == [sources_of_round(rows, 4, 7, number) for number in range(1, 6)]
    assert sources_of_round(rows, None, 7, 2) == sources_of_round(rows, 99, 7, 3) == rows


def test_other_settings_do_not_go_on_in_the_folder(tmp_path: Path) -> None:
    made = inputs(tmp_path)
    check_record(made)
    (tmp_path / "out").mkdir()
    write_record(made)
    check_record(made)
    for sections in ({"rounds": 5}, {"watch": {"stop_if_falls_by": 1}}, {"train": {"gpus": 2}}):
        check_record(inputs(tmp_path, **sections))
    for sections, says in (
        ({"sample": {"num": 3}}, "another sample.num (8, now 3)"),
        ({"seed": 1}, "another seed (0, now 1)"),
        ({"train": {"overrides": {"optim.learning_rate": 1e-5}}}, "train.overrides"),
    ):
        with pytest.raises(UserError) as error:
            check_record(inputs(tmp_path, **sections))
        assert says in str(error.value)
    changed = inputs(tmp_path, {"lora": {"rank": 8}})
    with pytest.raises(UserError, match="another recipe: its content"):
        check_record(changed)
    (tmp_path / "out" / "config.yaml").unlink()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds thesis"):
        check_record(made)


def test_a_dry_run_shows_the_stages_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rounds", "--config", str(rounds_file(tmp_path)), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "selecting: metricx-24-qe; deciding: chrf" in said
    assert said.count("\n  cpo-ds ") == 14 and "round 2, train:\n  cpo-ds train --config" in said
    assert not (tmp_path / "out").exists() and system_of(2) == "round-2"
