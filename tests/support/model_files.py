"""Recipes of tiny models, and changes to their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def settings(model: Path, adapter: Path | None = None, **sections: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"name_or_path": str(model), "dtype": "float32"}
    if adapter:
        values |= {"adapter": str(adapter), "adapter_mode": "merge"}
    data = {"format": "sample", "directions": ["en-de"], "eval_fraction": 0.2}
    logs = {"tensorboard": False}
    few = {"pairs": 8, "tokens_per_rank": 2048}
    return {"model": values, "data": data, "logging": logs, "batch": few} | sections


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def separate_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    embeddings = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embeddings.flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
