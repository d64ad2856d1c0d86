"""`cpo-ds plan`: its answers, its refusals, and the page made from it."""

import json
import re

import pytest
from repository import ROOT

from cpo_ds.cli import main

pytestmark = pytest.mark.usefixtures("passes_measured_once")


def plan(capsys, *words):
    code = main(["plan", "--config", str(ROOT / "recipes/alma-7b-r-full.yaml"), *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_answers_in_text_and_in_json(capsys):
    options = ("--shape", "tiny", "--device", "RTX 4090", "--gpus", "2", "--pairs", "1000")
    code, text, _ = plan(capsys, *options)
    assert code == 0 and "It fits" in text and "zero3-offload" in text and "Assumed" in text
    code, text, _ = plan(capsys, *options, "--json", "--batch.pairs", "64")
    values = json.loads(text)
    assert code == 0 and values["fits"] and values["time"]["steps"] == 16
    assert len(values["table"]) == 10
    assert values["total_gib"] == pytest.approx(sum(values["memory_gib"].values()))


def test_dpo_on_a_continued_adapter_is_planned_by_shape(capsys):
    words = ["--shape", "tiny", "--device", "H100", "--json", "--loss.name"]
    sizes = []
    for name in ("cpo", "dpo"):
        code = main(["plan", "--config", str(ROOT / "recipes/alma-7b-r-lora.yaml"), *words, name])
        assert code == 0
        sizes.append(json.loads(capsys.readouterr().out)["memory_gib"])
    assert sizes[1]["reference model"] == pytest.approx(sizes[1]["parameters"])
    assert "reference model" not in sizes[0] or sizes[0]["reference model"] == 0


def test_auto_takes_the_precision_that_the_planned_gpu_computes(capsys):
    options = ("--shape", "tiny", "--model.dtype", "auto")
    for device, dtype in (("H100", "bfloat16"), ("T4", "float32"), ("V100-32GB", "float32")):
        code, text, _ = plan(capsys, *options, "--device", device)
        assert code == 0 and f"{dtype}, cpo" in text
    assert "Time: none, since no speed of V100-32GB in float32 is known" in text
    code, text, _ = plan(capsys, *options, "--gpu-memory", "40")
    assert code == 0 and "bfloat16, cpo" in text
    code, text, _ = plan(capsys, "--shape", "tiny", "--device", "T4")  # the recipe's bfloat16
    assert code == 0 and "no speed of T4 in bfloat16" in text


def test_all_parameters_of_7b_fit_one_gpu_by_optimizer_states_in_bfloat16(capsys):
    card = ("--shape", "llama-2-7b", "--device", "A100-80GB", "--gpus", "1")
    code, text, _ = plan(capsys, *card, "--optim.states", "bfloat16")
    assert code == 0 and "It fits" in text and "bfloat16, optimizer states too, cpo" in text
    values = json.loads(plan(capsys, *card, "--optim.states", "bfloat16", "--json")[1])
    assert values["memory_gib"]["optimizer"] == pytest.approx(6 * values["weights"] / 2**30)
    assert values["host_gib"] == 0 and values["largest_tokens_per_rank"] > 4 * 4096
    names = [cell["deepspeed"] for cell in values["table"] if cell["training"] == "full"]
    assert names == ["zero1", "zero2", "zero3"]  # those that have such states

    # Without it the way out is named, and its price.
    text = plan(capsys, *card)[1]
    assert "It does not fit" in text
    assert "- optim.states bfloat16 fits, but loses small updates in rounding" in text
    text = plan(capsys, *card, "--deepspeed", "zero0")[1]
    assert "- optim.states bfloat16 fits with deepspeed zero3, but loses" in text
    text = plan(capsys, *card, "--deepspeed", "auto")[1]
    assert "auto takes zero3-offload" in text
    assert "nothing need be offloaded with deepspeed zero3 and optim.states bfloat16" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--deepspeed", "zero0"), "sets ZeRO stage 0, which has none"),
        (("--deepspeed", "zero3-offload"), "offloads the optimizer"),
        (("--model.dtype", "float32"), "model.dtype is float32"),
        (("--model.dtype", "auto", "--device", "T4"), "model.dtype is float32"),
        (("--model.dtype", "float32", "--deepspeed", "auto"), "model.dtype is float32"),
    ],
)
def test_states_in_bfloat16_that_training_refuses_are_not_planned(capsys, words, said):
    options = ("--shape", "tiny", "--device", "H100", "--optim.states", "bfloat16")
    code, _, error = plan(capsys, *options, *words)
    assert code == 2 and "optim.states is bfloat16 and" in error and said in error


