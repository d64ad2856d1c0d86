"""The choice of an attention backend: the fastest exact one, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attention_oracle import CPU
from helpers import save_tiny_model

from cpo_ds.errors import UserError
from cpo_ds.model import load
from cpo_ds.model.attention import BACKENDS, registered_name
from cpo_ds.model.attention_choice import choose_backend
from cpo_ds.recipe import parse_config

HALF = (torch.bfloat16, torch.float16)
AMPERE, HOPPER, VOLTA, TURING = (8, 0), (9, 0), (7, 0), (7, 5)  # compute capabilities
NO_GPU = None


def install_flash_attn(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    """Makes `import flash_attn` find a package with the kernel, or none at all."""
    fake = ModuleType("flash_attn")
    fake.flash_attn_varlen_func = lambda q, k, v, softcap=0.0: q  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", fake if installed else None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "dtype", "flash", "softcap", "expected"),
    [
        (NO_GPU, torch.float32, False, None, "sdpa"),
        (NO_GPU, torch.bfloat16, True, None, "sdpa"),
        (NO_GPU, torch.float32, True, 50.0, "reference"),
        (HOPPER, torch.float32, True, None, "sdpa"),
        (HOPPER, torch.float32, True, 50.0, "reference"),
        *[(AMPERE, half, True, None, "flash_attn") for half in HALF],
        *[(HOPPER, half, True, 50.0, "flash_attn") for half in HALF],
        *[(AMPERE, half, False, None, "torch_varlen") for half in HALF],
        *[(HOPPER, half, False, 50.0, "reference") for half in HALF],
        *[(VOLTA, half, flash, None, "sdpa") for half in HALF for flash in (True, False)],
        (TURING, torch.float16, True, 50.0, "reference"),
    ],
)
def test_auto_picks_the_fastest_exact_backend(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    flash: bool,
    softcap: float | None,
    expected: str,
) -> None:
    install_flash_attn(monkeypatch, installed=flash)
    options: dict[str, Any] = {"capability": capability, "dtype": dtype, "softcap": softcap}
    name, reason = choose_backend("auto", **options)
    assert name == expected and reason
    assert choose_backend(name, **options) == (name, "as configured")  # it may be asked for too


@pytest.mark.parametrize(
    ("requested", "capability", "dtype", "flash", "softcap", "message"),
    [
        ("flash_attn", HOPPER, torch.bfloat16, False, None, r"pip install 'cpo-ds\[flash\]'"),
        ("flash_attn", HOPPER, torch.float32, True, None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", NO_GPU, torch.bfloat16, True, None, "needs a CUDA GPU and model.dtype"),
        ("torch_varlen", HOPPER, torch.bfloat16, True, 50.0, r"caps attention scores \(at 50\.0\)"),
        ("sdpa", NO_GPU, torch.float32, False, 30.0, "use one of reference, flash_attn, or auto"),
        (
            "flash_attn",
            VOLTA,
            torch.float16,
            True,
            None,
            r"capability 8\.0 or higher, .* has 7\.0",
        ),
        ("torch_varlen", TURING, torch.float16, True, None, "set model.attention: auto"),
    ],
)
def test_a_backend_that_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    requested: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    flash: bool,
    softcap: float | None,
    message: str,
) -> None:
    install_flash_attn(monkeypatch, installed=flash)
    with pytest.raises(UserError, match=message):
        choose_backend(requested, capability=capability, dtype=dtype, softcap=softcap)


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
    options: dict[str, Any] = {"capability": HOPPER, "dtype": torch.bfloat16, "softcap": None}
    try:
        name, reason = choose_backend("auto", **options)
        assert name == "torch_varlen" and "is installed but" in reason and said in reason
        with pytest.raises(UserError, match="is installed but"):
            choose_backend("flash_attn", **options)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


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
    assert line == f"attention: {backend} (as the test wants)"
    assert policy.causal_lm.config._attn_implementation == registered_name(backend)
