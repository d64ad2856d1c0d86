"""Settings of `cpo-ds rounds`: one YAML file for all stages, with types, defaults and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from cpo_ds.data.prompts import parse_direction, with_names
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.prepare.pairs.choose import is_rule
from cpo_ds.prepare.pairs.filters import USUAL_CONFIDENCE
from cpo_ds.recipe import flatten, section_of
from cpo_ds.settings.problems import value_problem
from cpo_ds.settings.section import Section
from cpo_ds.settings.yaml_file import read_yaml

Dtype = Literal["float32", "bfloat16", "float16"]
Count = int | None


class PolicySettings(Section):
    """The policy before the first round, and its prompts in all rounds."""

    model: str = Field(description="a base, adapter, export or run, as cpo-ds translate takes it")
    adapter: str | None = Field(None, description="adapter of the base")
    prompt: Literal["alma", "chat"] = Field("alma", description="the kind of prompt")
    languages: dict[str, str] = Field({}, description="names of languages, by code")

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, value: dict[str, str]) -> dict[str, str]:
        _as_value_error(lambda: with_names(value, "it"))
        return value


class TextSettings(Section):
    """Sources: a file or a named test set."""

    path: str | None = Field(None, description="rows (jsonl), plain text, or a folder")
    test_set: str | None = Field(None, description="like wmt22:en-de")
    language_pair: str | None = Field(None, description="direction of plain text, like en-de")
    references: str | None = Field(None, description="references of plain text, line by line")

    @model_validator(mode="after")
    def _check(self) -> TextSettings:
        if (self.path is None) == (self.test_set is None):
            raise ValueError("give either path or test_set")
        if self.test_set and (self.language_pair or self.references):
            raise ValueError("a test_set has its direction and references; leave them out")
        return self


class SourceSettings(TextSettings):
    """The sources that the policy translates in each round."""

    per_round: int | None = Field(None, gt=0, description="sources of a round; none: all")


class SampleSettings(Section):
    """Sampling of a round's candidates."""

    num: int = Field(8, ge=2, description="translations of each source")
    temperature: float | None = Field(1.0, gt=0, description="none: the model's own, else 1")
    top_k: int | None = Field(None, ge=0, description="none: the model's own, else all")
    top_p: float | None = Field(None, gt=0, le=1, description="none: the model's own, else 1")
    min_p: float | None = Field(None, ge=0, le=1, description="none: the model's own, else 0")


class TranslateSettings(Section):
    """How the policy computes translations: samples, and those of the watched texts."""

    dtype: Dtype | None = Field(None, description="none: bfloat16, on a CPU float32")
    vllm: bool = Field(False, description="by vLLM, on one process")
    ranks: int = Field(1, gt=0, description="processes on this host")
    hostfile: str | None = Field(None, description="hosts and slots, in place of ranks")
    shard: bool = Field(False, description="split the model over the ranks")
    batch_tokens: int | None = Field(None, gt=0, description="most tokens of a batch")
    max_new_tokens: int = Field(256, gt=0, description="most tokens of a translation")
    max_prompt_tokens: int = Field(256, gt=0, description="longer prompts are counted")

    @model_validator(mode="after")
    def _check(self) -> TranslateSettings:
        if self.vllm and (self.ranks > 1 or self.hostfile or self.shard):
            raise ValueError("translate.vllm runs on one process; leave ranks and shard out")
        if self.ranks > 1 and self.hostfile:
            raise ValueError("give translate.ranks or translate.hostfile, not both")
        return self


class ScoreSettings(Section):
    """How neural metrics compute."""

    dtype: Dtype = Field("float32", description="precision of the metrics")
    ranks: int = Field(1, gt=0, description="processes on this host")
    hostfile: str | None = Field(None, description="hosts and slots, in place of ranks")
    shard: bool = Field(False, description="split each metric over the ranks")
    use_reference: bool = Field(False, description="show references to XCOMET and its like")
    batch_tokens: int = Field(4096, gt=0, description="tokens of a batch")

    @model_validator(mode="after")
    def _check(self) -> ScoreSettings:
        if self.ranks > 1 and self.hostfile:
            raise ValueError("give score.ranks or score.hostfile, not both")
        return self


