"""Translates rows by a model on this machine, for `cpo-ds translate`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ds.data.candidates import write_rows
from cpo_ds.data.prompts import Languages
from cpo_ds.storage.files import writing
from cpo_ds.storage.results import content_key
from cpo_ds.translate.answers import Asked, Cleaning, translations, with_translations
from cpo_ds.translate.decoding import Decoding, OwnSettings, own_settings
from cpo_ds.translate.generate import Item, Work, check_complete, plan_batches
from cpo_ds.translate.job import Translation, check_untranslated, count_lines, source_lines
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.model_choice import ModelChoice
from cpo_ds.translate.prompting import PromptOf
from cpo_ds.translate.prompts_of_rows import SERVE, SPLIT, Limits, prompts_of_rows, room_for_prompts
from cpo_ds.translate.protocol import Protocol, differences
from cpo_ds.translate.rerank import choose_by_chrf
from cpo_ds.translate.tokens import PromptSettings, template_date, tokenize_prompts

if TYPE_CHECKING:
    from cpo_ds.translate.local_model import LocalModel

_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "sacrebleu")


@dataclass(frozen=True)
class Request:
    """What to translate, by which model, how, and where to."""

    choice: ModelChoice
    read: Callable[[], Sources]
    origin: str  # the input's name in the settings that are written
    output: Path
    name: str
    style: str
    prompt_of: PromptOf
    prompts: PromptSettings
    languages: Languages
    decoding: Decoding
    dtype: str
    max_prompt_tokens: int
    long: str
    cleaning: str
    rerank: str | None
    batch_tokens: int

    @property
    def names(self) -> list[str]:
        """The candidates' names: numbered ones if several samples of a source are kept."""
        if self.decoding.samples < 2 or self.rerank:
            return [self.name]
        return [f"{self.name}-{number + 1}" for number in self.decoding.draws]


@dataclass
class _Planned:
    """The plan of rank 0: what is needed to use the translations."""

    sources: Sources
    asked: list[Asked]
    own: OwnSettings
    decoding: Decoding
    identity: str
    prompts: PromptSettings
    num_long: int = 0
    num_parts: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def work_of(request: Request) -> Work:
    """The request as work for ranks."""
    planned: list[_Planned] = []  # on rank 0 alone

    def plan(tokenizer: Any, config: Any, folder: Path) -> list[list[Item]]:
        made, batches = _plan(request, tokenizer, config, folder)
        planned.append(made)
        return batches

    def translate(model: LocalModel, batch: list[Item]) -> list[Translation]:
        own = own_sampling(request.choice.model, model.generation_settings, request.decoding)
        return model.translate([item.tokens for item in batch], 0, **_arguments(own, batch))

    return Work(
        request.choice.model,
        request.choice.adapter,
        request.dtype,
        request.output,
        plan,
        translate,
        lambda known: _finish(request, planned[0], known),
        request.choice.quantization,
    )


def own_sampling(name: str, settings: dict[str, Any], decoding: Decoding) -> Decoding:
    """The decoding with the model's own settings of sampling where none is given."""
    return decoding.with_own(own_settings(settings, name, samples=bool(decoding.samples)).applied)


def _arguments(decoding: Decoding, batch: list[Item]) -> dict[str, Any]:
    """The arguments for transformers' `generate`."""
    from cpo_ds.translate.sampling import sampling_arguments  # imported late: it needs torch

    fixed = {
        "num_beams": decoding.num_beams,
        "do_sample": False,
        "max_new_tokens": decoding.max_new_tokens,
    }
    if not decoding.samples:
        return fixed
    seeds = [decoding.seed_of(item.tokens, item.draw) for item in batch]
    return fixed | sampling_arguments(decoding, seeds)


