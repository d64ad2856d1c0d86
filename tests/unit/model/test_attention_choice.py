"""The choice of an attention backend: the fastest exact one, and what is refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_oracle import CPU
from flash_attn_stand_ins import flash_attn_modules
from helpers import save_tiny_model

from cpo_ds.errors import UserError
from cpo_ds.model import load
from cpo_ds.model.attention import BACKENDS, registered_name
from cpo_ds.model.attention_choice import HALF, choose_backend
from cpo_ds.recipe import parse_config

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)  # compute capabilities
VOLTA, TURING, DESKTOP = (7, 0), (7, 5), (12, 0)
NO_GPU = None
EVERY_VERSION = ("2", "3", "4")
MODULES = {"2": "flash_attn", "3": "flash_attn_interface", "4": "flash_attn.cute"}


def install_flash_attn(monkeypatch: pytest.MonkeyPatch, versions: Sequence[str]) -> None:
    """Makes importable the given versions of flash-attn, and no other."""
    modules = flash_attn_modules(lambda call: call.query)
    for version, name in MODULES.items():
        module = modules[name] if version in versions else None
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    if "4" in versions and "2" not in versions:  # it leaves a folder without the function
        monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))


def choose(requested: str, **given: Any) -> tuple[str, str]:
    defaults = {"capability": HOPPER, "dtype": torch.bfloat16, "softcap": None, "head_size": 128}
    return choose_backend(requested, **defaults | given)


@pytest.mark.parametrize(
    ("capability", "dtype", "versions", "softcap", "expected"),
    [
        (NO_GPU, torch.float32, "", None, "sdpa"),
        (NO_GPU, torch.bfloat16, EVERY_VERSION, None, "blocks"),
        (NO_GPU, torch.bfloat16, EVERY_VERSION, 50.0, "reference"),
        (NO_GPU, torch.float16, EVERY_VERSION, None, "sdpa"),
        (NO_GPU, torch.float32, EVERY_VERSION, 50.0, "reference"),
        (HOPPER, torch.float32, EVERY_VERSION, None, "sdpa"),
        (HOPPER, torch.float32, EVERY_VERSION, 50.0, "reference"),
        *[(AMPERE, half, EVERY_VERSION, None, "flash_attn") for half in HALF],
        *[(HOPPER, half, EVERY_VERSION, None, "flash_attn_3") for half in HALF],
        *[(HOPPER, half, EVERY_VERSION, 50.0, "flash_attn_3") for half in HALF],
        *[(HOPPER, half, ("2", "4"), 50.0, "flash_attn") for half in HALF],
        *[(BLACKWELL, half, EVERY_VERSION, None, "flash_attn_4") for half in HALF],
        *[(BLACKWELL, half, EVERY_VERSION, 50.0, "flash_attn") for half in HALF],
        *[(DESKTOP, half, EVERY_VERSION, None, "flash_attn") for half in HALF],
        *[(AMPERE, half, ("3", "4"), None, "torch_varlen") for half in HALF],
        *[(HOPPER, half, "", 50.0, "flex") for half in HALF],
        *[(VOLTA, half, versions, None, "sdpa") for half in HALF for versions in ("2", "")],
        (TURING, torch.float16, EVERY_VERSION, 50.0, "reference"),
    ],
)
def test_auto_picks_the_fastest_exact_backend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    versions: Sequence[str],
    softcap: float | None,
    expected: str,
) -> None:
    install_flash_attn(monkeypatch, versions)
    options: dict[str, Any] = {"capability": capability, "dtype": dtype, "softcap": softcap}
    name, reason = choose("auto", **options)
    assert name == expected and reason
    assert choose(name, **options) == (name, "as configured")  # it may be asked for too


@pytest.mark.parametrize(
    ("capability", "head_size", "softcap", "expected", "said"),
    [
        (BLACKWELL, 256, None, "flash_attn", "flash_attn_4 needs heads of .* at most 128 values"),
        (BLACKWELL, 64, 50.0, "flash_attn", r"flash_attn_4 cannot cap .* \(at 50\.0\)"),
        (HOPPER, 256, 50.0, "flash_attn_3", "fastest"),
        (HOPPER, 512, None, "sdpa", "torch_varlen needs heads .* and this model has 512"),
        (HOPPER, 100, None, "sdpa", "a multiple of 8 .* has 100"),
        (HOPPER, 512, 50.0, "reference", "no faster backend here serves it; flash_attn_3 needs"),
    ],
)
def test_auto_looks_at_the_model_too(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    head_size: int,
    softcap: float | None,
    expected: str,
    said: str,
) -> None:
    install_flash_attn(monkeypatch, EVERY_VERSION)
    name, reason = choose("auto", capability=capability, head_size=head_size, softcap=softcap)
    assert name == expected and re.search(said, reason), reason


def test_a_kernel_without_a_deterministic_gradient_is_not_taken_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """flash-attn 3 ignores the argument for heads of more than 192 values."""
    install_flash_attn(monkeypatch, EVERY_VERSION)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert choose("auto", head_size=192)[0] == "flash_attn_3"
    assert choose("auto", head_size=256)[0] == "flash_attn"
    with pytest.raises(UserError, match=r"no deterministic gradient .* this model has 256"):
        choose("flash_attn_3", head_size=256)


@pytest.mark.parametrize(
    ("requested", "capability", "dtype", "versions", "softcap", "message"),
    [
        ("flash_attn", HOPPER, torch.bfloat16, "", None, r"pip install 'cpo-ds\[flash\]'"),
        ("flash_attn_3", HOPPER, torch.bfloat16, "24", None, "install it from the hopper folder"),
        ("flash_attn_4", HOPPER, torch.bfloat16, "2", None, "pip install flash-attn-4, or set"),
        (
            "flash_attn_3",
            AMPERE,
            torch.bfloat16,
            "3",
            None,
            r"capability 9\.0 to 9\.9, .* has 8\.0",
        ),
        ("flash_attn_4", AMPERE, torch.bfloat16, "4", None, r"capability 9\.0 to 11\.9"),
        ("flash_attn_4", HOPPER, torch.bfloat16, "4", 50.0, "caps attention scores"),
        ("flash_attn", HOPPER, torch.float32, "2", None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", NO_GPU, torch.bfloat16, "2", None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", HOPPER, torch.bfloat16, "2", 50.0, r"caps attention scores \(at 50\.0\)"),
        ("flex", NO_GPU, torch.float32, "", None, "flex needs a CUDA GPU"),
        ("blocks", HOPPER, torch.bfloat16, "", None, "blocks is for CPUs, .*; set model.attention"),
        ("blocks", NO_GPU, torch.bfloat16, "", 30.0, "caps attention scores"),
        ("sdpa", NO_GPU, torch.float32, "", 30.0, "use one of reference, .*flex, or auto"),
        ("flash_attn", VOLTA, torch.float16, "2", None, r"capability 8\.0 or higher, .* has 7\.0"),
        ("torch_varlen", TURING, torch.float16, "2", None, "set model.attention: auto"),
    ],
)
def test_a_backend_that_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    requested: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    versions: Sequence[str],
    softcap: float | None,
    message: str,
) -> None:
    install_flash_attn(monkeypatch, versions)
    with pytest.raises(UserError, match=message):
        choose(requested, capability=capability, dtype=dtype, softcap=softcap)


def test_versions_with_other_arguments_are_called_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_attn(monkeypatch, EVERY_VERSION)
    for version, name in MODULES.items():
        old = ModuleType(name)
        old.flash_attn_varlen_func = lambda q, k, v, causal=False: q  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, old)
        backend = "flash_attn" if version == "2" else f"flash_attn_{version}"
        with pytest.raises(UserError, match="is installed but older than"):
            choose(backend)


# Case -> the files of a package, and the reason that the run gives for not using it.
UNUSABLE_FLASH_ATTN = {
    "flash-attn 4 alone": ({"flash_attn/cute/__init__.py": ""}, "flash_attn_varlen_func"),
    "a binary for another torch": (
        {"flash_attn/__init__.py": "raise ImportError('undefined symbol: _ZN2at4_ops5zeros')"},
        "undefined symbol",
    ),
    "a library that is not there": (
        {"flash_attn/__init__.py": "raise OSError('libcudart.so.12: cannot open')"},
        "libcudart",
    ),
    "a package that it needs is not there": (
        {"flash_attn/__init__.py": "import einops_of_another_age"},
        "einops_of_another_age",
    ),
    "a kernel without soft-capping": (
        {"flash_attn/__init__.py": "def flash_attn_varlen_func(q, k, v, causal=False): ..."},
        "older than 2.6",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE_FLASH_ATTN)
def test_a_flash_attn_that_cannot_be_called_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    """`find_spec` finds such a package; only the import shows that it is unusable."""
    files, said = UNUSABLE_FLASH_ATTN[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        name, reason = choose("auto", capability=AMPERE)
        assert name == "torch_varlen" and "cannot be used" in reason and said in reason
        with pytest.raises(UserError, match="cannot be used"):
            choose("flash_attn")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


def test_torch_s_kernel_is_not_taken_from_a_torch_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before 2.12 it has no `enable_gqa`, and each call would fail."""

    def older(query: Any, key: Any, value: Any, scale: float) -> None: ...

    install_flash_attn(monkeypatch, "")
    assert choose("auto")[0] == "torch_varlen"
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", older)
    name, reason = choose("auto")
    assert name == "flex" and "torch is installed but older than 2.12" in reason
    with pytest.raises(UserError, match=r"older than 2\.12; pip install 'torch>=2\.12'"):
        choose("torch_varlen")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_model_loads_with_each_backend_s_registered_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, model_type: str
) -> None:
    """transformers gives some names a meaning of its own."""
    model = save_tiny_model(tmp_path, model_type)
    monkeypatch.setattr(load, "choose_backend", lambda *_, **__: (backend, "as the test wants"))
    values = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {"format": "sample"},
    }
    policy, line = load.load_policy(parse_config(values, "test"), device=CPU)
    assert line.startswith(f"attention: {backend} (as the test wants); kernels: ")
    assert policy.causal_lm.config._attn_implementation == registered_name(backend)
