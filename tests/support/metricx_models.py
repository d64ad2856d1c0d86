"""Tiny random MetricX models, and their scores by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from repository import ROOT
from safetensors.torch import save_file

PREDICTED = 250089  # the token whose logit is the score


def sample_texts() -> list[str]:
    """Texts in several languages."""
    files = sorted((ROOT / "cpo_ds" / "data" / "sample").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def save_tokenizer(folder: Path) -> None:
    """A SentencePiece model like mT5's, which spells rare characters in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_texts()), model_prefix=str(folder / "spiece"),
        vocab_size=600, character_coverage=0.98, byte_fallback=True, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    settings |= {"additional_special_tokens": None, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_metricx(folder: Path, *, is_tied: bool = False, splits: bool = False) -> Path:
    """A folder as on the hub: mT5's settings, weights with a head of their own, and a tokenizer.

    `splits` puts the weights into two files with an index, of PyTorch's format.
    """
    save_tokenizer(folder)
    config = transformers.MT5Config(
        vocab_size=250112, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_decoder_layers=2,
        num_heads=2, feed_forward_proj="gated-gelu", dropout_rate=0.1,
    )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.MT5ForConditionalGeneration(config)
    names = dict(model.named_parameters())
    weights = {name: 0.5 * torch.randn_like(weight) for name, weight in names.items()}
    weights.pop("lm_head.weight", None)
    weights |= {n: 1 + 0.1 * torch.randn_like(w) for n, w in weights.items() if "layer_norm" in n}
    if not is_tied:
        weights["lm_head.weight"] = torch.randn(250112, 16)
    head = weights["shared.weight" if is_tied else "lm_head.weight"]
    head[PREDICTED] = torch.linspace(-9, 12, 16) * (4 if is_tied else 1)
    config.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": is_tied}))
    if not splits:
        save_file(weights, folder / "model.safetensors")
        return folder
    order = sorted(weights)
    places = {n: f"pytorch_model-{1 + (n > order[9])}-of-2.bin" for n in order}
    for file in set(places.values()):
        torch.save({n: weights[n] for n in order if places[n] == file}, folder / file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    return folder


class Oracle:
    """MetricX's formula, by transformers' tokenizer and model, one text at a time, in float64."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
        self.model: Any = transformers.MT5ForConditionalGeneration.from_pretrained(str(folder))
        self.model.double().eval()

    def ids(self, text: str) -> list[int]:
        """The tokens as Google's predict.py makes them, without the end token."""
        made = self.tokenizer(text, max_length=1536, truncation=True)["input_ids"]
        assert made[-1] == 1
        return made[:-1]

    def logit(self, text: str) -> float:
        """The logit of the score's token in the first step."""
        with torch.no_grad():
            start = torch.zeros(1, 1, dtype=torch.long)
            ids = torch.tensor([self.ids(text)])
            return self.model(input_ids=ids, decoder_input_ids=start).logits[0, 0, PREDICTED].item()

    def score(self, source: str, translation: str, reference: str | None = None) -> float:
        """The score, from 0 to 25."""
        text = f"source: {source} candidate: {translation}"
        text += "" if reference is None else f" reference: {reference}"
        return min(25.0, max(0.0, self.logit(text)))
