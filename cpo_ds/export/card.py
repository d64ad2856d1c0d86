"""The model card of an export: model, settings, data and metrics of the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.data.prompts import alma_prompt, base_code, parse_direction, with_names
from cpo_ds.data.selected import SELECTED_BY
from cpo_ds.errors import UserError
from cpo_ds.settings.data import DataConfig
from cpo_ds.settings.objective import LOSS_FIELDS
from cpo_ds.storage.hub_names import looks_like_path
from cpo_ds.storage.metrics_file import Line, read_metrics

Row = tuple[object, ...]  # the cells of a table's row

_OF_FILES = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv", ".tmx")

_METRICS = {"loss": "loss", "reward_accuracy": "reward accuracy", "reward_margin": "reward margin"}


@dataclass(frozen=True)
class CardFacts:
    """Facts of a model card that are not in the recipe; local paths are reduced to names."""

    base: str
    adapter: str | None
    data: str
    as_adapter: bool
    dtype: str  # of the exported weights
    training: list[Line] = field(default_factory=list)
    held_out: list[Line] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def card_facts(config: Config, step: int, *, as_adapter: bool, dtype: str) -> CardFacts:
    """Collects the facts of a card; metrics up to `step`, if any, are the run's."""
    try:
        training, held_out = read_metrics(Path(config.output_dir), step)
    except UserError:  # the checkpoint was copied without its run
        training, held_out = [], []
    packages = ("cpo-ds", "torch", "transformers", "peft", "deepspeed")
    return CardFacts(
        base=_public_name(config.model.name_or_path),
        adapter=_public_name(config.model.adapter) if config.model.adapter else None,
        data=_public_name(config.data.path) if config.data.path else "the built-in sample",
        as_adapter=as_adapter,
        dtype=dtype,
        training=training,
        held_out=held_out,
        versions={name: metadata.version(name) for name in packages},
    )


def _public_name(name_or_path: str) -> str:
    """Returns a name of the hub unchanged, and of a local path only the last part."""
    path = Path(name_or_path)
    local = path.exists() or looks_like_path(name_or_path) or path.suffix in _OF_FILES
    return path.resolve().name if local else name_or_path