def _plan(
    request: Request, tokenizer: Any, config: Any, folder: Path
) -> tuple[_Planned, list[list[Item]]]:
    """Reads the sources, makes their prompts and plans the batches. Raises `UserError`."""
    # Imported late: they need torch.
    from cpo_ds.model.load import check_token_ids
    from cpo_ds.model.positions import longest_unchanged
    from cpo_ds.translate.local_model import generation_settings, identity

    # Read the sources, and the model's own settings.
    sources = replace(request.read(), languages=request.languages)
    check_untranslated(sources, request.names)
    settings = generation_settings(request.choice.model, config)
    own = own_settings(settings, request.choice.model, samples=bool(request.decoding.samples))
    decoding = request.decoding.with_own(own.applied)
    print("\n".join([*source_lines(sources), *own.lines]), flush=True)

    # Make the prompts, with the day that a chat template prints.
    day = request.prompts.template_date or template_date(tokenizer, folder)
    prompts = replace(request.prompts, template_date=day)
    ids_of = partial(tokenize_prompts, tokenizer=tokenizer, settings=prompts)
    room = room_for_prompts(config, decoding.max_new_tokens)
    limits = Limits(request.max_prompt_tokens, request.long, room)
    rows, num_long = prompts_of_rows(sources, request.prompt_of, ids_of, limits)
    check_token_ids([ids for row in rows for ids in row.tokens], config)

    # A key holds all that decides an answer: model, settings, tokens of the prompt and the sample.
    model = identity(request.choice.model, request.choice.adapter)
    decides = [model, request.dtype, request.choice.quantization, asdict(decoding), own.applied]
    model_key = content_key(json.dumps(decides, default=str))
    items = [
        [
            [Item(content_key(model_key, json.dumps([n, *ids])), ids, n) for ids in row.tokens]
            for n in decoding.draws
        ]
        for row in rows
    ]
    asked = [
        Asked(row.prompts, tuple(tuple(item.key for item in sample) for sample in samples))
        for row, samples in zip(rows, items, strict=True)
    ]
    flat = [item for samples in items for sample in samples for item in sample]
    batches = plan_batches(flat, decoding, request.batch_tokens, longest=longest_unchanged(config))
    parts = sum(len(row.prompts) for row in rows if len(row.prompts) > 1)
    made = _Planned(sources, asked, own, decoding, model, prompts, num_long, parts)
    for line in _long_lines(request, made):
        print(line, flush=True)
    return made, batches


def _long_lines(request: Request, planned: _Planned) -> list[str]:
    """A line to print on sources that are longer than the limit, if there are any."""
    if not planned.num_long:
        return []
    done = {SERVE: "served whole", SPLIT: f"split into {planned.num_parts} parts"}[request.long]
    return [f"  prompt longer than {request.max_prompt_tokens} tokens, {done}: {planned.num_long}"]


def _finish(request: Request, planned: _Planned, known: Mapping[str, Translation]) -> list[str]:
    """Writes the rows and the settings beside them; returns lines to print."""
    keys = [key for asked in planned.asked for sample in asked.keys for key in sample]
    check_complete(known, keys, request.output)
    cleaning = Cleaning(request.cleaning)
    texts = translations(planned.sources, planned.asked, known, cleaning)
    if request.rerank:
        texts = [[own[choose_by_chrf(own)]] for own in texts]
    write_rows(request.output, with_translations(planned.sources, texts, request.names))
    counts = +cleaning.counts
    settings = _settings(request, planned, counts)
    with writing(settings_file(request.output)) as unfinished:
        text = json.dumps(settings, ensure_ascii=False, indent=2, default=str)
        unfinished.write_text(f"{text}\n", encoding="utf-8")
    made = len(texts) * len(request.names)
    listed = " to ".join(dict.fromkeys((request.names[0], request.names[-1])))
    differs = settings["differs_from_published"]
    protocol = f"not the published protocol: {'; '.join(differs)}" if differs else "published"
    return [
        f"{request.output}: {len(texts)} rows, {made} translations by {listed}",
        *count_lines(counts),
        f"protocol: {protocol}",
    ]


def settings_file(output: Path) -> Path:
    """The file beside an output that holds the settings by which it was made."""
    return output.with_name(f"{output.name}.settings.json")


def _settings(request: Request, planned: _Planned, counts: Counter[str]) -> dict[str, Any]:
    """All that decides the output, in plain values."""
    decoding = planned.decoding
    differs = differences(
        Protocol(
            decoding.num_beams,
            decoding.max_new_tokens,
            bool(decoding.samples),
            request.style,
            planned.prompts.add_bos,
            request.cleaning,
            request.max_prompt_tokens,
            planned.num_long,
            request.long,
            bool(planned.own.without_effect.get("do_sample")),
        )
    )
    return {
        "system": request.name,
        "protocol": "other" if differs else "published",
        "differs_from_published": differs,
        "input": request.origin,
        "rows": len(planned.sources.rows),
        "model": request.choice.model,
        "adapter": request.choice.adapter,
        "identity": planned.identity,
        "dtype": request.dtype,
        "quantization": request.choice.quantization,
        "decoding": asdict(decoding),
        "generation_config": planned.own.applied,
        "rerank": request.rerank,
        "prompt": request.style,
        "tokens": asdict(planned.prompts),
        "max_prompt_tokens": request.max_prompt_tokens,
        "long": request.long,
        "long_sources": planned.num_long,
        "parts_of_split_sources": planned.num_parts,
        "cleaning": request.cleaning,
        "counts": dict(counts.most_common()),
        "batch_tokens": request.batch_tokens,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "sha256": hashlib.sha256(request.output.read_bytes()).hexdigest(),
    }
