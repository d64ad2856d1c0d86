"""Mistakes of users end in one paragraph and exit code 2, without a stack trace on any rank."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from bad_inputs import Flat, arguments, assert_one_paragraph, make_inputs, pairs, placed
from launch import alone, deepspeed, main_on_ranks
from repository import ROOT

ZERO3 = ROOT / "ds_configs" / "zero3.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    make_inputs(folder)
    return folder


# Fields that differ from the good recipe -> what the paragraph must name.
DATA: dict[str, tuple[Flat, tuple[str, ...]]] = {
    "missing field": ({"data.path": "missing.jsonl"}, ("missing.jsonl, line 9", "rejected")),
    "empty translation": ({"data.path": "empty.jsonl"}, ("empty.jsonl, line 3", "chosen", "empty")),
    "invalid JSON": ({"data.path": "broken.jsonl"}, ("broken.jsonl, line 4", "JSON")),
    "empty file": ({"data.path": "nothing.jsonl"}, ("nothing.jsonl", "empty")),
    "chosen is rejected": ({"data.path": "same.jsonl"}, ("same.jsonl", "chosen equals rejected")),
    "no such file": ({"data.path": "absent.jsonl"}, ("absent.jsonl", "does not exist")),
    "no such dataset": ({"data.path": "no-one/no-such-dataset"}, ("no-one/no-such-dataset",)),
    "wrong kind of file": ({"data.path": "a-file"}, ("a-file", ".jsonl")),
    "empty translation, alma-r": (
        {"data.format": "alma-r", "data.path": "alma-empty.jsonl"},
        ("alma-empty.jsonl, line 1", "gpt4_en", "empty"),
    ),
    "missing score, alma-r": (
        {"data.format": "alma-r", "data.path": "alma-unscored.jsonl"},
        ("alma-unscored.jsonl, line 2", "alma_de_kiwi_xcomet", "missing"),
    ),
    "missing score, triplets": (
        {"data.format": "triplets", "data.path": "triplet-unscored.jsonl"},
        ("triplet-unscored.jsonl, line 2", "xcomet"),
    ),
    "unknown score": (
        {"data.format": "alma-r", "data.path": "alma-empty.jsonl", "data.scorer": "bleu"},
        ("data.scorer", "bleu", "kiwi"),
    ),
    "unknown direction in the data": (
        {"data.format": "triplets", "data.path": "triplet-direction.jsonl"},
        ("triplet-direction.jsonl, line 1", "en-xx"),
    ),
    "unknown direction in the recipe": (
        {"data.format": "sample", "data.path": None, "data.directions": ["en-xx"]},
        ("data.directions", "en-xx"),
    ),
    "direction not in the data": (
        {"data.format": "sample", "data.path": None, "data.directions": ["en-fr"]},
        ("data.directions", "en-fr", "en-de"),
    ),
    "budget smaller than a pair": (
        {"data.path": "long.jsonl", "batch.tokens_per_rank": 64},
        ("batch.tokens_per_rank", "64", "long.jsonl:9"),
    ),
    "all pairs too long": ({"data.max_prompt_tokens": 2}, ("data.max_prompt_tokens",)),
    "nothing to hold out": (
        {"data.path": "same.jsonl", "data.eval_fraction": 0.5},
        ("same.jsonl",),
    ),
}
MODEL: dict[str, tuple[Flat, tuple[str, ...]]] = {
    "no such folder": ({"model.name_or_path": "absent"}, ("absent",)),
    "no such name": (
        {"model.name_or_path": "no-one/no-such-model"},
        ("no-one/no-such-model", "HF_HUB_OFFLINE is set"),
    ),
    "no such path": ({"model.name_or_path": "/no/such"}, ("/no/such: there is no such folder",)),
    "a file for a model": ({"model.name_or_path": "same.jsonl"}, ("same.jsonl is a file",)),
    "no adapter's path": ({"model.adapter": "no"}, ("/no: there is no such folder",)),
    "empty folder": ({"model.name_or_path": "no-weights"}, ("no-weights",)),
    "unsupported type": ({"model.name_or_path": "gpt2"}, ("gpt2", "llama")),
    "not a transformer": ({"model.name_or_path": "mamba"}, ("mamba", "llama")),
    "no such adapter": ({"model.adapter": "absent"}, ("adapter", "absent")),
    "adapter with weights missing": (
        {"model.adapter": "incomplete-adapter"},
        ("incomplete-adapter", "layers.1"),
    ),
    "adapter of another model": (
        {"model.name_or_path": "other-model", "model.adapter": "adapter"},
        ("adapter", "size mismatch"),
    ),
    "adapter on the head": ({"model.adapter": "head-adapter"}, ("lm_head",)),
    "new adapter on the head": ({"lora": {"target_modules": ["lm_head"]}}, ("lm_head",)),
    "no such module": (
        {"lora": {"target_modules": ["up_projj"]}},
        ("lora.target_modules", "up_projj"),
    ),
    "pattern that is none": ({"lora": {"target_modules": "(("}}, ("lora.target_modules", "((")),
    "weights cut short": ({"model.name_or_path": "cut"}, ("cut",)),
    "weight missing": ({"model.name_or_path": "incomplete"}, ("incomplete", "down_proj")),
    "weight missing, sharded": (
        {"model.name_or_path": "incomplete", "deepspeed": ZERO3},
        ("incomplete", "down_proj"),
    ),
    "weight of another shape": ({"model.name_or_path": "misshapen"}, ("misshapen", "down_proj")),
    "weight of another shape, sharded": (
        {"model.name_or_path": "misshapen", "deepspeed": ZERO3},
        ("misshapen", "down_proj"),
    ),
    "fewer embeddings than tokens": ({"model.name_or_path": "few-embeddings"}, ("60",)),
    "backend without its kernel": ({"model.attention": "flash_attn"}, ("flash_attn",)),
}
SETTINGS: dict[str, tuple[Flat, tuple[str, ...]]] = {
    "unknown key": ({"optim.learning_rat": 1.0}, ("optim.learning_rat", "learning_rate")),
    "unknown section": ({"optimizer.lr": 1.0}, ("optimizer", "optim")),
    "wrong type": ({"batch.pairs": "many"}, ("batch.pairs",)),
    "wrong choice": ({"loss.name": "kto"}, ("loss.name", "cpo")),
    "no effect": ({"loss.name": "cpo", "loss.gamma": 1.0}, ("loss.gamma", "no effect")),
    "no data path": ({"data.path": None}, ("data.path",)),
    "no DeepSpeed file": ({"deepspeed": "absent.json"}, ("absent.json", "ds_configs")),
    "invalid DeepSpeed file": ({"deepspeed": "not-json.json"}, ("not-json.json", "JSON")),
    "DeepSpeed file decides too": (
        {"deepspeed": "sizes.json"},
        ("sizes.json", "train_batch_size", "batch.pairs"),
    ),
    "DeepSpeed file is a list": ({"deepspeed": "list.json"}, ("list.json",)),
    "no such ZeRO stage": ({"deepspeed": "stage-5.json"}, ("stage-5.json", "stage")),
    "unknown ZeRO key": ({"deepspeed": "unknown-key.json"}, ("unknown-key.json", "overlap_com")),
    "unknown DeepSpeed section": (
        {"deepspeed": "unknown-section.json"},
        ("unknown-section.json", "zero_optimisation"),
    ),
    "overlap at stage 1": ({"deepspeed": "overlap-1.json"}, ("overlap-1.json", "overlap_comm")),
    "float16 without a GPU": ({"model.dtype": "float16"}, ("float16", "float32")),
    "output under a file": ({"output_dir": "a-file/run"}, ("a-file/run", "written")),
    "output is a file": ({"output_dir": "a-file"}, ("a-file", "written")),
    "no such checkpoint": ({"checkpoint.resume": "absent"}, ("checkpoint.resume", "absent")),
}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [pytest.param(*case, id=name) for name, case in (DATA | MODEL | SETTINGS).items()],
)
def test_one_paragraph(folder: Path, tmp_path: Path, changes: Flat, parts: tuple[str, ...]) -> None:
    recipe = pairs(folder, **{"output_dir": tmp_path} | placed(folder, changes))
    (done,) = main_on_ranks(*arguments(folder, recipe))
    assert_one_paragraph(done, *parts)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (["--batch.pair", "3"], ("--batch.pair", "--batch.pairs", "command line")),
        (["--batch.pairs", "0"], ("batch.pairs",)),
        (["--train.seed", "x"], ("train.seed",)),
        (["--config", "absent.yaml"], ("absent.yaml",)),
    ],
)
def test_one_paragraph_for_the_command_line(
    folder: Path, line: list[str], parts: tuple[str, ...]
) -> None:
    (done,) = main_on_ranks(*arguments(folder, pairs(folder)), *line)
    assert_one_paragraph(done, *parts)


def test_recipe_that_is_not_yaml(tmp_path: Path) -> None:
    for text in ("model: [", "- a list"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        (done,) = main_on_ranks("--config", recipe)
        assert_one_paragraph(done, "recipe.yaml")


def test_more_ranks_than_devices(folder: Path) -> None:
    """Runs as the last of many ranks, since starting that many would take the machine down."""
    many = str(2 * (os.cpu_count() or 1) + 1)
    (done,) = main_on_ranks(
        *arguments(folder, pairs(folder)), WORLD_SIZE=many, LOCAL_SIZE=many, RANK="0"
    )
    assert_one_paragraph(done, f"{many} ranks", "CPU core", "--num_accelerators")


def test_a_taken_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        (done,) = main_on_ranks(*arguments(folder, pairs(folder)), MASTER_PORT=port)
    assert_one_paragraph(done, f"port {port}", "--master_port")


@pytest.fixture(scope="module")
def checkpointed(folder: Path) -> Flat:
    """The recipe of a run that has saved a checkpoint."""
    recipe = pairs(folder, output_dir=folder / "checkpointed")
    (done,) = main_on_ranks(*arguments(folder, recipe))
    assert done.code == 0, done.output
    return recipe


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model.name_or_path": "other-model"}, "hidden_size in the config.json of model.name"),
        ({"loss.name": "simpo"}, "loss"),
        ({"loss.beta": 0.2}, "loss"),
        ({"data.path": "other-pairs.jsonl"}, "training pairs are others, since data.path is"),
        ({"lora": {"rank": 4}}, "LoRA"),
        ({"model.dtype": "bfloat16"}, "precision"),
        ({"batch.pairs": 2}, "pairs per step"),
        ({"train.seed": 1}, "train.seed"),
        ({"batch.share_prefix": "none"}, "batch.share_prefix is 'common', here it is 'none'"),
    ],
)
def test_checkpoint_of_another_run(
    folder: Path, checkpointed: Flat, changes: Flat, part: str
) -> None:
    (done,) = main_on_ranks(*arguments(folder, checkpointed | placed(folder, changes)))
    assert_one_paragraph(done, "checkpointed/checkpoints/step-00000001", part, "another run")


def test_checkpoint_of_another_zero_stage(folder: Path, checkpointed: Flat) -> None:
    stage_2 = {"deepspeed": ROOT / "ds_configs" / "zero2.json", "train.max_steps": 2}
    stage_2 |= {"train.epochs": 2}
    (done,) = main_on_ranks(*arguments(folder, checkpointed | stage_2))
    assert_one_paragraph(
        done, "checkpointed/checkpoints/step-00000001", "ZeRO stage 0", "stage 2", "cpo-ds export"
    )


def test_earlier_run_in_the_way(folder: Path, checkpointed: Flat) -> None:
    (done,) = main_on_ranks(*arguments(folder, checkpointed | {"checkpoint.resume": "never"}))
    assert_one_paragraph(done, "checkpoint.resume", "never", "output_dir")


def test_damaged_checkpoint(folder: Path) -> None:
    recipe = pairs(folder, output_dir=folder / "damaged")
    (done,) = main_on_ranks(*arguments(folder, recipe))
    assert done.code == 0, done.output
    saved = folder / "damaged" / "checkpoints" / "step-00000001"
    for file in saved.glob("*model_states.pt"):
        file.write_bytes(file.read_bytes()[:1000])
    (done,) = main_on_ranks(*arguments(folder, recipe))
    assert_one_paragraph(done, "step-00000001/mp_rank_00_model_states.pt", "checkpoint.resume")
    (saved / "manifest.json").write_text("{")
    (done,) = main_on_ranks(*arguments(folder, recipe))
    assert_one_paragraph(done, "step-00000001/manifest.json")


def test_checkpoint_damaged_on_one_rank_is_told_by_all(folder: Path) -> None:
    recipe = arguments(folder, pairs(folder, output_dir=folder / "half", deepspeed=ZERO3))
    for done in main_on_ranks(*recipe, ranks=2):
        assert done.code == 0, done.output
    saved = folder / "half" / "checkpoints" / "step-00000001"
    for file in saved.glob("zero_pp_rank_1_*"):
        file.write_bytes(file.read_bytes()[:1000])
    told = [done for done in main_on_ranks(*recipe, ranks=2) if "cpo_ds" in done.output]
    assert told
    for done in told:
        assert "Traceback" not in done.output, done.output
        assert "step-00000001" in done.output and done.code in (2, -9)  # or ended by the other


def test_the_good_recipe_runs(checkpointed: Flat) -> None:
    """Negative control: without the changes above, the recipe runs."""
    assert (checkpointed["output_dir"] / "export" / "config.json").is_file()


# Two ranks find the same error, or one of them alone.
ON_RANKS: dict[str, Flat] = {
    "data": {"data.path": "missing.jsonl"},
    "model": {"model.adapter": "head-adapter", "deepspeed": ZERO3},
    "output": {"output_dir": "a-file/run"},
}


@pytest.mark.parametrize("name", ON_RANKS)
def test_one_paragraph_on_two_ranks(folder: Path, name: str) -> None:
    """The first rank prints the error; the second waits to be ended."""
    recipe = pairs(folder, **placed(folder, ON_RANKS[name]))
    first, second = main_on_ranks(*arguments(folder, recipe), ranks=2)
    assert_one_paragraph(first)
    assert second.code == -signal.SIGKILL and "cpo_ds" not in second.output, second.output


def test_one_paragraph_under_the_launcher(folder: Path) -> None:
    """The error is printed once, and the job ends."""
    recipe = pairs(folder, **placed(folder, ON_RANKS["model"]))
    done = deepspeed(*arguments(folder, recipe), ranks=2)
    assert_one_paragraph(done)


def test_one_paragraph_without_a_launcher(folder: Path) -> None:
    done = alone(*arguments(folder, pairs(folder)), "--optim.learning-rat", "1")
    assert_one_paragraph(done, "--optim.learning_rat", "--optim.learning_rate")