class SelectSettings(Section):
    """Choice of pairs, by the metrics that reward the policy."""

    metrics: list[str] = Field(min_length=1, description="metrics to average, like [kiwi, xcomet]")
    rejected: str | None = Field(
        None, description="worst, all, spread or a number: a list of rejected texts; none: one"
    )
    min_margin: float = Field(0.0, ge=0, description="drop pairs with closer scores")
    directions: list[str] | None = Field(None, description="directions to keep; none: all")
    check_language: float | None = Field(
        None, gt=0, le=1, description="drop texts in another language, by this probability"
    )
    max_length_ratio: float | None = Field(
        None, gt=1, description="drop texts so many times longer or shorter than usual"
    )

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("check_language", mode="before")
    @classmethod
    def _usual(cls, value: object) -> object:
        return {True: USUAL_CONFIDENCE, False: None}[value] if isinstance(value, bool) else value

    @field_validator("rejected", mode="before")
    @classmethod
    def _check_rule(cls, value: object) -> str | None:
        text = None if value is None else str(value)
        if text is None or is_rule(text):
            return text
        raise ValueError(f"must be worst, all, spread or a number of texts, but is {value!r}")

    @field_validator("directions")
    @classmethod
    def _check_directions(cls, value: list[str] | None) -> list[str] | None:
        _as_value_error(lambda: [parse_direction(direction) for direction in value or []])
        return value


class TrainSettings(Section):
    """The training of a round: a recipe, whose model, data and folder the rounds set."""

    recipe: str = Field(description="a YAML file, or the name of a shipped recipe")
    overrides: dict[str, Any] = Field(
        {}, description="settings of the recipe, as {optim.learning_rate: 1.0e-5} or in sections"
    )
    gpus: int | None = Field(None, gt=0, description="GPUs of this machine, or ranks on its CPU")
    hostfile: str | None = Field(None, description="hosts and slots, in place of gpus")

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.gpus and self.hostfile:
            raise ValueError("give train.gpus or train.hostfile, not both")
        return self


class WatchSettings(TextSettings):
    """Texts and metrics that no choice of pairs sees, by which the rounds are judged."""

    metrics: list[str] = Field(min_length=1, description="the first unrelated one names the best")
    stop_if_falls_by: float | None = Field(
        0.0, ge=0, description="a significant fall by more stops the rounds; none: never"
    )
    beams: int | None = Field(None, gt=0, description="of the search; none: 5, with vLLM 1")

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class RoundsSettings(Section):
    """All settings of `cpo-ds rounds`."""

    output_dir: str = Field(description="folder for everything that the rounds write")
    rounds: int = Field(3, gt=0, description="rounds at most")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sources' order and of sampling")
    policy: PolicySettings
    sources: SourceSettings
    sample: SampleSettings = SampleSettings()
    translate: TranslateSettings = TranslateSettings()
    score: ScoreSettings = ScoreSettings()
    select: SelectSettings
    train: TrainSettings
    watch: WatchSettings

    @model_validator(mode="after")
    def _check(self) -> RoundsSettings:
        if self.translate.vllm and (self.watch.beams or 1) > 1:
            raise ValueError("watch.beams: vLLM has no beam search here; leave it out, or give 1")
        return self


def load_rounds(file: Path) -> RoundsSettings:
    """Reads the YAML file. Raises `UserError`, with file and setting, for anything wrong in it."""
    if not file.is_file():
        raise UserError(f"there is no configuration {file}; give --config an existing YAML file.")
    values = read_yaml(file, "examples/rounds.yaml")
    _check_names(values, RoundsSettings, file)
    try:
        return RoundsSettings.model_validate(values)
    except ValidationError as error:
        problem = value_problem(error).replace("add it to the recipe", "add it")
        raise UserError(f"{file}: {problem}.") from None


def _check_names(
    values: dict[str, Any], section: type[BaseModel], file: Path, at: str = ""
) -> None:
    """Raises `UserError` for a setting that the section does not have."""
    everywhere = list(flatten(RoundsSettings))
    for key, value in values.items():
        if key not in section.model_fields:
            same = [name for name in everywhere if name.rpartition(".")[2] == key]
            hint = did_you_mean(str(key), [*section.model_fields], 0.6)
            if same:
                hint = f" (did you mean {' or '.join(same)}?)"
            if not at and section_of_recipe(str(key)):
                hint = " (it belongs to the recipe: write it under train.overrides)"
            raise UserError(f"{file}: unknown key {at}{key}{hint}; docs/rounds.md lists every key.")
        nested = section_of(section.model_fields[key].annotation)
        if nested and isinstance(value, dict):
            _check_names(value, nested, file, f"{at}{key}.")


def section_of_recipe(key: str) -> bool:
    """Whether a key is a section of recipes and not one of the rounds."""
    from cpo_ds.config import Config

    return key in Config.model_fields and key not in RoundsSettings.model_fields


def _as_value_error(check: Any) -> None:
    """Lets pydantic name the setting of a `UserError`."""
    try:
        check()
    except UserError as error:
        raise ValueError(str(error).rstrip(".")) from None
