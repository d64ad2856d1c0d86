"""Libraries are imported without work that a run does not need, and work as before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from cpo_ds.run.imports import quick_imports

ADAPTER = """
import gc, sys
from cpo_ds.run.imports import quick_imports
with quick_imports(with_bitsandbytes=False):
    import peft, torch
assert gc.isenabled() and sys.modules["bitsandbytes"] is None
config = peft.LoraConfig(r=2, target_modules=["0"])
adapted = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), config)
assert type(adapted.base_model.model[0]) is peft.tuners.lora.Linear
assert "torch._inductor.compile_fx" not in sys.modules
assert "datasets" not in sys.modules
"""


def test_peft_makes_adapters_without_bitsandbytes() -> None:
    done = subprocess.run([sys.executable, "-c", ADAPTER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_afterwards(enabled: bool) -> None:
    was_enabled, loaded = gc.isenabled(), sys.modules.get("bitsandbytes")
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), quick_imports(with_bitsandbytes=True):
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
    assert sys.modules.get("bitsandbytes") is loaded


def test_datasets_is_silent_whenever_it_is_imported() -> None:
    script = (
        "import logging, sys\n"
        "from cpo_ds.ranks.quiet import silence_after_import, silence_libraries\n"
        "silence_libraries(), silence_after_import()\n"
        "assert 'datasets' not in sys.modules\n"
        "import datasets\n"
        "assert logging.getLogger('datasets').level == logging.ERROR\n"
        "assert datasets.are_progress_bars_disabled()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
