"""The stages of a round: commands of `cpo-ds`, and the files that say that they are complete."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cpo_ds.data.candidates import write_rows
from cpo_ds.rounds.checks import Inputs
from cpo_ds.rounds.layout import SAMPLES, sample_seed, sources_of_round, system_of
from cpo_ds.storage.files import writing
from cpo_ds.translate.record import settings_file

BEST = "BEST"  # stands in a dry run for the best of earlier rounds


@dataclass(frozen=True)
class Stage:
    """A command of a round.

    It publishes its files whole, the last of `complete` last. So it is complete if all of them are
    there, and nothing else records that.
    """

    round: int
    name: str
    argv: tuple[str, ...]  # of `cpo-ds`
    complete: tuple[Path, ...]

    def is_complete(self) -> bool:
        """Whether nothing is left to do."""
        return all(path.exists() for path in self.complete)

    @property
    def saves(self) -> bool:
        """Whether the command ends by itself when asked to, after saving."""
        return self.name == "train"

    def __str__(self) -> str:
        return f"round {self.round}, {self.name}"


def stages_of(inputs: Inputs, number: int, best: str) -> list[Stage]:
    """The stages of a round in order; `best` is the system that its policy is compared with."""
    watching = [_translate(inputs, number), _evaluate(inputs, number, best)]
    if not number:
        return watching
    return [
        _sample(inputs, number),
        _score(inputs, number),
        _select(inputs, number),
        _train(inputs, number),
        *watching,
    ]


def write_inputs(inputs: Inputs, number: int) -> None:
    """Writes the files that a round's stages begin with: sources and recipe, or watched texts."""
    layout, settings = inputs.layout, inputs.settings
    if not number:
        _write_once(layout.at(0, "texts.jsonl"), inputs.watched)
        return
    wanted = settings.sources.per_round
    rows = sources_of_round(inputs.sources, wanted, settings.seed, number)
    _write_once(layout.at(number, "sources.jsonl"), rows)
    recipe = layout.at(number, "recipe.yaml")
    if not recipe.exists():
        values = inputs.recipes[number - 1].model_dump(mode="json")
        with writing(recipe) as unfinished:
            unfinished.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _write_once(path: Path, rows: Sequence[dict[str, object]]) -> None:
    if not path.exists():
        write_rows(path, rows)


def _sample(inputs: Inputs, number: int) -> Stage:
    sample, output = inputs.settings.sample, inputs.layout.at(number, "samples.jsonl")
    argv = ["translate", *_policy(inputs, number - 1)]
    argv += ["--input", str(inputs.layout.at(number, "sources.jsonl")), "--output", str(output)]
    argv += ["--name", SAMPLES, "--samples", str(sample.num)]
    argv += ["--seed", str(sample_seed(inputs.settings.seed, number))]
    for name in ("temperature", "top_k", "top_p", "min_p"):
        argv += _option(name, getattr(sample, name))
    return Stage(number, "sample", (*argv, *_translating(inputs)), (output, settings_file(output)))


def _score(inputs: Inputs, number: int) -> Stage:
    output = inputs.layout.at(number, "scored.jsonl")
    argv = ["prepare", "score", "--input", str(inputs.layout.at(number, "samples.jsonl"))]
    argv += ["--output", str(output)]
    for metric in inputs.settings.select.metrics:
        argv += ["--metric", metric]
    return Stage(number, "score", (*argv, *_scoring(inputs)), (output,))


def _select(inputs: Inputs, number: int) -> Stage:
    select, policy = inputs.settings.select, inputs.settings.policy
    output = inputs.layout.at(number, "pairs")
    argv = ["prepare", "select", "--input", str(inputs.layout.at(number, "scored.jsonl"))]
    argv += ["--output", str(output), "--prompt-style", policy.prompt]
    for metric in inputs.selecting:
        argv += ["--metric", metric.name]
    for name in ("rejected", "min_margin", "check_language", "max_length_ratio"):
        argv += _option(name, getattr(select, name))
    argv += _option("directions", ",".join(select.directions) if select.directions else None)
    return Stage(number, "select", (*argv, *_languages(inputs)), (output / "summary.json",))


