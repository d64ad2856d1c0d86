"""Kinds of base folders: those that are served, and those that are refused."""

from __future__ import annotations

import torch
from doors.folder_changes import (
    BIN,
    BIN_INDEX,
    EMBEDDINGS,
    FILE,
    GATE,
    HEAD,
    INDEX,
    POINTER,
    SHARD,
    Change,
    added,
    after,
    changed,
    code_of_its_own,
    configured,
    cut,
    named_by_config,
    nested_pickle,
    old_pickle,
    only,
    pickled,
    quantized,
    rename_all,
    renamed,
    second_shard,
    shards,
    stored_twice,
    tied,
    tokenizer_with_code,
    unnamed_in_index,
    with_code,
    without_weights,
    written,
)
from helpers import save_tiny_adapter
from model_files import separate_head

# Served: plain transformers reads the weights, and the run must have the same.
SERVED: dict[str, Change] = {
    "one file of safetensors": lambda folder: None,
    "shards of safetensors": shards,
    "one file of pickles (`.bin`)": pickled,
    "shards of pickles": lambda folder: shards(folder, BIN_INDEX),
    "pickles in torch's old format": old_pickle,
    "safetensors and pickles, equal": lambda folder: pickled(folder, keeps_file=True),
    "one file and shards, equal": lambda folder: shards(folder, keeps_file=True),
    "one file, and a pickle that Git LFS did not fetch": written(BIN, POINTER),
    "a shard with a weight that the index leaves out": unnamed_in_index,
    "a weight in two shards, equal": stored_twice(1),
    "a tied head": tied(lambda folder: None),
    "a tied head that is stored too, equal": tied(
        changed(lambda weights: weights.update({HEAD: weights[EMBEDDINGS].clone()}))
    ),
    "tied embeddings under the head's name": tied(renamed(EMBEDDINGS, HEAD)),
    "names without `model.`": changed(lambda weights: rename_all(weights, "model.", "")),
    "names with `model.` once more": changed(lambda weights: rename_all(weights, "", "model.")),
    "weights in float64": changed(lambda weights: weights.update({GATE: weights[GATE].double()})),
    "a file of weights that config.json names": named_by_config,
    "old rotary buffers": added("model.layers.0.self_attn.rotary_emb.inv_freq", 4),
    "code of its own, of a type that transformers knows": code_of_its_own("llama"),
}

