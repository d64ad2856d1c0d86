"""Translations by a model on this machine, for `cpo-ds prepare candidates`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ds.errors import UserError
from cpo_ds.ranks.relaunch import as_one_of_ranks, become_ranks, is_rank
from cpo_ds.storage.results import content_key
from cpo_ds.translate.generate import (
    Item,
    Work,
    check_complete,
    plan_batches,
    translate_on_ranks,
)
from cpo_ds.translate.job import Job, Translation, read_untranslated
from cpo_ds.translate.languages import all_languages
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.prompting import Prompt, PromptOf, prompt_maker
from cpo_ds.translate.tokens import (
    PromptSettings,
    prompt_settings,
    template_date,
    tokenize_prompts,
)

if TYPE_CHECKING:
    from cpo_ds.ranks.ranks import Ranks
    from cpo_ds.translate.local_model import LocalModel

_TOO_LONG = "prompt longer than the model's context"


@dataclass(frozen=True)
class Generation:
    """Settings of generation. Each of them can change the translation."""

    dtype: str
    num_beams: int
    max_new_tokens: int
    temperature: float | None  # None, with top_p None: no sampling
    top_p: float | None
    seed: int

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for transformers' `generate`; the model's own settings decide the rest."""
        values: dict[str, Any] = {"num_beams": self.num_beams, "do_sample": False}
        values["max_new_tokens"] = self.max_new_tokens
        if self.temperature is not None or self.top_p is not None:
            values["do_sample"] = True
            values["temperature"] = 1.0 if self.temperature is None else self.temperature
            values["top_p"] = 1.0 if self.top_p is None else self.top_p
        return values


def translate(arguments: argparse.Namespace, name: str) -> int:
    """Translates on the ranks that were asked for; returns the exit code. Raises `UserError`."""
    generation, settings = _generation(arguments), prompt_settings(arguments)
    style = arguments.prompt or "alma"
    languages = all_languages(arguments)
    prompt_of = prompt_maker(style, arguments.examples, arguments.shots, languages)

    # For several ranks this process becomes the launcher of the same command.
    if (arguments.ranks > 1 or arguments.hostfile) and not is_rank():
        become_ranks(sys.executable, arguments.argv, arguments.ranks, arguments.hostfile)
    with as_one_of_ranks() as ranks:
        translate_on_ranks(_work(arguments, name, generation, settings, prompt_of), ranks)
    return 0


def _generation(arguments: argparse.Namespace) -> Generation:
    """The settings of generation by the options. Raises `UserError`."""
    samples = arguments.temperature is not None or arguments.top_p is not None
    if arguments.seed is not None and not samples:
        raise UserError("--seed has no effect without --temperature or --top-p; leave it out.")
    if arguments.temperature == 0:
        raise UserError("--temperature 0 is no sampling; leave it out.")
    return Generation(
        dtype=arguments.dtype or "bfloat16",
        num_beams=arguments.beams or 5,
        max_new_tokens=arguments.max_new_tokens or 256,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed or 0,
    )


def _work(
    arguments: argparse.Namespace,
    name: str,
    generation: Generation,
    prompts: PromptSettings,
    prompt_of: PromptOf,
) -> Work:
    """The work of translating all rows. Rank 0 reads the sources and writes the rows."""
    jobs: list[Job] = []  # on rank 0 alone

    def plan(tokenizer: Any, config: Any, folder: Path) -> list[list[Item]]:
        # Imported late: they need torch.
        from cpo_ds.model.positions import longest_unchanged
        from cpo_ds.translate.local_model import identity

        sources = read_untranslated(arguments, name)
        settings = json.dumps(asdict(generation))
        model = content_key(identity(arguments.model, arguments.adapter), settings)
        day = template_date(tokenizer, folder)
        ids_of = partial(
            tokenize_prompts, tokenizer=tokenizer, settings=replace(prompts, template_date=day)
        )
        job, items = _job(sources, name, prompt_of, ids_of, config, generation, model)
        jobs.append(job)
        budget, longest = arguments.batch_tokens or 16384, longest_unchanged(config)
        return plan_batches(items, generation, budget, longest=longest)

    def load(tokenizer: Any, ranks: Ranks) -> LocalModel:
        from cpo_ds.translate.local_model import LocalModel

        return LocalModel(
            arguments.model, arguments.adapter, generation.dtype, tokenizer, ranks.device
        )

    def translate(model: LocalModel, batch: list[Item]) -> list[Translation]:
        # The seed depends on the batch alone, so any rank samples the same translations for it.
        seed = int(content_key(*(item.key for item in batch))[:8], 16)
        return model.translate([item.tokens for item in batch], seed, **generation.arguments)

    def finish(known: Mapping[str, Translation]) -> list[str]:
        check_complete(known, [key for key in jobs[0].keys if key], arguments.output)
        return jobs[0].write(arguments.output, known)

    return Work(arguments.model, generation.dtype, arguments.output, plan, load, translate, finish)


def _job(
    sources: Sources,
    name: str,
    prompt_of: PromptOf,
    ids_of: Callable[[Sequence[Prompt]], list[list[int]]],
    config: Any,
    generation: Generation,
    model: str,
) -> tuple[Job, list[Item]]:
    """The job of translating all rows, and an item for each prompt that fits into the model.

    Raises `UserError` if no prompt fits, or the tokenizer does not belong to the model.
    """
    # Imported late: it needs torch.
    from cpo_ds.model.load import check_token_ids

    # Tokenize the prompts, and find those that leave room for an answer.
    prompts = [prompt_of(row) for row in sources.rows]
    tokens = ids_of(prompts)
    check_token_ids(tokens, config)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    fits = [len(ids) + generation.max_new_tokens <= longest for ids in tokens]
    if not any(fits):
        raise UserError(
            f"the model's context of {longest} tokens is too short for any of the prompts and "
            f"--max-new-tokens {generation.max_new_tokens}; lower that, or take another model."
        )

    # The key holds all that decides a translation: model, settings and tokens of the prompt.
    items = [Item(content_key(model, json.dumps(ids)), tuple(ids)) for ids in tokens]
    keys = tuple(item.key if fit else None for item, fit in zip(items, fits, strict=True))
    job = Job(sources, name, tuple(prompts), keys, _TOO_LONG)
    return job, [item for item, fit in zip(items, fits, strict=True) if fit]