def _train(inputs: Inputs, number: int) -> Stage:
    train, run = inputs.settings.train, inputs.layout.at(number, "run")
    argv = ["train", "--config", str(inputs.layout.at(number, "recipe.yaml"))]
    argv += [*_option("gpus", train.gpus), *_option("hostfile", train.hostfile)]
    return Stage(number, "train", tuple(argv), (run / "finished.json",))


def _translate(inputs: Inputs, number: int) -> Stage:
    layout, output = inputs.layout, inputs.layout.watched(number)
    source = layout.watched(number - 1) if number else layout.at(0, "texts.jsonl")
    argv = ["translate", *_policy(inputs, number), "--input", str(source)]
    argv += ["--output", str(output), "--name", system_of(number)]
    beams = inputs.settings.watch.beams or (1 if inputs.settings.translate.vllm else 5)
    argv += ["--beam", str(beams), *_translating(inputs)]
    return Stage(number, "translate", tuple(argv), (output, settings_file(output)))


def _evaluate(inputs: Inputs, number: int, best: str) -> Stage:
    layout, output = inputs.layout, inputs.layout.at(number, "evaluation.json")
    argv = ["evaluate", "--input", str(layout.watched(number)), "--json", str(output)]
    systems = [best, system_of(number)] if number else [system_of(0)]
    for system in systems:
        argv += ["--system", system]
    given = [*inputs.settings.watch.metrics, *inputs.settings.select.metrics]
    for text, metric in zip(given, [*inputs.watching, *inputs.selecting], strict=True):
        argv += ["--metric", text] * (metric in inputs.shown)
    if number:
        argv += ["--baseline", best, "--paired-bs"]
        chose = "+".join(metric.model for metric in inputs.selecting)
        trained = [system for system in systems if system != system_of(0)]
        argv += [word for system in trained for word in ("--selected-by", f"{system}={chose}")]
    argv += ["--cache", str(layout.scores), *_scoring(inputs)]
    return Stage(number, "evaluate", tuple(argv), (output,))


def _policy(inputs: Inputs, number: int) -> list[str]:
    """The policy after a round; after round 0 it is the one to start from."""
    if number:
        return ["--model", str(inputs.layout.at(number, "run"))]
    policy = inputs.settings.policy
    return ["--model", policy.model, *_option("adapter", policy.adapter)]


def _translating(inputs: Inputs) -> list[str]:
    """Options of samples and of watched translations, which the training's tokens agree with."""
    translate, policy = inputs.settings.translate, inputs.settings.policy
    data = inputs.recipes[0].data
    argv = ["--prompt", policy.prompt, "--add-bos", data.add_bos]
    if policy.prompt == "chat" and data.chat_template_kwargs:
        argv += ["--chat-template-kwargs", json.dumps(data.chat_template_kwargs)]
    argv += [*_languages(inputs), *_option("dtype", translate.dtype)]
    argv += _ranks(translate.ranks, translate.hostfile, shard=translate.shard)
    argv += ["--vllm"] * translate.vllm
    for name in ("batch_tokens", "max_new_tokens", "max_prompt_tokens"):
        argv += _option(name, getattr(translate, name))
    return argv


def _scoring(inputs: Inputs) -> list[str]:
    score = inputs.settings.score
    argv = ["--dtype", score.dtype, *_ranks(score.ranks, score.hostfile, shard=score.shard)]
    argv += ["--use-reference"] * score.use_reference
    return [*argv, "--batch-tokens", str(score.batch_tokens)]


def _ranks(ranks: int, hostfile: str | None, *, shard: bool) -> list[str]:
    where = ["--hostfile", hostfile] if hostfile else ["--ranks", str(ranks)]
    return [*where, *["--shard"] * shard]


def _languages(inputs: Inputs) -> list[str]:
    named = inputs.settings.policy.languages
    return [word for code, name in named.items() for word in ("--language", f"{code}={name}")]


def _option(name: str, value: object) -> list[str]:
    """An option and its value; nothing for None."""
    return [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