def test_an_adapter_is_not_advised_to_round_its_states(capsys):
    options = ("--shape", "llama-2-7b", "--gpus", "1", "--gpu-memory", "10", "--lora.rank", "16")
    assert "optim.states" not in plan(capsys, *options)[1]


def test_too_little_room_is_an_answer_with_advice(capsys):
    code, text, _ = plan(capsys, "--shape", "tiny", "--gpu-memory", "0.9", "--gpus", "1")
    assert code == 2 and "GiB are missing" in text and "No batch.tokens_per_rank" in text
    assert text.startswith("Recommended: nothing fits 1 GPU of 0.9 GiB. What would:\n")
    assert re.search(r"- a LoRA adapter on GPUs of 1\.\d GiB \(T4 has 14\.6\), with", text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shape", "huge", "--device", "H100"), "there is no shape huge"),
        (("--shape", "tiny", "--device", "P100"), "there is no device P100; known are"),
        (("--shape", "tiny", "--device", "a100"), "a100 alone (it may be A100-40GB or A100-80GB"),
        (("--shape", "tiny"), "Give --device NAME or --gpu-memory GIB"),
        (("--shape", "tiny", "--device", "H100", "--gpus", "0"), "--gpus is 0"),
        (("--shape", "tiny", "--gpu-memory", "nan"), "--gpu-memory is nan"),
        (("--shape", "tiny", "--device", "H100", "--lora.target_modules", "[query]"), "query"),
        (("--shape", "tiny", "--device", "H100", "--batch.pears", "3"), "batch.pairs"),
        (("--model.name_or_path", "nowhere/none", "--device", "H100"), "give --shape"),
        (
            ("--shape", "tiny", "--device", "H100", "--deepspeed", "none.json"),
            "there is no file none.json",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(capsys, words, said):
    code, _, error = plan(capsys, *words)
    assert code == 2 and said in error and "Traceback" not in error


def test_what_is_left_to_the_planner_is_settled_and_said(capsys):
    left = ("--deepspeed", "auto", "--model.gradient_checkpointing", "auto", "--shape", "tiny")
    code, text, _ = plan(capsys, *left, "--device", "H100", "--gpus", "1")
    assert code == 0 and "deepspeed: auto takes zero0 (" in text
    assert "auto recomputes 0 of 2 layers" in text and "activations kept" in text
    code, text, _ = plan(capsys, *left, "--device", "H100", "--json")
    values = json.loads(text)
    assert values["deepspeed"] == "zero0" and values["recomputed_layers"] == 0


def test_as_few_layers_as_make_a_recipe_fit_are_advised(capsys):
    needs = ("--shape", "llama-25m", "--gpus", "1", "--deepspeed", "zero0")
    sizes = {}
    for layers in (6, 7):
        options = ("--model.gradient_checkpointing", str(layers), "--gpu-memory", "9", "--json")
        sizes[layers] = json.loads(plan(capsys, *needs, *options)[1])["total_gib"]
    memory = f"{(sizes[6] + sizes[7]) / 2:.6f}"
    options = ("--gpu-memory", memory, "--model.gradient_checkpointing", "2")
    text = plan(capsys, *needs, *options)[1]
    assert "- model.gradient_checkpointing 7 fits" in text
    assert "activations of 2 of 10 layers recomputed" in text


def test_more_layers_than_the_model_has_are_refused(capsys):
    words = ("--shape", "tiny", "--device", "H100", "--model.gradient_checkpointing", "3")
    code, _, error = plan(capsys, *words)
    assert code == 2 and "gradient_checkpointing is 3, but the model has 2 layers" in error


def test_other_commands_take_no_recipe_options(capsys):
    assert main(["report", "runs/x", "--batch.pairs", "3"]) == 2
    assert "there is no option --batch.pairs" in capsys.readouterr().err


def test_the_scaling_page_is_what_its_script_writes():
    from scaling_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_table_offers_only_what_training_takes(dtype, capsys):
    options = ["--config", str(ROOT / "recipes" / "alma-7b-r-lora.yaml"), "--model.dtype", dtype]
    assert main(["plan", *options, "--shape", "tiny", "--device", "H100"]) == 0
    table = capsys.readouterr().out.partition("ds_configs/ ")[2]
    assert ("zero0" in table) == (dtype == "bfloat16") and "zero2" in table
