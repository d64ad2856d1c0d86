"""Tiny random models, tokenizers and pairs for the tests: nothing is downloaded."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cpo_ds.data.tokenize import make_pair
from cpo_ds.schema import TokenizedPair

VOCABULARY = 131
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """Configuration of a tiny random model of a family."""
    sizes = dict(_SIZES)
    if model_type == "gemma3_text":
        sizes["layer_types"] = ["sliding_attention", "full_attention"]  # type: ignore[assignment]
    return transformers.AutoConfig.for_model(model_type, **(sizes | overrides))


def tiny_model(model_type: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A tiny random causal language model with weights large enough to matter, float32."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(model_type, **overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model.float()


def save_tiny_model(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """Writes a tiny model and a tokenizer that fits it, as a user's model folder."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(model_type, **({"vocab_size": len(tokenizer)} | overrides))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Writes a LoRA adapter of a tiny model with weights that are no longer the initial ones."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | settings
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.05)
    adapted.save_pretrained(folder)
    return folder


@functools.cache
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer that merges across the prompt's end, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Trained on prompts with their completions, so that merges cross the boundary.
    lines = [
        f"Translate this from {a} to {b}:\n{a}: the old house by the sea {n}\n{b}:das alte Haus"
        for a, b in (("English", "German"), ("Czech", "English"), ("Russian", "English"))
        for n in range(3)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=(
            "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
            "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        ),
    )


def random_pair(
    rng: np.random.RandomState, *, longest: int = 12, sharing: str = "common"
) -> TokenizedPair:
    """A pair of random tokens whose completions often begin alike."""

    def draw(count: int) -> list[int]:
        return rng.randint(3, VOCABULARY, size=count).tolist()

    prompt = [1, *draw(rng.randint(1, longest))]
    common = draw(rng.randint(0, 4))
    chosen = prompt + common + draw(rng.randint(0, longest)) + [2]
    rejected = prompt + common + draw(rng.randint(1, longest)) + [2]
    start = len(prompt)
    return make_pair(
        (chosen, start), (rejected, start), direction="en-de", origin="random", sharing=sharing
    )  # type: ignore[arg-type]


def joined(logps: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """All log-probs of a policy in one row: chosen, then rejected."""
    return torch.cat([part.flatten() for part in logps])


def random_pairs(count: int, seed: int = 0, **options: Any) -> list[TokenizedPair]:
    """`count` random pairs; one seed gives the same tokens with every kind of sharing."""
    rng = np.random.RandomState(seed)
    return [random_pair(rng, **options) for _ in range(count)]


def sequences(pair: TokenizedPair) -> tuple[list[int], list[int]]:
    """The two whole sequences of a pair, prompt + chosen and prompt + rejected."""
    chosen, rejected = all_sequences(pair)
    return chosen, rejected


def all_sequences(pair: TokenizedPair) -> list[list[int]]:
    """The whole sequences of a pair, prompt + each of its completions."""
    tokens, ends = pair.tokens.tolist(), np.cumsum(pair.segments).tolist()
    prefix = tokens[: pair.num_prefix]
    return [prefix + tokens[begin:end] for begin, end in itertools.pairwise(ends)]


def plain_logps(model: Any, pairs: list[TokenizedPair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Completion log-probs of chosen, [P], and rejected, [P, 1], by transformers' own forward pass.

    One unpadded sequence at a time with full logits, to check the packed layout against.
    """

    def logp(tokens: list[int], start: int) -> torch.Tensor:
        ids = torch.tensor([tokens])
        logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        return logps.gather(-1, ids[0, 1:, None])[start - 1 :].sum()

    both = [sequences(pair) for pair in pairs]
    chosen = [logp(c, p.starts[0]) for (c, _), p in zip(both, pairs, strict=True)]
    rejected = [logp(r, p.starts[1]) for (_, r), p in zip(both, pairs, strict=True)]
    return torch.stack(chosen), torch.stack(rejected)[:, None]
