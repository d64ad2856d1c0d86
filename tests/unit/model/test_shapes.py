"""Named shapes are those of the published models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import transformers

from cpo_ds.errors import UserError
from cpo_ds.model.load import SUPPORTED_MODEL_TYPES
from cpo_ds.model.shapes import SHAPES, shape_config

# Weights of the published models, as their pages on the hub count them; of Gemma 3 the text part.
# A tied head counts once.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "eurollm-1.7b": 1_656_850_432,
    "eurollm-9b": 9_152_319_488,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168,
    "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "phi-3-mini": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "phi-4": 14_659_507_200,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "aya-expanse-8b": 8_028_033_024,
    "aya-expanse-32b": 32_296_476_672,
}
OF_TESTS = {"tiny", "llama-5m", "llama-25m"}


def test_every_shape_has_a_published_count() -> None:
    assert set(PUBLISHED) | OF_TESTS == set(SHAPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_weights_as_the_published_model(name: str) -> None:
    config = shape_config(name)
    assert config.model_type in SUPPORTED_MODEL_TYPES
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


def test_names_of_shapes_are_known_without_transformers() -> None:
    code = (
        "import sys, cpo_ds.model.shapes; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_unknown_shape_names_the_closest() -> None:
    with pytest.raises(UserError, match=r"no shape llama-3-8B \(did you mean llama-3-8b\?\)"):
        shape_config("llama-3-8B")
