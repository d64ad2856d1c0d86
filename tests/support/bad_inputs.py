"""Mistakes of users in recipes, data, models and DeepSpeed files, and checks of the answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import transformers
from helpers import save_tiny_adapter, save_tiny_model, tiny_tokenizer
from launch import Finished, write_recipe
from preference_data import ALMA, PAIR, TRIPLET, write

Flat = dict[str, Any]  # a recipe with dotted names
PLACES = {"data.path", "model.name_or_path", "model.adapter", "output_dir", "deepspeed"}


def make_inputs(folder: Path) -> None:
    """Models, an adapter, data and DeepSpeed files, good and bad."""
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other-model", hidden_size=48, head_dim=12)
    save_tiny_adapter(folder / "model", folder / "head-adapter", target_modules=["lm_head"])
    adapter = shutil.copytree(
        save_tiny_adapter(folder / "model", folder / "adapter"), folder / "incomplete-adapter"
    )
    weights = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    safetensors.torch.save_file(kept, adapter / "adapter_model.safetensors")
    (folder / "no-weights").mkdir()
    damage_models(folder)
    for model_type in ("gpt2", "mamba"):
        config = transformers.AutoConfig.for_model(model_type)
        config.save_pretrained(folder / model_type)
        tiny_tokenizer().save_pretrained(folder / model_type)
    (folder / "a-file").write_text("not a folder")
    (folder / "not-json.json").write_text('{"zero_optimization": }')
    for name, settings in DEEPSPEED_FILES.items():
        (folder / name).write_text(json.dumps(settings))
    make_data(folder)


def make_data(folder: Path) -> None:
    good = [PAIR | {"prompt": f"Translate: {n} ->"} for n in range(8)]
    write(folder / "pairs.jsonl", good)
    write(folder / "other-pairs.jsonl", [*good[:7], PAIR | {"prompt": "Another ->"}])
    write(folder / "missing.jsonl", [*good, {"prompt": "p", "chosen": "c"}])
    write(folder / "empty.jsonl", [*good[:2], PAIR | {"chosen": "  "}])
    with (folder / "broken.jsonl").open("w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in good[:3]) + '{"prompt": "x",\n')
    write(folder / "nothing.jsonl", [])
    write(folder / "same.jsonl", [PAIR | {"rejected": PAIR["chosen"]}])
    write(folder / "long.jsonl", [*good, PAIR | {"prompt": "0123456789" * 10}])
    alma_row = {k: v for k, v in ALMA.items() if k != "alma_de_kiwi_xcomet"}
    write(folder / "alma-unscored.jsonl", [{"translation": ALMA}, {"translation": alma_row}])
    write(folder / "alma-empty.jsonl", [{"translation": ALMA | {"gpt4_en": ""}}])
    write(folder / "triplet-unscored.jsonl", [TRIPLET, TRIPLET | {"scores": {"kiwi": {}}}])
    write(folder / "triplet-direction.jsonl", [TRIPLET | {"language_pair": "en-xx"}])


DEEPSPEED_FILES: dict[str, Any] = {
    "sizes.json": {"train_batch_size": 8},
    "list.json": [],
    "stage-5.json": {"zero_optimization": {"stage": 5}},
    "unknown-key.json": {"zero_optimization": {"stage": 2, "overlap_com": True}},
    "unknown-section.json": {"zero_optimisation": {"stage": 2}},
    "overlap-1.json": {"zero_optimization": {"stage": 1, "overlap_comm": True}},
}


def damage_models(folder: Path) -> None:
    """Writes damaged copies of the model: cut short, weights missing or misshapen."""
    file = "model.safetensors"
    for name in ("cut", "incomplete", "misshapen"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "cut" / file).write_bytes((folder / "model" / file).read_bytes()[:5000])
    weights = safetensors.torch.load_file(folder / "model" / file)
    gone = "model.layers.1.mlp.down_proj.weight"
    for name, replaced in (
        ("incomplete", {k: v for k, v in weights.items() if k != gone}),
        ("misshapen", weights | {gone: weights[gone][:, :-1].contiguous()}),
    ):
        safetensors.torch.save_file(replaced, folder / name / file, metadata={"format": "pt"})
    save_tiny_model(folder / "few-embeddings", vocab_size=60)


def pairs(folder: Path, **changes: Any) -> Flat:
    """Dotted settings of a recipe that works, with some changed."""
    good = {
        "model.name_or_path": folder / "model",
        "model.dtype": "float32",
        "data.format": "pairs",
        "data.path": folder / "pairs.jsonl",
        "batch.pairs": 4,
        "batch.tokens_per_rank": 512,
        "train.max_steps": 1,
        "logging.tensorboard": False,
        "deepspeed": "ds_configs/zero0.json",
        "output_dir": folder / "run",
    }
    return good | changes


def arguments(folder: Path, flat: Flat) -> list[str]:
    """The recipe in a file."""
    values: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, name = dotted.split(".")
        section = values.setdefault(sections[0], {}) if sections else values
        section[name] = str(value) if isinstance(value, Path) else value
    return ["--config", str(write_recipe(folder / "recipes", values))]


def assert_one_paragraph(done: Finished, *parts: str) -> None:
    """Exit code 2, and one line after `cpo_ds: error:` that has all the parts."""
    assert done.code == 2, done.output
    assert "Traceback" not in done.output, done.output
    assert done.output.count("cpo_ds: error: ") == 1, done.output
    message = done.output.split("cpo_ds: error: ")[1]
    paragraph, _, rest = message.partition("\n")
    assert not rest.strip() or "exits with return code" in rest, rest  # the launcher's own
    for part in parts:
        assert part in paragraph, paragraph
    assert 40 < len(paragraph) < 900, paragraph


def placed(folder: Path, changes: Flat) -> Flat:
    """Replaces names of files by their paths in the fixture; hub names and paths stay."""

    def place(key: str, value: Any) -> Any:
        is_name = key in PLACES and isinstance(value, str) and not value.startswith("no-one/")
        return folder / value if is_name else value

    return {key: place(key, value) for key, value in changes.items()}
