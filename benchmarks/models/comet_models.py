"""Makes COMET models of the real architecture, tiny and random; runs in COMET's environment.

    comet_models.py models FOLDER '{"hidden_size": 32, "num_hidden_layers": 3, ...}' KIND...
    comet_models.py predict FOLDER ROWS OUTPUT KIND...      # KIND+ sees the reference

An XLM-R encoder, a tokenizer trained on the built-in sample, and checkpoints as COMET saves them, a
folder for each kind. `predict` writes COMET's own scores.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import comet.models
import pytorch_lightning
import torch
import transformers
import yaml
from comet import load_from_checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

SAMPLE = Path(__file__).resolve().parents[2] / "cpo_ds" / "data" / "sample"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "kiwi": (
        "UnifiedMetric",
        {"input_segments": ["mt", "src"], "word_layer": 3, "word_level_training": True},
    ),
    "unite": ("UnifiedMetric", {"input_segments": ["mt", "src", "ref"], "layer_norm": True}),
    "xcomet": ("XCOMETMetric", {"word_layer": 0}),
    "comet": ("RegressionMetric", {}),
    "qe": ("ReferencelessRegression", {"layer_norm": True}),
}


def save_encoder(
    folder: Path, *, vocabulary: int = 1000, positions: int = 130, **sizes: int
) -> None:
    """Writes an encoder's configuration and tokenizer, which is all that COMET reads of it."""
    # A tokenizer like XLM-R's, trained on the built-in sample.
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    rows = [json.loads(line) for file in sorted(SAMPLE.glob("*.jsonl")) for line in file.open()]
    tokenizer.train_from_iterator(
        (row[key] for row in rows for key in ("source", "chosen")), trainer
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    # Save it with the configuration; weights come with COMET's checkpoint.
    transformers.XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    settings = {"intermediate_size": 2 * sizes["hidden_size"]} | sizes
    transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=positions, **settings
    ).save_pretrained(folder)


def save_model(
    folder: Path, encoder: Path, class_name: str, *, seed: int = 0, **settings: Any
) -> None:
    """Writes a random model as COMET does: hparams.yaml and checkpoints/model.ckpt."""
    torch.manual_seed(seed)
    model_class = getattr(comet.models, class_name)
    hidden = transformers.AutoConfig.from_pretrained(encoder).hidden_size
    settings = {"hidden_sizes": [hidden, hidden // 2], "layer_norm": False} | settings
    settings |= {"pretrained_model": str(encoder), "encoder_model": "XLM-RoBERTa"}
    if class_name in ("UnifiedMetric", "XCOMETMetric"):
        settings |= {"layer_transformation": "sparsemax"}
    # Random weights, as large as trained ones, so that scores differ and error spans occur.
    model = model_class(load_pretrained_weights=False, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                scale = 4 if "hidden2tag" in name else 1.2
                parameter.normal_(0, scale / parameter.shape[-1] ** 0.5)
            elif "scalar_parameters" in name:
                parameter.normal_(0, 0.3)
    # The files that COMET reads.
    (folder / "checkpoints").mkdir(parents=True)
    saved = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": pytorch_lightning.__version__,
    }
    torch.save(saved, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(dict(model.hparams)))


def make_models(folder: str, sizes: str, *kinds: str) -> None:
    """One model of each kind, in folders of their names."""
    encoder = Path(folder) / "encoder"
    save_encoder(encoder, **json.loads(sizes))
    for seed, (name, (class_name, settings)) in enumerate(KINDS.items()):
        if name in kinds:
            save_model(Path(folder) / name, encoder, class_name, seed=seed, **settings)


def predict(folder: str, rows_file: str, output: str, *kinds: str) -> None:
    """COMET's own `predict` on every translation: kind -> a score and error spans for each."""
    rows = [json.loads(line) for line in Path(rows_file).read_text("utf-8").splitlines()]
    result: dict[str, Any] = {}
    for kind in kinds:
        name, with_reference, _ = kind.partition("+")
        model = load_from_checkpoint(str(Path(folder) / name / "checkpoints" / "model.ckpt"))
        samples = [
            {"src": row["source"], "mt": text}
            | ({"ref": row["reference"]} if with_reference else {})
            for row in rows
            for text in ({"reference": row["reference"]} | row["candidates"]).values()
        ]
        gpus = min(1, torch.cuda.device_count())
        predicted = model.predict(samples, batch_size=16, gpus=gpus, progress_bar=False)
        metadata = predicted.get("metadata", {})
        result[kind] = {"scores": predicted["scores"], "spans": metadata.get("error_spans")}
    Path(output).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    command, *arguments = sys.argv[1:]
    if command == "models":
        make_models(*arguments)
    else:
        predict(*arguments)
