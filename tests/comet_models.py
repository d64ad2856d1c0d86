"""Makes COMET models of the real architecture, tiny and random; runs in COMET's environment.

    .venv-comet/bin/python tests/comet_models.py models FOLDER        # one folder for each kind
    .venv-comet/bin/python tests/comet_models.py predict FOLDER ROWS OUTPUT   # COMET's own scores

An XLM-R encoder, a tokenizer trained on the built-in sample, and a checkpoint as COMET saves it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

SAMPLE = Path(__file__).resolve().parent.parent / "cpo_ds" / "data" / "sample"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
KINDS = {
    "kiwi": ("UnifiedMetric", {"input_segments": ["mt", "src"], "word_layer": 3}),
    "unite": ("UnifiedMetric", {"input_segments": ["mt", "src", "ref"], "layer_norm": True}),
    "xcomet": ("XCOMETMetric", {"word_layer": 0}),
    "comet": ("RegressionMetric", {}),
    "qe": ("ReferencelessRegression", {"layer_norm": True}),
}


def save_encoder(
    folder: Path, *, vocabulary: int = 1000, positions: int = 130, **sizes: int
) -> None:
    """Writes an encoder's configuration and tokenizer, which is all that COMET reads of it."""
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
    transformers.XLMRobertaTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    settings = {"intermediate_size": 2 * sizes["hidden_size"]} | sizes
    transformers.XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=positions, **settings
    ).save_pretrained(folder)


def save_model(
    folder: Path, encoder: Path, class_name: str, *, seed: int = 0, **settings: Any
) -> None:
    """Writes a random model as COMET does: hparams.yaml and checkpoints/model.ckpt."""
    import comet.models
    import pytorch_lightning
    import yaml

    torch.manual_seed(seed)
    model_class = getattr(comet.models, class_name)
    hidden = transformers.AutoConfig.from_pretrained(encoder).hidden_size
    settings = {"hidden_sizes": [hidden, hidden // 2], "layer_norm": False} | settings
    settings |= {"pretrained_model": str(encoder), "encoder_model": "XLM-RoBERTa"}
    if class_name in ("UnifiedMetric", "XCOMETMetric"):
        settings |= {"layer_transformation": "sparsemax"}
    model = model_class(load_pretrained_weights=False, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embeddings" not in name:
                scale = 4 if "hidden2tag" in name else 1.2  # scores that differ, and error spans
                parameter.normal_(0, scale / parameter.shape[-1] ** 0.5)
            elif "scalar_parameters" in name:
                parameter.normal_(0, 0.3)
    (folder / "checkpoints").mkdir(parents=True)
    saved = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": pytorch_lightning.__version__,
    }
    torch.save(saved, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(dict(model.hparams)))


def make_models(folder: Path) -> None:
    """One model of each kind, in folders of their names."""
    save_encoder(folder / "encoder", **TINY)
    for seed, (name, (class_name, settings)) in enumerate(KINDS.items()):
        if settings.get("word_layer") and class_name == "UnifiedMetric":
            settings = settings | {"word_level_training": True}
        save_model(folder / name, folder / "encoder", class_name, seed=seed, **settings)


def predict(folder: Path, rows_file: Path, output: Path) -> None:
    """COMET's own `predict` on every translation: kind -> row -> name -> score and spans."""
    from comet import load_from_checkpoint

    rows = [json.loads(line) for line in rows_file.open(encoding="utf-8")]
    result: dict[str, Any] = {}
    for name in KINDS:
        model = load_from_checkpoint(str(folder / name / "checkpoints" / "model.ckpt"))
        for with_reference in (False, True):
            if model.requires_references() and not with_reference:
                continue
            if not rows[0].get("reference") and with_reference:
                continue
            samples, places = [], []
            for number, row in enumerate(rows):
                for candidate, text in (
                    {"reference": row["reference"]} | row["candidates"]
                ).items():
                    sample = {"src": row["source"], "mt": text}
                    samples.append(sample | ({"ref": row["reference"]} if with_reference else {}))
                    places.append((number, candidate))
            predicted = model.predict(samples, batch_size=8, gpus=0, progress_bar=False)
            spans = (
                predicted["metadata"].get("error_spans") if "metadata" in predicted else None
            ) or [None] * len(samples)
            kept: list[dict[str, Any]] = [{} for _ in rows]
            for (number, candidate), score, span in zip(
                places, predicted["scores"], spans, strict=True
            ):
                kept[number][candidate] = [score, span]
            result[name + (" with reference" if with_reference else "")] = kept
    output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    command, *paths = sys.argv[1:]
    {"models": make_models, "predict": predict}[command](*map(Path, paths))
