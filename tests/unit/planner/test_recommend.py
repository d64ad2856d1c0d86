"""The recommended line of `cpo-ds plan`, with a recipe and without."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from cpo_ds.cli import main
from cpo_ds.devices import DEVICES
from cpo_ds.model.shapes import SHAPES

pytestmark = pytest.mark.usefixtures("passes_measured_once")


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["plan", *words])
    return code, capsys.readouterr().out


def values(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(plan(capsys, *words, "--json")[1])
    return read


def test_all_parameters_are_recommended_if_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = plan(capsys, "--shape", "llama-5m", "--device", "H100", "--gpus", "2")
    assert code == 0
    assert text.startswith("Recommended: train all parameters with deepspeed zero0 and batch.tok")
    options = text.splitlines()[1].removeprefix("As options: ").split()
    # The options give the plan that was recommended.
    again = values(
        capsys, "--config", "own-pairs", "--shape", "llama-5m", "--device", "H100", "--gpus", "2",
        "--model.gradient_checkpointing", "true", *options,
    )  # fmt: skip
    assert again["fits"] and f"{again['total_gib']:.1f} of 79.0 GiB" in text.splitlines()[0]
    assert again["recommended"]["training"] == "full"


def test_an_adapter_is_recommended_if_all_parameters_do_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--shape", "smollm2-135m", "--gpus", "1", "--gpu-memory", "4")
    code, text = plan(capsys, *words)
    first = text.splitlines()[0]
    assert code == 0 and "Recommended: train a LoRA adapter with deepspeed zero1" in first
    assert "All parameters fit only if they are offloaded" in first and "of each host." in first
    taken = values(capsys, *words)["recommended"]
    assert taken["training"] == "LoRA" and taken["host_gib"] == 0
    assert taken["total_gib"] < 0.92 * 4  # with room for errors of the estimate
    # As many tokens as fit, and not more than a step has.
    assert taken["tokens_per_rank"] == 64 * 145
    taken = values(capsys, *words[:-1], "2.6")["recommended"]
    assert 1024 <= taken["tokens_per_rank"] < 8192 and taken["tokens_per_rank"] % 256 == 0
    # A recipe that trains all parameters gets the same advice, one with an adapter no such remark.
    text = plan(capsys, "--config", "own-pairs", "--lora", "none", "--deepspeed", "zero0", *words)[
        1
    ]
    assert "train a LoRA adapter" in text.splitlines()[0] and "It does not fit" in text
    text = plan(capsys, "--config", "own-pairs", *words)[1]
    assert "All parameters" not in text.splitlines()[0]


def test_nothing_fits_is_exit_code_2_with_ways_out(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "llama-2-7b", "--gpus", "1", "--gpu-memory", "5")
    code, text = plan(capsys, *words)
    assert code == 2 and text.startswith("Recommended: nothing fits 1 GPU of 5.0 GiB. What would:")
    larger, smaller = text.partition("\n\n")[0].splitlines()[1:]
    assert larger.startswith("- a LoRA adapter on GPUs of ") and "a smaller model" in smaller
    assert values(capsys, *words)["recommended"] is None
    # The way out is one.
    needed = larger.removeprefix("- a LoRA adapter on GPUs of ").split()[0]
    options = ("--deepspeed", "zero3-offload", "--batch.tokens_per_rank", "1024")
    words = ("--shape", "llama-2-7b", "--gpus", "1", "--gpu-memory", str(float(needed) + 0.1))
    assert plan(capsys, *words, *options)[0] == 0


def test_a_base_in_4_bits_is_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--shape", "tinyllama-1.1b", "--gpus", "1", "--gpu-memory", "4")
    code, text = plan(capsys, *words)
    assert code == 2 and "- a LoRA adapter on a base in 4 bits: --model.quantization nf4" in text


WRONG = [
    (("--shape", "llama-3-9b", "--device", "H100"), "did you mean llama-3-8b?"),
    (("--shape", "llama-3-8b", "--device", "A100"), "it may be A100-40GB or A100-80GB"),
    (("--shape", "llama-3-8b"), "Give --device NAME or --gpu-memory GIB"),
    (("--device", "H100"), "no model is given. Name a shape (--shape llama-3.1-8b"),
    (("--shape", "llama-3-8b", "--device", "H100", "--gpus", "-1"), "--gpus is -1"),
    (("--shape", "llama-3-8b", "--device", "H100", "--batch.pears", "1"), "batch.pairs"),
    (("--config", "none.yaml", "--device", "H100"), "there is no recipe none.yaml"),
]


def test_wrong_options_are_refused_before_torch_is_imported() -> None:
    code = (
        "import json, sys\n"
        "from cpo_ds.cli import main\n"
        "codes = [main(['plan', *words]) for words in json.loads(sys.argv[1])]\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "print(codes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([words for words, _ in WRONG])],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == str([2] * len(WRONG)), done.stderr
    for line, (_, said) in zip(done.stderr.splitlines(), WRONG, strict=True):
        assert said in line


def test_the_help_names_every_shape_and_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    words = capsys.readouterr().out.replace("\n", " ").replace(",", " ").split()
    joined = "".join(words)  # argparse breaks lines at hyphens
    assert all(name in joined for name in (*SHAPES, *DEVICES))
