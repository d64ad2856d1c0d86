"""Random models of a given shape, and pairs of given lengths that any trainer can read as text.

A random model needs no real text, but trainers tokenize for themselves. So its tokenizer knows the
words "3", "4", ... as the tokens of those ids: a text of numbers has as many tokens as numbers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from cpo_ds.model.shapes import shape_config
from cpo_ds.schema import PreferenceRow

WMT22_LENGTHS = Path(__file__).resolve().parent / "wmt22_lengths.json"
DRAWS = 100  # candidates for each step, of which one is taken
SPECIAL_TOKENS = ("<pad>", "<unk>", "<eos>")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a pair; a completion's count includes the end-of-sequence token."""

    prompt: int
    chosen: int
    rejected: int
    common: int  # tokens that both completions begin with; fewer than either has

    @property
    def unique(self) -> int:
        """Tokens of the pair, shared ones counted once."""
        return self.prompt + self.chosen + self.rejected - self.common


def draw_lengths(steps: int, pairs_per_step: int, seed: int) -> list[Lengths]:
    """Draws lengths of real WMT22 pairs, one step's after the other's.

    A few random steps may be far from the average step, above all in padding. So each step is the
    one of a hundred draws that is nearest to the average in unique and in padded tokens.
    """
    rows = json.loads(WMT22_LENGTHS.read_text(encoding="utf-8"))["lengths"]
    known = [Lengths(*row) for row in rows]
    unique = np.array([one.unique for one in known])
    longest = np.array([one.prompt + max(one.chosen, one.rejected) for one in known])
    rng = np.random.RandomState(seed)
    draws = rng.randint(0, len(known), (steps, DRAWS, pairs_per_step))
    sizes = np.stack([unique[draws].sum(-1), longest[draws].max(-1)])  # [2, steps, draws]
    return [known[index] for index in nearest_to_average(draws, sizes)]


def nearest_to_average(draws: np.ndarray, sizes: np.ndarray) -> list[int]:
    """The items of each step, of the draw whose sizes are nearest to the average.

    `draws` has numbers of items, [steps, draws, items]; `sizes` are [kinds, steps, draws].
    """
    distance = np.square(sizes / sizes.mean((1, 2), keepdims=True) - 1).sum(0)
    return [int(i) for step, best in enumerate(distance.argmin(1)) for i in draws[step, best]]


def equal_lengths(sequence_length: int, count: int) -> list[Lengths]:
    """Pairs whose two sequences are of one length, half of it prompt; completions differ at once.

    `sequence_length` is at least 4.
    """
    completion = sequence_length // 2
    return [Lengths(sequence_length - completion, completion, completion, 0)] * count


def rows_of_numbers(lengths: list[Lengths], vocabulary: int, seed: int) -> list[PreferenceRow]:
    """Random texts that `number_tokenizer` cuts into exactly these lengths."""
    rng = random.Random(seed)
    tokens = range(len(SPECIAL_TOKENS), vocabulary)
    rows = []
    for number, wanted in enumerate(lengths):
        common = rng.choices(tokens, k=wanted.common)
        chosen = rng.choices(tokens, k=wanted.chosen - 1 - wanted.common)
        rejected = rng.choices(tokens, k=wanted.rejected - 1 - wanted.common)
        if chosen and rejected and chosen[0] == rejected[0]:
            rejected[0] = next_token(chosen[0], tokens)
        prompt = words(rng.choices(tokens, k=wanted.prompt)).strip()
        rows.append(
            PreferenceRow(
                prompt, words(common + chosen), (words(common + rejected),), "", str(number)
            )
        )
    return rows


def words(ids: Sequence[int]) -> str:
    """The text of tokens, each after a blank."""
    return "".join(f" {token}" for token in ids)


def next_token(token: int, tokens: range) -> int:
    """Another token than this one."""
    return tokens[(tokens.index(token) + 1) % len(tokens)]


def number_tokenizer(vocabulary: int) -> Any:
    """The tokenizer of a random model: numbers between blanks are their own ids."""
    words = [*SPECIAL_TOKENS, *map(str, range(len(SPECIAL_TOKENS), vocabulary))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, unknown, end = SPECIAL_TOKENS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown, eos_token=end
    )


def save_random_model(
    shape: str, folder: Path, dtype: str, seed: int, vocabulary: int | None = None
) -> None:
    """Writes a model of a shape with random weights, and its tokenizer.

    `vocabulary` replaces the shape's. The model is made in `dtype`, on the GPU if there is one: 13B
    weights take seconds there. Raises `UserError` for an unknown shape.
    """
    # Make the model without memory first, then give it random weights on the device.
    config = shape_config(shape)
    config.vocab_size = vocabulary or config.vocab_size
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 2, 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0)  # norms
    # Save it with a tokenizer of numbers.
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    number_tokenizer(config.vocab_size).save_pretrained(folder)


def with_number_tokenizer(model: Path, vocabulary: int, folder: Path) -> None:
    """Makes a folder of the same model, by links, whose tokenizer takes numbers."""
    folder.mkdir()
    needed = (".safetensors", ".bin", ".index.json", "config.json")
    for file in model.iterdir():
        if file.name.endswith(needed) and "tokenizer" not in file.name:
            (folder / file.name).symlink_to(file.resolve())
    number_tokenizer(vocabulary).save_pretrained(folder)
