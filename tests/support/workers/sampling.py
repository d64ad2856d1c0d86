"""Runs that translate held-out sources, beside transformers' `generate` or interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers

from cpo_ds.engine.settings import read_deepspeed_settings
from cpo_ds.ranks.quiet import silence_libraries
from cpo_ds.ranks.ranks import Ranks, init_ranks
from cpo_ds.recipe import parse_config
from cpo_ds.run import pairs as run_pairs
from cpo_ds.run import trainer
from cpo_ds.run.build import RunInputs, build_run
from cpo_ds.run.main import main
from cpo_ds.run.monitor import Monitor
from cpo_ds.run.samples import Sampler


def sample_each(recipes: dict[str, dict[str, Any]], folder: str) -> None:
    """Trains each recipe; writes answers of each evaluation, and those of `generate` at the end.

    They are in NAME.json. An answer is a list of tokens, with a last -1 if the limit cut it.
    """
    silence_libraries()
    ranks = init_ranks()
    for name, values in recipes.items():
        run = _build(values | {"output_dir": f"{folder}/{name}"}, ranks)
        record: dict[str, Any] = {"answers": []}
        with mock.patch.object(Sampler, "_answers", _recording(record["answers"])):
            trainer.train(run)
        record["expected"] = _of_transformers(run)
        run.monitor.close()
        run.engine.release()
        if ranks.rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


def _build(values: dict[str, Any], ranks: Ranks) -> trainer.Run:
    config = parse_config(values, "test")
    settings = read_deepspeed_settings(config)
    tokenizer, train_pairs, eval_pairs, _ = run_pairs.prepare_pairs(config, prints_counts=False)
    inputs = RunInputs(
        config, settings, ranks, train_pairs, eval_pairs, text_tokenizer=tokenizer
    )  # fmt: skip
    return build_run(inputs)


def _recording(answers: list[list[list[int]]]) -> Any:
    """`Sampler._answers`, which also adds its result to a list."""
    of_sampler = Sampler._answers

    def recording(sampler: Sampler) -> Any:
        made = of_sampler(sampler)
        assert made is not None
        answers.append([[*one.tokens, *[-1] * (not one.is_whole)] for one in made])
        return made

    return recording


def _of_transformers(run: trainer.Run) -> list[list[int]]:
    """Answers of a model by transformers and peft alone, with the run's weights."""
    sampler = run.sampler
    assert sampler is not None
    # Copy the run's weights, whole, into a model of its own.
    weights = {n: w.clone() for n, w in run.engine.whole_parameters(trained_only=False)}
    config, lora = run.config, run.config.lora
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config.model.name_or_path, dtype=getattr(torch, config.model.dtype)
    )
    if lora is not None:
        settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=["q_proj"])
        model = peft.get_peft_model(model, settings)
    rest = model.load_state_dict(weights, strict=False)
    tied = [name for name in rest.missing_keys if name.endswith("lm_head.weight")]
    assert not rest.unexpected_keys and rest.missing_keys == tied, rest

    # Continue each prompt by itself.
    answers, stops = [], sampler._stops
    for beginning in sampler._beginnings:
        prompt = torch.tensor([beginning.prompt])
        tokens = model.eval().generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=beginning.limit, pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        end = next((n for n, token in enumerate(tokens) if token in stops), None)
        answers.append(tokens[:end] if end is not None else [*tokens, -1])
    return answers


def train_interrupted(event: str, step: int, *arguments: str) -> int:
    """Trains until an event at the evaluation of a step.

    The event is `kill`, between writing translations and the evaluation's line on rank 0, `kill
    after` that line, or `stop`, a signal to rank 1 in the third pass of translating.
    """
    write, translate, predict = Monitor.write, Sampler.translate, Sampler._predict
    passes: list[int] = []

    def write_or_die(monitor: Monitor, line: dict[str, Any]) -> None:
        if "eval_loss" in line and line["step"] == step:
            if event == "kill after":
                write(monitor, line)
            os.kill(os.getpid(), signal.SIGKILL)
        write(monitor, line)

    def translate_from_zero(sampler: Sampler, at: int) -> Any:
        passes[:] = [at, 0]
        return translate(sampler, at)

    def predict_and_signal(sampler: Sampler, batch: Any) -> Any:
        passes[1] += 1
        if passes == [step, 3] and sampler._ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(sampler, batch)

    if event.startswith("kill"):
        with mock.patch.object(Monitor, "write", write_or_die):
            return main(list(arguments))
    with mock.patch.multiple(Sampler, translate=translate_from_zero, _predict=predict_and_signal):
        return main(list(arguments))