# Refused: the change, and a part of the message.
REFUSED: dict[str, tuple[Change, str]] = {
    # two models in one folder
    "an adapter beside the weights": (lambda f: save_tiny_adapter(f, f), "holds an adapter beside"),
    "an adapter alone": (
        after(lambda f: save_tiny_adapter(f, f), lambda f: (f / "config.json").unlink()),
        "is an adapter",
    ),
    "safetensors and pickles that differ": (
        lambda f: pickled(f, scale=2, keeps_file=True),
        "transformers reads model.safetensors, beside which pytorch_model.bin holds other weights",
    ),
    "one file and shards that differ": (
        lambda f: shards(f, scale=2, keeps_file=True),
        "beside which model.safetensors.index.json holds other weights",
    ),
    "a weight in two shards that differ": (stored_twice(2), f"would take that of {SHARD}"),
    "one weight under two names": (added(GATE[6:], 48, 32), "two weights that transformers reads"),
    # files that are missing or damaged
    "no weights": (lambda f: (f / FILE).unlink(), "has no weights that transformers reads"),
    "a missing shard": (
        second_shard(lambda s: s.unlink()),
        f"names files of weights that are missing ({SHARD})",
    ),
    "shards without their index": (
        after(shards, lambda f: (f / INDEX).unlink()),
        "shards without their index",
    ),
    "an empty shard": (second_shard(lambda s: s.write_bytes(b"")), f"{SHARD} is empty"),
    "a shard that is cut short": (after(shards, cut(SHARD, 5000)), f"{SHARD} cannot be read"),
    "a pickle that is cut short": (after(pickled, cut(BIN, 5000)), f"{BIN} cannot be read"),
    "a pointer of Git LFS": (written(FILE, POINTER), "pointer of Git LFS"),
    "a link to a missing file": (
        lambda f: ((f / FILE).unlink(), (f / FILE).symlink_to("nowhere")),
        "is a link to nowhere",
    ),
    "a pickle with code": (with_code, "code in it is never run"),
    "a pickle with weights inside a dictionary": (nested_pickle, "holds state_dict, which is no"),
    "an index that is no JSON": (after(shards, written(INDEX, "{")), f"{INDEX} is no index"),
    "an index without weights": (after(shards, written(INDEX, "{}")), "lacks 'weight_map'"),
    # weights that do not fit config.json
    "a weight is missing": (changed(lambda w: w.pop(GATE)), f"lacks 1 of its weights ({GATE})"),
    "a weight that the model has not": (
        added("model.layers.0.self_attn.q_proj.bias", 32),
        "holds 1 weights without a use (model.layers.0.self_attn.q_proj.bias)",
    ),
    "fewer layers in config.json": (configured(num_hidden_layers=1), "holds 9 weights without"),
    "more layers in config.json": (configured(num_hidden_layers=3), "lacks 9 of its weights"),
    "another size in config.json": (configured(intermediate_size=64), "has another shape of 6"),
    "names of a wrapped model": (
        changed(lambda w: rename_all(w, "", "module.")),
        "lacks 21 of its weights",
    ),
    "no head, `tie_word_embeddings: false`": (
        changed(lambda w: w.pop(HEAD)),
        "tie_word_embeddings: true, if its head is its embeddings",
    ),
    "another head, `tie_word_embeddings: true`": (tied(separate_head), "contradicts itself"),
    "weights in int8": (
        changed(lambda w: w.update({GATE: w[GATE].to(torch.int8)})),
        "holds weights as int8",
    ),
    "weights in float8": (
        changed(lambda w: w.update({GATE: w[GATE].to(torch.float8_e4m3fn)})),
        "holds weights as float8_e4m3fn",
    ),
    # quantized models
    "bitsandbytes": (quantized(quant_method="bitsandbytes", load_in_4bit=True), "bitsandbytes"),
    "bitsandbytes, an old one": (quantized(load_in_8bit=True), "bitsandbytes"),
    "GPTQ": (quantized(quant_method="gptq", bits=4), "gptq"),
    "GPTQ, by quantize_config.json": (
        written("quantize_config.json", '{"bits": 4}'),
        "quantize_config.json names the method gptq",
    ),
    "AWQ": (quantized(quant_method="awq", bits=4), "awq"),
    "compressed-tensors": (quantized(quant_method="compressed-tensors"), "compressed-tensors"),
    "fp8": (quantized(quant_method="fp8", weight_block_size=[128, 128]), "fp8"),
    "torchao": (quantized(quant_method="torchao", quant_type="int4_weight_only"), "torchao"),
    "HQQ": (quantized(quant_method="hqq"), "hqq"),
    "MXFP4": (quantized(quant_method="mxfp4"), "mxfp4"),
    "a method that transformers does not know": (quantized(quant_method="exl2"), "exl2"),
    "GGUF": (without_weights("model-q4.gguf"), "a GGUF file"),
    # code, and settings that cannot be read
    "code of its own, of another type": (code_of_its_own("brandnew"), "such code is never run"),
    "a tokenizer with code of its own": (tokenizer_with_code, "such code is never run"),
    "an unknown type": (configured(model_type="brandnew"), "does not know"),
    "config.json is no JSON": (written("config.json", "{"), "config.json cannot be read as JSON"),
    "config.json is a list": (written("config.json", "[]"), "it holds a list"),
    "config.json without `model_type`": (configured(model_type=None), "has no model_type"),
    "config.json with a text for a number": (configured(hidden_size="big"), "hidden_size"),
    "config.json with unknown positions": (
        configured(rope_parameters={"rope_type": "nonsense"}),
        "cannot make the model",
    ),
    "generation_config.json is no JSON": (
        written("generation_config.json", "{"),
        "generation_config.json cannot be read as JSON",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "has no tokenizer",
    ),
    # folders that are no models
    "an empty folder": (only(), "is empty"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a run's folder": (
        only("config.yaml", "checkpoints/step-00000002/manifest.json", "export/config.json"),
        "is the folder of a run, whose trained model is in",
    ),
    "a run's checkpoint": (
        only("manifest.json", "mp_rank_00_model_states.pt"),
        "is a checkpoint of a run: `cpo-ds export",
    ),
    "a run's checkpoints": (only("step-00000002/manifest.json"), "holds checkpoints of a run"),
    "a checkpoint of DeepSpeed": (
        only("latest", "zero_to_fp32.py", "global_step5/mp_rank_00_model_states.pt"),
        "is a checkpoint of DeepSpeed",
    ),
}
