"""Translates prompts by a causal language model of transformers; each rank takes some batches.

The batches do not depend on the order of the rows or the number of ranks, and each is kept as a
whole. So a run that was killed goes on to the same translations, to the last bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cpo_ds.errors import UserError
from cpo_ds.ranks.progress import SENTENCES, Progress, duration
from cpo_ds.storage.lock import FolderLock
from cpo_ds.storage.results import cache_of, hold_cache
from cpo_ds.translate.job import KeptTranslations, Translation

if TYPE_CHECKING:
    from cpo_ds.ranks.ranks import Ranks


class Sizes(Protocol):
    """The settings of generation that decide how much memory a sentence takes."""

    @property
    def num_beams(self) -> int:
        """Hypotheses of a sentence at a time."""

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer."""


@dataclass(frozen=True)
class Item:
    """A prompt to translate, as tokens. `draw` tells samples of one prompt apart."""

    key: str
    tokens: tuple[int, ...]
    draw: int = 0


@dataclass(frozen=True)
class Work:
    """What to translate, by which model, and what to do with the translations.

    Rank 0 alone calls `plan`, with tokenizer, model configuration and the folder of kept
    translations; it returns all batches. Each rank calls `load` with tokenizer and ranks, and
    `translate` with what that returned and a batch. Rank 0 alone calls `finish` with all
    translations by key; it returns lines to print. With `in_step`, as a model that is split over
    the ranks needs it, all ranks call `translate` equally often.
    """

    model: str
    dtype: str
    output: Path
    plan: Callable[[Any, Any, Path], list[list[Item]]]
    load: Callable[[Any, Ranks], Any]
    translate: Callable[[Any, list[Item]], Sequence[Translation]]
    finish: Callable[[Mapping[str, Translation]], list[str]]
    in_step: bool = False


def plan_batches(
    items: Sequence[Item], sizes: Sizes, budget: int, *, longest: int = sys.maxsize
) -> list[list[Item]]:
    """Batches of distinct prompts of about the same length, the longest first: a pure function.

    A batch holds at most `budget` tokens at a time, sentences x beams x (longest prompt + new
    tokens), or a single sentence. A prompt that may get longer than `longest` with its answer is
    alone: from that length on, it would change the rotary positions of the others.
    """
    unique = {item.key: item for item in items}.values()
    batches: list[list[Item]] = []
    room = 0  # sentences that still fit into the current batch
    for item in sorted(unique, key=lambda item: (-len(item.tokens), item.tokens, item.draw)):
        if room == 0:
            batches.append([])
            tokens = len(item.tokens) + sizes.max_new_tokens
            room = max(1, budget // (sizes.num_beams * tokens)) if tokens <= longest else 1
        batches[-1].append(item)
        room -= 1
    return batches


def translate_on_ranks(work: Work, ranks: Ranks) -> None:
    """Translates on all ranks. Raises `UserError`."""
    # Imported late: torch and transformers take seconds.
    from cpo_ds.model.base_settings import own_code_line
    from cpo_ds.model.load import read_model_config
    from cpo_ds.model.tokenizer import load_tokenizer

    kept = KeptTranslations(work.output, ranks.rank)
    locks: list[FolderLock] = []  # held as long as this function runs

    def plan() -> list[list[Item]]:
        """The batches without a kept translation. Rank 0 alone plans and locks."""
        locks.append(hold_cache(cache_of(work.output)))
        config = read_model_config(work.model)
        if line := own_code_line(work.model, config):
            print(line, flush=True)
        batches = work.plan(tokenizer, config, kept.folder)
        known = kept.read()
        missing = [[item for item in batch if item.key not in known] for batch in batches]
        _print_plan(batches, missing)
        return [batch for batch in missing if batch]

    # Rank 0 plans; the others get its batches.
    tokenizer = ranks.everywhere(lambda: load_tokenizer(work.model))
    batches = ranks.on_first(plan)

    # Each rank loads the model and translates its share.
    if batches:
        if ranks.device.type == "cpu" and work.dtype != "float32":
            ranks.say("note: most CPUs are slow in 16 bits; --dtype float32 is faster")
        if work.in_step:
            # A rank that fails ends at once: the others cannot finish what they compute together.
            _translate_share(work, work.load(tokenizer, ranks), batches, kept, ranks)
        else:
            model = ranks.everywhere(lambda: work.load(tokenizer, ranks))
            ranks.everywhere(lambda: _translate_share(work, model, batches, kept, ranks))

    # Rank 0 uses the translations of all ranks.
    ranks.say("\n".join(ranks.on_first(lambda: work.finish(kept.read()))))


def check_complete(known: Mapping[str, Translation], keys: Sequence[str], output: Path) -> None:
    """Raises `UserError` if translations of other ranks are missing, as in a folder of one host."""
    lost = sum(key not in known for key in keys)
    if lost:
        raise UserError(
            f"{cache_of(output)} lacks {lost} translations that other ranks made; it must be a "
            "folder that all hosts see. Give the same command again with such an --output."
        )


def _print_plan(batches: list[list[Item]], missing: list[list[Item]]) -> None:
    """Prints how many sentences there are, and how many of them are kept already."""
    count, left = sum(map(len, batches)), sum(map(len, missing))
    before = f", {count - left} of them translated before" if left < count else ""
    print(f"{count} different sentences{before}", flush=True)


def _translate_share(
    work: Work,
    model: Any,
    batches: list[list[Item]],
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
    for batch in own:
        translations = work.translate(model, batch)
        kept.add(dict(zip((item.key for item in batch), translations, strict=True)))
        progress.advance(len(batch), cost(batch))
    if work.in_step and len(own) < -(-len(batches) // ranks.world_size):
        work.translate(model, batches[-1][:1])  # a stand-in that does not count
    if work.in_step:
        ranks.wait_for_all()
    ranks.say(f"translated in {duration(progress.seconds)}")
