"""An export that does not give the run's log-probs or tokens is put aside, and the run says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_faults import FAULTS, OF_ADAPTERS, OF_MODELS, OF_TOKENIZERS, planted
from export_runs import Case, recipe
from exported import copy_run
from helpers import save_tiny_adapter, save_tiny_model
from launch import on_ranks
from workers import exporting

from cpo_ds.errors import UserError
from cpo_ds.export.from_checkpoint import export

STAGES = {0: 1, 3: 2}  # and numbers of ranks
# Too small to be seen in log-probs. `cpo-ds export` compares bits, as do hosts that share no disk.
SMALL = "a rounded weight"


def runs_at(folder: Path, stage: int) -> dict[str, tuple[dict[str, Any], str | None]]:
    """Name -> a recipe and the fault in its export: every fault, and none for each kind of run."""
    kinds = {
        "model": {"adapter_mode": None},
        "adapter": {"lora": True},
        "merged": {"lora": True, "adapter_mode": "merge"},
    }
    faults: dict[str, list[str | None]] = {
        "model": [None, *OF_MODELS, *OF_TOKENIZERS],
        "adapter": [None, *OF_ADAPTERS],
        "merged": [None, "a swapped weight"],
    }
    runs = {}
    for kind, settings in kinds.items():
        case = Case(ranks=STAGES[stage], stage=stage, **settings)  # type: ignore[arg-type]
        for fault in faults[kind]:
            name = f"{kind}, ZeRO-{stage}, {fault}"
            values = recipe(folder, name, case)
            values["train"] = {"max_steps": 1}
            runs[name] = (values, fault)
    # The same command again, after a repair; and an export that only rank 0's host has.
    values, _ = runs[f"model, ZeRO-{stage}, no settings"]
    runs[f"model, ZeRO-{stage}, repaired"] = (values, None)
    for fault in (None, SMALL):
        name = f"on one host, ZeRO-{stage}, {fault}"
        runs[name] = (values | {"output_dir": str(folder / name)}, fault)
    return runs


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    """Name of a run -> what it said of its export, and its folder."""
    folder = tmp_path_factory.mktemp("verified")
    save_tiny_adapter(save_tiny_model(folder / "untied"), folder / "untied-adapter")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (folder / "stage3.json").write_text(json.dumps({"zero_optimization": zero}))
    results = {}
    for stage, ranks in STAGES.items():
        report = folder / f"{stage}.json"
        runs = runs_at(folder, stage)
        for done in on_ranks(exporting.export_each, [runs, str(report)], ranks=ranks):
            assert done.code == 0, done.output
        for name, text in json.loads(report.read_text()).items():
            results[name] = (text, Path(runs[name][0]["output_dir"]))
    return results


@pytest.mark.parametrize("stage", STAGES)
def test_a_faulty_export_is_put_aside(said: Any, stage: int) -> None:
    texts = {name: both for name, both in said.items() if f"ZeRO-{stage}" in name}
    assert len(texts) == 17
    for name, (text, run) in texts.items():
        kind, _, fault = name.split(", ")
        assert not list(run.glob("tmp-*"))
        if fault in ("None", "repaired") or (fault == SMALL and kind == "model"):
            assert text == "exported", (name, text)
            assert (run / "export").is_dir() and (run / "finished.json").exists()
            assert (run / "export-unverified").exists() == (fault == "repaired")
            continue
        assert fault in FAULTS
        aside = run / "export-unverified"
        assert str(aside) in text and aside.is_dir(), (name, text)
        assert "step 1 is saved" in text and "cpo-ds export" in text
        if fault != "no settings":  # that run was repaired
            assert not (run / "export").exists() and not (run / "finished.json").exists()


def test_the_difference_is_named(said: Any) -> None:
    text, _ = said["model, ZeRO-3, other positions"]
    assert "per token (allowed: 0.0001)" in text and "after loading, but was -" in text
    text, _ = said["adapter, ZeRO-0, another scale"]
    assert "per token" in text
    text, _ = said["model, ZeRO-3, no head"]
    assert "lm_head.weight" in text
    text, _ = said["model, ZeRO-0, other tokens"]
    assert "its tokenizer gives" in text
    text, _ = said[f"on one host, ZeRO-3, {SMALL}"]
    assert "1 of its weights differ after loading" in text
    text, _ = said["model, ZeRO-3, no end"]
    assert "another eos_token_id" in text


@pytest.mark.parametrize(
    ("case", "fault"),
    [("full, untied, ZeRO-3", SMALL), ("LoRA, untied, ZeRO-3", "another scale")],
)
def test_the_command_compares_bits(export_runs: Any, tmp_path: Path, case: str, fault: str) -> None:
    run, _ = copy_run(export_runs[case], tmp_path)
    output = tmp_path / "new"
    with planted(fault), pytest.raises(UserError, match="put aside as") as caught:
        export(run, output=output)
    aside = tmp_path / "new-unverified"
    assert str(aside) in str(caught.value) and aside.is_dir() and not output.exists()
    with planted(fault):
        export(run, output=tmp_path / "unchecked", verify=False)
    with pytest.raises(UserError, match="in the way"):
        export(run, output=output)
    export(run, output=tmp_path / "sound")
