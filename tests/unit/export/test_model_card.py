"""The model card: a pure function of recipe, manifest and facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from doors import tokenizers as kinds

from cpo_ds.checkpoint.manifest import Manifest
from cpo_ds.config import Config
from cpo_ds.data.chat import chat_renderer
from cpo_ds.data.encoder import TextEncoder
from cpo_ds.export.card import CardFacts, card_facts, model_card
from cpo_ds.recipe import parse_config
from cpo_ds.settings.objective import LOSS_FIELDS

MANIFEST = Manifest(
    step=20,
    ranks=4,
    zero_stage=3,
    data={
        "training pairs": {"en-de": 30, "zh-en": 12, "unknown": 1},
        "held-out pairs": {"en-de": 5},
    },
)
FACTS = CardFacts("tiny", None, "pairs.jsonl", as_adapter=False, dtype="bfloat16")


def make(**sections: Any) -> Config:
    values = {"model": {"name_or_path": "x/tiny"}, "data": {"format": "alma-r", "path": "p"}}
    return parse_config(values | sections, "test")


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("name", LOSS_FIELDS)
def test_it_names_just_the_settings_that_its_objective_has(name: str) -> None:
    data = {"format": "pairs", "path": "p"}  # rankings need the scores that these rows may have
    card = model_card(make(loss={"name": name}, data=data), MANIFEST, FACTS)
    row = next(line for line in card.splitlines() if line.startswith("| objective"))
    for setting in {s for settings in LOSS_FIELDS.values() for s in settings} - {
        "arpo_floor",
        "reference_cache",
    }:
        assert (f"{setting} " in row.replace("(", " ")) == (setting in LOSS_FIELDS[name]), setting
    assert name in front_matter(card)["tags"]


def test_counts_languages_and_recipe() -> None:
    card = model_card(make(train={"seed": 7}), MANIFEST, FACTS)
    assert front_matter(card)["language"] == ["de", "en", "zh"]
    assert "| zh-en | 12 | 0 |" in card and "| all | 43 | 5 |" in card
    for row in ("| seed | 7 |", "| steps | 20 |", "| pairs per step | 128 |", "| ranks | 4, ZeRO"):
        assert row in card
    assert "| trained weights | all |" in card and "lora" not in front_matter(card)["tags"]


def test_it_says_what_is_not_known_rather_than_failing() -> None:
    card = model_card(make(), Manifest(step=1, ranks=1, zero_stage=0), FACTS)
    assert "language" not in front_matter(card) and "None were logged." in card
    line = {"step": 1, "loss": None, "reward_accuracy": 0.5, "reward_margin": 0.25}
    card = model_card(make(), MANIFEST, replace(FACTS, training=[line]))
    assert "loss not finite, reward accuracy 0.5000" in card


def test_it_names_the_metrics_that_selected_the_pairs() -> None:
    card = model_card(make(), MANIFEST, FACTS)
    assert "selected_by" not in front_matter(card) and "selected by" not in card
    for names in ([], ["kiwi", "chrf"]):
        data = {"format": "pairs", "path": "p.jsonl", "selected_by": names}
        card = model_card(make(data=data), MANIFEST, FACTS)
        assert front_matter(card)["selected_by"] == names
        assert ("These pairs were selected by kiwi, chrf." in card) == bool(names)


def test_a_language_that_the_recipe_names() -> None:
    manifest = replace(MANIFEST, data={"training pairs": {"bn-en": 3, "en-pt_BR": 2}})
    data = {"format": "alma-r", "path": "p", "languages": {"bn": "Bengali"}}
    card = model_card(make(data=data), manifest, FACTS)
    assert front_matter(card)["language"] == ["bn", "en", "pt"]
    assert r"prompt = 'Translate this from Bengali to English:\nBengali: ...\nEnglish:'" in card
    pairs = model_card(make(data={"format": "pairs", "path": "p"}), manifest, FACTS)
    assert "prompt = '...'" in pairs and front_matter(pairs)["language"] == ["bn", "en", "pt"]


def test_the_prompt_is_that_of_training() -> None:
    alma = model_card(make(), MANIFEST, FACTS)
    assert r"prompt = 'Translate this from English to German:\nEnglish: ...\nGerman:'" in alma
    chat = make(data={"format": "alma-r", "path": "p", "prompt_style": "chat"})
    assert "apply_chat_template(messages" in model_card(chat, MANIFEST, FACTS)
    own = model_card(make(data={"format": "pairs", "path": "p"}), MANIFEST, FACTS)
    assert "Translate this" not in own


@pytest.mark.parametrize("add_bos", ["auto", "always", "never"])
@pytest.mark.parametrize("puts_bos", [True, False])
@pytest.mark.parametrize("style", ["alma", "chat", "pairs", "parsed", "thinking"])
def test_its_program_makes_the_tokens_of_training(
    tmp_path: Path, style: str, puts_bos: bool, add_bos: Any
) -> None:
    tokenizer = kinds.byte_level(kinds.QWEN3 if style == "thinking" else kinds.LLAMA3)
    if puts_bos:
        tokenizer = kinds.byte_level(tokenizer.chat_template, puts_bos=True)
    tokenizer.save_pretrained(tmp_path)
    data: dict[str, Any] = {"format": "alma-r", "path": "p", "add_bos": add_bos}
    if style in ("pairs", "parsed"):
        data |= {"format": "pairs", "special_tokens": "parsed" if style == "parsed" else None}
    elif style != "alma":
        data["prompt_style"] = "chat"
    if style == "thinking":
        data["chat_template_kwargs"] = {"enable_thinking": False}
    # Run the card's program up to the model's inputs, in the export's folder.
    card = model_card(make(data=data), MANIFEST, FACTS)
    program = card.partition("```python\n")[2].partition("output = ")[0]
    lines = [
        line for line in program.splitlines() if "import " not in line and "model = " not in line
    ]
    values: dict[str, Any] = {"AutoTokenizer": transformers.AutoTokenizer}
    code = "\n".join(lines).replace("folder = '.'", f"folder = {str(tmp_path)!r}")
    text = "Translate this from English to German:\nEnglish: ...\nGerman:"
    if style in ("pairs", "parsed"):
        text = "a </s> b"
        code = code.replace("'...'", repr(text))
    exec(code, values)  # our own program
    # Training's tokens.
    encoder = TextEncoder(tokenizer, add_bos)
    if data.get("prompt_style") == "chat":
        render = chat_renderer(tokenizer, encoder.plain, data.get("chat_template_kwargs"))
        assert render is not None
        expected = encoder.prompts(
            [render([{"role": "user", "content": text}], True)], is_chat=True
        )
    else:
        text = encoder.parsed(text) if style == "parsed" else encoder.plain(text)
        expected = encoder.prompts([text], is_chat=False)
    if style == "pairs" and add_bos == "always":
        return  # the program writes a special token as text, so all of the text is parsed
    assert values["inputs"]["input_ids"].tolist() == expected


def test_the_day_of_training_is_named() -> None:
    data = {"format": "pairs", "path": "p", "template_date": "2026-01-31"}
    assert "prints the day; in training it was 2026-01-31." in model_card(
        make(data=data), MANIFEST, FACTS
    )


def test_local_folders_are_named_without_their_paths(tmp_path: Path) -> None:
    model = {"name_or_path": str(tmp_path / "base"), "adapter": "org/adapter"}
    data = {"format": "pairs", "path": str(tmp_path / "pairs.jsonl")}
    config = make(model=model, data=data, output_dir=str(tmp_path / "no run"))
    facts = card_facts(config, 20, as_adapter=True, dtype="float32")
    assert (facts.base, facts.adapter, facts.data) == ("base", "org/adapter", "pairs.jsonl")
    assert facts.training == [] and "torch" in facts.versions
    card = model_card(config, MANIFEST, facts)
    assert str(tmp_path) not in card
    assert front_matter(card)["library_name"] == "peft"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/data/customers/pairs.jsonl", "pairs.jsonl"),
        ("customers/pairs.jsonl", "pairs.jsonl"),  # of the folder that the run began in
        ("customers/2026/pairs", "pairs"),
        ("haoranxu/ALMA-R-Preference", "haoranxu/ALMA-R-Preference"),
    ],
)
def test_paths_are_reduced_to_names_though_they_are_gone(path: str, shown: str) -> None:
    facts = card_facts(make(data={"path": path, "format": "pairs"}), 1, as_adapter=False, dtype="x")
    assert facts.data == shown
