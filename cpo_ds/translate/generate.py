"""Translates by a causal language model of transformers; each rank takes a share of the batches.

The batches do not depend on the order of the rows or the number of ranks, and each is kept as a
whole. So a run that was killed goes on to the same translations, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ds.errors import UserError
from cpo_ds.ranks.progress import SENTENCES, Progress, duration
from cpo_ds.ranks.relaunch import as_one_of_ranks, become_ranks, is_rank
from cpo_ds.storage.lock import FolderLock
from cpo_ds.storage.results import cache_of, content_key, hold_cache
from cpo_ds.translate.job import Job, KeptTranslations, read_untranslated
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


@dataclass(frozen=True)
class Item:
    """A prompt to translate, as tokens."""

    key: str
    tokens: tuple[int, ...]


def plan_batches(
    items: Sequence[Item], generation: Generation, budget: int, *, longest: int = sys.maxsize
) -> list[list[Item]]:
    """Batches of distinct prompts of about the same length, the longest first: a pure function.

    A batch holds at most `budget` tokens at a time, sentences x beams x (longest prompt + new
    tokens), or a single sentence. A prompt that may get longer than `longest` with its answer is
    alone: from that length on, it would change the rotary positions of the others.
    """
    unique = {item.key: item for item in items}.values()
    batches: list[list[Item]] = []
    room = 0  # sentences that still fit into the current batch
    for item in sorted(unique, key=lambda item: (-len(item.tokens), item.tokens)):
        if room == 0:
            batches.append([])
            tokens = len(item.tokens) + generation.max_new_tokens
            room = max(1, budget // (generation.num_beams * tokens)) if tokens <= longest else 1
        batches[-1].append(item)
        room -= 1
    return batches


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
        _translate(arguments, name, generation, settings, prompt_of, ranks)
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


def _translate(
    arguments: argparse.Namespace,
    name: str,
    generation: Generation,
    prompts: PromptSettings,
    prompt_of: PromptOf,
    ranks: Ranks,
) -> None:
    """Translates on all ranks; rank 0 reads the sources and writes the rows."""
    # Imported late: torch and transformers take seconds.
    from cpo_ds.model.base_settings import own_code_line
    from cpo_ds.model.load import read_model_config
    from cpo_ds.model.positions import longest_unchanged
    from cpo_ds.model.tokenizer import load_tokenizer
    from cpo_ds.translate.local_model import LocalModel, identity

    kept = KeptTranslations(arguments.output, ranks.rank)
    jobs: list[Job] = []  # on rank 0 alone
    locks: list[FolderLock] = []  # held as long as this function runs

    def plan() -> list[list[Item]]:
        """The batches without a kept translation. Rank 0 alone reads and locks."""
        sources = read_untranslated(arguments, name)
        locks.append(hold_cache(cache_of(arguments.output)))
        config = read_model_config(arguments.model)
        if line := own_code_line(arguments.model, config):
            print(line, flush=True)
        settings = json.dumps(asdict(generation))
        model = content_key(identity(arguments.model, arguments.adapter), settings)
        day = template_date(tokenizer, kept.folder)
        ids_of = partial(
            tokenize_prompts, tokenizer=tokenizer, settings=replace(prompts, template_date=day)
        )
        job, items = _job(sources, name, prompt_of, ids_of, config, generation, model)
        jobs.append(job)
        known = kept.read()
        budget, longest = arguments.batch_tokens or 16384, longest_unchanged(config)
        batches = plan_batches(items, generation, budget, longest=longest)
        missing = [[item for item in batch if item.key not in known] for batch in batches]
        _print_plan(batches, missing)
        return [batch for batch in missing if batch]

    # Rank 0 plans; the others get its batches.
    tokenizer = ranks.everywhere(lambda: load_tokenizer(arguments.model))
    batches = ranks.on_first(plan)

    # Each rank loads the model and translates its share.
    if batches:
        if ranks.device.type == "cpu" and generation.dtype != "float32":
            ranks.say("note: most CPUs are slow in 16 bits; --dtype float32 is faster")
        model = ranks.everywhere(
            lambda: LocalModel(
                arguments.model, arguments.adapter, generation.dtype, tokenizer, ranks.device
            )
        )
        ranks.everywhere(lambda: _translate_share(model, batches, generation, kept, ranks))

    # Rank 0 writes the rows from all ranks' translations.
    lines = ranks.on_first(lambda: _write(jobs[0], arguments.output, kept))
    ranks.say("\n".join(lines))


def _write(job: Job, output: Path, kept: KeptTranslations) -> list[str]:
    """Writes the rows; returns lines to print. Raises `UserError` if translations are missing."""
    known = kept.read()
    lost = sum(key not in known for key in job.keys if key)
    if lost:
        raise UserError(
            f"{kept.folder} lacks {lost} translations that other ranks made; it must be a folder "
            "that all hosts see. Give the same command again with such an --output."
        )
    return job.write(output, known)


def _print_plan(batches: list[list[Item]], missing: list[list[Item]]) -> None:
    """Prints how many sentences there are, and how many of them are kept already."""
    count, left = sum(map(len, batches)), sum(map(len, missing))
    before = f", {count - left} of them translated before" if left < count else ""
    print(f"{count} different sentences{before}", flush=True)


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


def _translate_share(
    model: LocalModel,
    batches: list[list[Item]],
    generation: Generation,
    kept: KeptTranslations,
    ranks: Ranks,
) -> None:
    """Translates this rank's batches and keeps the translations.

    Neighbouring batches cost about the same, so dealing them out in turn is fair.
    """
    own = batches[ranks.rank :: ranks.world_size]

    def cost(batch: list[Item]) -> int:
        return len(batch) * len(batch[0].tokens)

    sentences = sum(map(len, batches))
    progress = Progress(SENTENCES, sentences, sum(map(len, own)), sum(map(cost, own)), ranks.say)

    # The seed depends on the batch alone, so any rank samples the same translations for it.
    for batch in own:
        seed = int(content_key(*(item.key for item in batch))[:8], 16)
        prompts = [item.tokens for item in batch]
        translations = model.translate(prompts, seed, **generation.arguments)
        keys = [item.key for item in batch]
        kept.add(dict(zip(keys, translations, strict=True)))
        progress.advance(len(batch), cost(batch))
    ranks.say(f"translated in {duration(progress.seconds)}")
