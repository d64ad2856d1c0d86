"""Translates prompts by vLLM, greedily or by samples, in place of transformers.

Its kernels round otherwise, so its translations may differ from those of transformers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpo_ds.errors import UserError, one_line
from cpo_ds.translate.decoding import Decoding
from cpo_ds.translate.job import Translation

# Settings of adapters that vLLM leaves out or does not know, with the values that mean none.
_PLAIN = {
    "alpha_pattern": ({}, None), "bias": ("none", None), "layer_replication": (None,),
    "lora_bias": (False, None), "modules_to_save": (None, []), "peft_type": ("LORA",),
    "rank_pattern": ({}, None), "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}), "use_dora": (False, None),
}  # fmt: skip


def check_vllm(adapter: str | None, quantization: str | None, own: dict[str, Any]) -> None:
    """Raises `UserError` for what vLLM lacks or would not do exactly.

    `own` are the settings of the model's generation_config.json that apply.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--vllm needs the package vllm; pip install 'cpo-ds[vllm]', or leave it out."
        )
    if quantization:
        raise UserError("--vllm cannot quantize the base as the run did; leave --vllm out.")
    sampling = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    if others := [name for name in own if name not in sampling]:
        raise UserError(
            f"the model's generation_config.json sets {', '.join(others)}, which --vllm does not "
            "apply; leave --vllm out, or remove them in a copy of the model's folder."
        )
    if adapter is not None:
        _rank(adapter)


def _rank(adapter: str) -> int:
    """The rank of a LoRA adapter. Raises `UserError` unless it is a plain one in a folder."""
    file = Path(adapter) / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        rank = int(settings["r"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--vllm reads a LoRA adapter from its folder, and {file} is none; download the "
            "adapter and give its folder, or leave --vllm out."
        ) from None
    special = [n for n, none in _PLAIN.items() if n in settings and settings[n] not in none]
    if special:
        raise UserError(
            f"the adapter {adapter} has {', '.join(special)}, which vLLM does not apply as peft "
            "does; merge it (cpo-ds export --merge), or leave --vllm out."
        )
    return rank


def version() -> str:
    """The installed version of vLLM, which for CPUs comes in a package of another name."""
    import vllm

    return str(vllm.__version__)


class VllmModel:
    """A model with its adapter in vLLM, for prompts with their answers of up to `longest` tokens.

    Raises `UserError` if vLLM cannot load it.
    """

    def __init__(
        self, name: str, adapter: str | None, dtype: str, tokenizer: Any, longest: int,
        generation: dict[str, Any],
    ) -> None:  # fmt: skip
        import vllm
        from vllm.lora.request import LoRARequest

        lora: dict[str, Any] = {}
        if adapter is not None:
            lora = {
                "enable_lora": True,
                "max_lora_rank": max(8, 1 << (_rank(adapter) - 1).bit_length()),
            }
        try:
            self._engine = vllm.LLM(
                model=name,
                dtype=dtype,
                seed=0,
                max_model_len=longest,
                trust_remote_code=False,
                use_tqdm_on_load=False,
                **lora,
            )
        except Exception as error:  # vLLM raises errors of many types
            raise UserError(f"vLLM cannot load the model {name}: {one_line(error)}") from None
        self._library, self._tokenizer = vllm, tokenizer
        self._adapter = None if adapter is None else LoRARequest("adapter", 1, adapter)
        ends = generation.get("eos_token_id", tokenizer.eos_token_id)
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])

    def translate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding,
        repetition_penalty: float,
    ) -> list[Translation]:  # fmt: skip
        """The model's answer to each prompt, each drawn by a seed of its own if there are samples.

        Raises `UserError` if vLLM cannot generate.
        """
        parameters = [
            self._library.SamplingParams(
                n=1,
                temperature=decoding.temperature if decoding.samples else 0.0,
                top_k=decoding.top_k or 0 if decoding.samples else 0,
                top_p=decoding.top_p if decoding.samples else 1.0,
                min_p=decoding.min_p or 0.0 if decoding.samples else 0.0,
                seed=seed if decoding.samples else None,
                max_tokens=decoding.max_new_tokens,
                stop_token_ids=self._ends,
                repetition_penalty=repetition_penalty,
                detokenize=False,
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            outputs = self._engine.generate(
                inputs, parameters, lora_request=self._adapter, use_tqdm=False
            )
        except Exception as error:  # vLLM raises errors of many types
            raise UserError(f"vLLM cannot generate: {one_line(error)}") from None
        answers = [output.outputs[0] for output in outputs]
        return [self._translation(len(p), a) for p, a in zip(prompts, answers, strict=True)]

    def _translation(self, prompt_tokens: int, answer: Any) -> Translation:
        """Decodes an answer up to the token that ends it, if vLLM returns that."""
        tokens = list(answer.token_ids)
        text = tokens[:-1] if tokens and tokens[-1] in self._ends else tokens
        decoded = self._tokenizer.decode(
            text, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Translation(decoded, answer.finish_reason == "stop", prompt_tokens, len(tokens))
