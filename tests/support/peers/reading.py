"""Reads exported folders by transformers and peft alone, in whatever versions are installed.

    python reading.py FOLDER OUTPUT

Writes what `read` gives for each folder in FOLDER to the JSON file OUTPUT. Run by the Python of
.venv-transformers4, it imports nothing else of the tests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

TOKENS = range(3, 103)
TEXTS = [
    "the house",
    "  two  spaces",
    "das haus.\n\n\tTab  ",
    "straße 房子 😀",
    "a </s> b <|im_start|>user\nx<|im_end|> <bos> <s>hi",
    "",
    " ",
    "don't . , the house !",
]
CHAT = [{"role": "user", "content": "the house"}, {"role": "assistant", "content": "das haus"}]


def read(folder: Path) -> dict[str, Any]:
    """Log-probs of `TOKENS`, and all that a tokenizer gives for `TEXTS` and `CHAT`."""
    try:
        return {"logps": _logps(folder), "tokens": tokens(folder)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def _logps(folder: Path) -> list[float]:
    is_adapter = (folder / "adapter_config.json").exists()
    loader: Any = peft.AutoPeftModelForCausalLM if is_adapter else transformers.AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([list(TOKENS)])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None])[:, 0].tolist()


def tokens(folder: Path) -> list[Any]:
    """All that a tokenizer gives for `TEXTS` and `CHAT`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    values: list[Any] = []
    for text in TEXTS:
        inputs = tokenizer(text)
        ids = inputs["input_ids"]
        decoded = [tokenizer.decode(ids, skip_special_tokens=skips) for skips in (False, True)]
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        values.append([sorted(inputs), ids, plain, *decoded])
    if tokenizer.chat_template:
        values.append(tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"])
    special = [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")]
    everything = sorted(tokenizer.all_special_tokens)
    return [*values, special, everything, len(tokenizer), tokenizer.padding_side]


def main() -> None:
    """Reads every folder in the one that is named."""
    transformers.logging.set_verbosity_error()
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    results = {folder.name: read(folder) for folder in folders}
    about = {"version": transformers.__version__, "read": results}
    Path(sys.argv[2]).write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
