"""What `cpo-ds translate` is asked for, what it planned, and the settings beside its output."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.prompts import Languages
from cpo_ds.storage.files import writing
from cpo_ds.translate import vllm_model
from cpo_ds.translate.answers import Asked
from cpo_ds.translate.decoding import Decoding, OwnSettings
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.model_choice import ModelChoice
from cpo_ds.translate.prompting import PromptOf
from cpo_ds.translate.protocol import Protocol, differences
from cpo_ds.translate.tokens import PromptSettings

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
    is_vllm: bool = False
    shard: bool = False  # split the model over the ranks
    scoring: tuple[str, ...] = ()  # options of the metric that re-ranks: its ranks

    @property
    def names(self) -> list[str]:
        """The candidates' names: numbered ones if several samples of a source are kept."""
        if self.decoding.samples < 2 or self.rerank:
            return [self.name]
        return [f"{self.name}-{number + 1}" for number in self.decoding.draws]


@dataclass
class Planned:
    """The plan of rank 0: what is needed to use the translations."""

    sources: Sources
    asked: list[Asked]
    own: OwnSettings
    settings: dict[str, Any]  # of the model's generation_config.json
    decoding: Decoding
    identity: str
    prompts: PromptSettings
    longest_prompt: int  # in tokens
    num_long: int = 0
    num_parts: int = 0


def settings_file(output: Path) -> Path:
    """The file beside an output that holds the settings by which it was made."""
    return output.with_name(f"{output.name}.settings.json")


def write_settings(request: Request, planned: Planned, counts: Counter[str]) -> list[str]:
    """Writes the settings beside the output; returns how they differ from the published ones."""
    settings = _settings(request, planned, counts)
    with writing(settings_file(request.output)) as unfinished:
        text = json.dumps(settings, ensure_ascii=False, indent=2, default=str)
        unfinished.write_text(f"{text}\n", encoding="utf-8")
    return settings["differs_from_published"]


def _settings(request: Request, planned: Planned, counts: Counter[str]) -> dict[str, Any]:
    """All that decides the output, in plain values."""
    decoding = planned.decoding
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    if request.is_vllm:
        versions["vllm"] = vllm_model.version()
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
            request.is_vllm,
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
        "engine": "vllm" if request.is_vllm else "transformers",
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
        "versions": versions,
        "sha256": hashlib.sha256(request.output.read_bytes()).hexdigest(),
    }