def model_card(config: Config, manifest: Manifest, facts: CardFacts) -> str:
    """Returns the text of an export's README.md, with front matter that the Hugging Face hub reads.

    `manifest` is that of the checkpoint: its step, ranks, ZeRO stage and counts of pairs.
    """
    kind = "LoRA adapter" if facts.as_adapter else "full model"
    parts = [
        _front_matter(config, manifest, facts),
        f"# {facts.base}, tuned to translate by {config.loss.name.upper()}\n\n"
        f"A {kind} ({facts.dtype}), trained by cpo_ds with {_objective(config)} on preferences "
        "between translations.",
        "## Training\n\n" + _table(("setting", "value"), _settings(config, manifest, facts)),
        "## Data\n\n" + _data(manifest, facts) + _selection(config),
        "## Metrics\n\n" + _metrics(facts),
        "## Use\n\n" + _use(config, manifest, facts),
        "## Versions\n\n" + ", ".join(f"{name} {v}" for name, v in facts.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Config, manifest: Manifest, facts: CardFacts) -> str:
    codes = {base_code(code) for name in _directions(manifest) for code in parse_direction(name)}
    values: dict[str, Any] = {
        "base_model": facts.base,
        "library_name": "peft" if facts.as_adapter else "transformers",
        "pipeline_tag": "translation",
        "tags": ["translation", "cpo_ds", "deepspeed"]
        + sorted({config.loss.name, "cpo"})
        + (["lora"] if config.trains_adapter else []),
    }
    if codes:
        values["language"] = sorted(codes)
    if config.data.selected_by is not None:
        values[SELECTED_BY] = config.data.selected_by
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _directions(manifest: Manifest) -> list[str]:
    """Directions of the pairs, such as en-de."""
    names = {name for counts in manifest.data.values() for name in counts}
    return sorted(names - {"unknown"})


def _objective(config: Config) -> str:
    """The loss and the settings that apply to it."""
    names = LOSS_FIELDS[config.loss.name] - {"reference_cache"}
    values = {name: getattr(config.loss, name) for name in sorted(names)}
    inside = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
    return f"{config.loss.name}" + (f" ({inside})" if inside else "")


def _settings(config: Config, manifest: Manifest, facts: CardFacts) -> list[Row]:
    # The weights that were trained.
    rows: list[Row] = [("base model", facts.base)]
    if facts.adapter:
        how = "trained on" if config.continues_adapter else "merged into the base first"
        rows.append(("starting adapter", f"{facts.adapter}, {how}"))
    rows.append(("objective", _objective(config)))
    if config.lora:
        lora = config.lora
        modules = lora.target_modules
        names = modules if isinstance(modules, str) else ", ".join(modules)
        rows.append(
            ("LoRA", f"rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout}, on {names}")
        )
    elif not config.trains_adapter:
        rows.append(("trained weights", "all"))
    # How they were trained.
    optim = config.optim
    rows += [
        ("optimizer", f"AdamW, betas {optim.betas}, weight decay {optim.weight_decay}"),
        ("learning rate", f"{optim.learning_rate}, {optim.schedule}, warm-up {optim.warmup_ratio}"),
        ("largest gradient norm", optim.max_grad_norm or "none"),
        ("pairs per step", config.batch.pairs),
        ("steps", manifest.step),
        ("precision", config.model.dtype + _quantization(config)),
        ("seed", config.train.seed),
        ("ranks", f"{manifest.ranks}, ZeRO stage {manifest.zero_stage}"),
    ]
    return rows


def _quantization(config: Config) -> str:
    kind = config.model.quantization
    return f", over a frozen base in 4 bits ({kind}, double quantization)" if kind else ""


def _data(manifest: Manifest, facts: CardFacts) -> str:
    """A table of pairs: a row for each direction, a column for training and one for held out."""
    kinds = list(manifest.data)
    directions = sorted({name for counts in manifest.data.values() for name in counts})
    rows = [(name, *(manifest.data[kind].get(name, 0) for kind in kinds)) for name in directions]
    total = ("all", *(sum(manifest.data[kind].values()) for kind in kinds))
    return f"Preference pairs from {facts.data}:\n\n" + _table(
        ("direction", *kinds), [*rows, total]
    )


def _selection(config: Config) -> str:
    """A sentence on the metrics that selected the pairs, if they are known."""
    names = ", ".join(config.data.selected_by or [])
    if not names:
        return ""
    return (
        f"\n\nThese pairs were selected by {names}. Such metrics, and their relatives, flatter "
        "this model; judge it by others."
    )


def _metrics(facts: CardFacts) -> str:
    parts = []
    if facts.held_out:
        first, last = facts.held_out[0], facts.held_out[-1]
        steps = (f"step {first['step']}", f"step {last['step']}")
        header = (f"held out, {last['eval_pairs']} pairs", *steps)
        rows = [
            (name, _number(first["eval_" + key]), _number(last["eval_" + key]))
            for key, name in _METRICS.items()
        ]
        parts.append(_table(header, rows))
    if facts.training:
        line = facts.training[-1]
        values = ", ".join(f"{name} {_number(line[key])}" for key, name in _METRICS.items())
        parts.append(f"Training at step {line['step']}: {values}.")
    return "\n\n".join(parts) or "None were logged."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _use(config: Config, manifest: Manifest, facts: CardFacts) -> str:
    """A Python program that loads the export and translates with the prompt of its training."""
    package, loader = (
        ("peft", "AutoPeftModelForCausalLM")
        if facts.as_adapter
        else ("transformers", "AutoModelForCausalLM")
    )
    # The prompt, in the run's own style.
    languages = with_names(config.data.languages, "data.languages")
    directions = [parse_direction(direction) for direction in _directions(manifest)]
    named = [codes for codes in directions if all(code in languages for code in codes)]
    source, target = named[0] if named else ("en", "de")
    data, text = config.data, alma_prompt("...", source, target, languages)
    if data.format == "pairs":
        inputs = "prompt = '...'  # as in the training data\n" + _encoded_text(data)
    elif data.prompt_style == "chat":
        messages = f"messages = [{{'role': 'user', 'content': {text!r}}}]\n"
        inputs = messages + _encoded_chat(data)
    else:
        inputs = f"prompt = {text!r}\n" + _encoded_text(data)
    day = data.template_date
    note = f"\n\nThe chat template prints the day; in training it was {day}." if day else ""
    return f"""```python
import torch
from {package} import {loader}
from transformers import AutoTokenizer

folder = '.'  # the folder of this file
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(folder, dtype=torch.{facts.dtype})
{inputs}
output = model.generate(**inputs, max_new_tokens=256, num_beams=5, do_sample=False)
print(tokenizer.decode(output[0, inputs['input_ids'].shape[1]:], skip_special_tokens=True))
```{note}"""


def _encoded_text(data: DataConfig) -> str:
    """Code that makes tokens of a text as `TextEncoder` does."""
    plain = "" if data.special_tokens == "parsed" else "split_special_tokens=True, "
    if data.add_bos == "auto":
        return f"inputs = tokenizer(prompt, {plain}return_tensors='pt')"
    inputs = f"inputs = tokenizer(prompt, add_special_tokens=False, {plain}return_tensors='pt')"
    if data.add_bos == "never":
        return inputs
    beginning = "prompt = (tokenizer.bos_token or '') + prompt\n"
    return beginning + inputs.replace("split_special_tokens=True, ", "")


def _encoded_chat(data: DataConfig) -> str:
    """Code that makes tokens of a conversation as `TextEncoder` does."""
    own = "".join(f"{name}={value!r}, " for name, value in data.chat_template_kwargs.items())
    render = f"tokenizer.apply_chat_template(messages, add_generation_prompt=True, {own}"
    if data.add_bos == "auto":
        return f"inputs = {render}return_dict=True, return_tensors='pt')"
    # The template may write the token itself.
    beginning = "(tokenizer.bos_token or '') + " if data.add_bos == "always" else ""
    return (
        f"prompt = {render}tokenize=False)\n"
        f"prompt = {beginning}prompt.removeprefix(tokenizer.bos_token or '')\n"
        "inputs = tokenizer(prompt, add_special_tokens=False, return_tensors='pt')"
    )


def _table(header: tuple[str, ...], rows: Sequence[Row]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
