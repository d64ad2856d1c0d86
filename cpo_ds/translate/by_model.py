"""Translates rows by a model on this machine, for `cpo-ds translate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ds.data.candidates import write_rows
from cpo_ds.storage.results import cache_of, content_key
from cpo_ds.translate.answers import Asked, Cleaning, translations, with_translations
from cpo_ds.translate.decoding import Decoding, own_settings
from cpo_ds.translate.generate import Item, Work, check_complete, plan_batches
from cpo_ds.translate.job import Translation, check_untranslated, count_lines, source_lines
from cpo_ds.translate.prompts_of_rows import SERVE, SPLIT, Limits, prompts_of_rows, room_for_prompts
from cpo_ds.translate.record import Planned, Request, write_settings
from cpo_ds.translate.rerank import MBR, choose_by_chrf, choose_by_metric
from cpo_ds.translate.tokens import template_date, tokenize_prompts

if TYPE_CHECKING:
    from cpo_ds.ranks.ranks import Ranks
    from cpo_ds.translate.local_model import LocalModel
    from cpo_ds.translate.vllm_model import VllmModel


class RowsByModel:
    """Translates the rows of a request: `work` is for all ranks, `finish_scoring` for rank 0."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._planned: Planned | None = None  # on rank 0 alone
        self._texts: list[list[str]] = []
        self._counts: Counter[str] = Counter()
        self.work = Work(
            request.choice.model,
            request.dtype,
            request.output,
            self._plan,
            self._load,
            self._translate,
            self._finish,
            in_step=request.shard,
        )

    def finish_scoring(self) -> list[str]:
        """Lets a metric choose among the samples, and writes the rows; returns lines to print.

        It starts programs of its own, so it is called after the ranks are done. Raises `UserError`
        if the metric cannot score.
        """
        planned, metric = self._planned, self.request.rerank
        assert planned is not None and metric is not None
        folder = cache_of(self.request.output)
        best = choose_by_metric(
            planned.sources.rows, self._texts, metric, folder, self.request.scoring
        )
        return self._write(
            planned, [[texts[i]] for texts, i in zip(self._texts, best, strict=True)]
        )

    def _load(self, tokenizer: Any, ranks: Ranks) -> LocalModel | VllmModel:
        """The model: whole on this rank, or its share of it. vLLM runs on rank 0 alone."""
        from cpo_ds.translate.local_model import LocalModel
        from cpo_ds.translate.vllm_model import VllmModel

        choice, dtype = self.request.choice, self.request.dtype
        if not self.request.is_vllm:
            return LocalModel(
                choice.model,
                choice.adapter,
                dtype,
                tokenizer,
                ranks.device,
                choice.quantization,
                shards=ranks.world_size if self.request.shard else 0,
            )
        planned = self._planned
        assert planned is not None
        longest = planned.longest_prompt + planned.decoding.max_new_tokens
        return VllmModel(choice.model, choice.adapter, dtype, tokenizer, longest, planned.settings)

    def _translate(self, model: Any, batch: list[Item]) -> list[Translation]:
        name, decoding = self.request.choice.model, self.request.decoding
        prompts = [item.tokens for item in batch]
        seeds = [decoding.seed_of(item.tokens, item.draw) for item in batch]
        if self.request.is_vllm:
            assert self._planned is not None
            penalty = self._planned.own.applied.get("repetition_penalty", 1.0)
            return model.translate(prompts, seeds, self._planned.decoding, penalty)
        own = own_settings(model.generation_settings, name, samples=bool(decoding.samples))
        return model.translate(prompts, 0, **_arguments(decoding.with_own(own.applied), seeds))

    def _plan(self, tokenizer: Any, config: Any, folder: Path) -> list[list[Item]]:
        self._planned, batches = _plan(self.request, tokenizer, config, folder)
        return batches

    def _finish(self, known: Mapping[str, Translation]) -> list[str]:
        """Writes the rows and the settings beside them, unless a metric has to choose first."""
        planned, rerank = self._planned, self.request.rerank
        assert planned is not None
        keys = [key for asked in planned.asked for sample in asked.keys for key in sample]
        check_complete(known, keys, self.request.output)
        cleaning = Cleaning(self.request.cleaning)
        texts = translations(planned.sources, planned.asked, known, cleaning)
        self._texts, self._counts = texts, +cleaning.counts
        if rerank == MBR:
            texts = [[own[choose_by_chrf(own)]] for own in texts]
        elif rerank:
            return [f"{sum(map(len, texts))} samples, to be scored by {rerank}"]
        return self._write(planned, texts)

    def _write(self, planned: Planned, texts: list[list[str]]) -> list[str]:
        request = self.request
        write_rows(request.output, with_translations(planned.sources, texts, request.names))
        differs = write_settings(request, planned, self._counts)
        listed = " to ".join(dict.fromkeys((request.names[0], request.names[-1])))
        made = len(texts) * len(request.names)
        protocol = f"not the published protocol: {'; '.join(differs)}" if differs else "published"
        return [
            f"{request.output}: {len(texts)} rows, {made} translations by {listed}",
            *count_lines(self._counts),
            f"protocol: {protocol}",
        ]


def _arguments(decoding: Decoding, seeds: list[int]) -> dict[str, Any]:
    """The arguments for transformers' `generate`; the seeds are those of samples."""
    from cpo_ds.translate.sampling import sampling_arguments  # imported late: it needs torch

    fixed = {
        "num_beams": decoding.num_beams,
        "do_sample": False,
        "max_new_tokens": decoding.max_new_tokens,
    }
    return fixed | (sampling_arguments(decoding, seeds) if decoding.samples else {})


def _plan(
    request: Request, tokenizer: Any, config: Any, folder: Path
) -> tuple[Planned, list[list[Item]]]:
    """Reads the sources, makes their prompts and plans the batches. Raises `UserError`."""
    # Imported late: they need torch.
    from cpo_ds.model.load import check_token_ids
    from cpo_ds.model.positions import longest_unchanged
    from cpo_ds.translate.local_model import check_shardable, generation_settings, identity
    from cpo_ds.translate.vllm_model import check_vllm

    # Read the sources, and the model's own settings.
    sources = replace(request.read(), languages=request.languages)
    check_untranslated(sources, request.names)
    del sources.skipped["empty candidate"]  # they stay in the rows
    settings = generation_settings(request.choice.model, config)
    own = own_settings(settings, request.choice.model, samples=bool(request.decoding.samples))
    decoding = request.decoding.with_own(own.applied)
    if request.is_vllm:
        check_vllm(request.choice.adapter, request.choice.quantization, own.applied)
    if request.shard:
        check_shardable(request.choice.adapter, request.choice.quantization, config)
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
    decides += ["vllm"] * request.is_vllm
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
    longest = max(len(item.tokens) for item in flat)
    made = Planned(
        sources, asked, own, settings, decoding, model, prompts, longest, num_long, parts
    )
    for line in _long_lines(request, made):
        print(line, flush=True)
    return made, batches


def _long_lines(request: Request, planned: Planned) -> list[str]:
    """A line to print on sources that are longer than the limit, if there are any."""
    if not planned.num_long:
        return []
    done = {SERVE: "served whole", SPLIT: f"split into {planned.num_parts} parts"}[request.long]
    return [f"  prompt longer than {request.max_prompt_tokens} tokens, {done}: {planned.num_long}"]
