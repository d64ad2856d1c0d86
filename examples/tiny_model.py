"""Writes a tiny random Llama and a hundred preference pairs, so that every example runs anywhere.

    python tiny_model.py FOLDER      # FOLDER/model and FOLDER/pairs.jsonl

Replace them by a real model and by pairs of your own: the commands stay the same.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

THINGS = {"house": "Haus", "book": "Buch", "window": "Fenster", "picture": "Bild", "ship": "Schiff"}
QUALITIES = {"old": "alt", "new": "neu", "small": "klein", "beautiful": "schön", "green": "grün"}
WHERE = {"here": "hier", "there": "dort", "today": "heute", "again": "wieder"}


def pairs() -> list[dict[str, str]]:
    """Prompts with a good translation into German, and one that leaves a word in English."""
    rows = []
    words = itertools.product(THINGS.items(), QUALITIES.items(), WHERE.items())
    for (thing, ding), (quality, art), (where, wo) in words:
        source = f"The {thing} is {quality} {where}."
        rows.append(
            {
                "prompt": f"Translate this from English to German:\nEnglish: {source}\nGerman:",
                "chosen": f"Das {ding} ist {wo} {art}.",
                "rejected": f"Das {ding} ist {wo} {quality}.",
            }
        )
    return rows


def write_model(folder: Path, texts: list[str]) -> None:
    """Writes a random Llama of 0.2 million weights, with a tokenizer made of `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=176, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def main(folder: Path) -> None:
    """Writes the model and the pairs."""
    rows = pairs()
    write_model(folder / "model", [row["prompt"] + row["chosen"] for row in rows])
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{folder}/model, and {len(rows)} pairs in {folder}/pairs.jsonl")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
