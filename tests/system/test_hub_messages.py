"""Models, adapters, data and metrics that the hub does not provide: one line each, no trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import launch

# Retries do not wait, and every address that is asked is printed.
CODE = """
import sys
from cpo_ds.ranks.quiet import silence_after_import, silence_libraries
silence_libraries()
silence_after_import()
from huggingface_hub.utils import _http
from cpo_ds.config import ModelConfig
from cpo_ds.data.sources import read_raw
from cpo_ds.errors import UserError
from cpo_ds.model.adapter_checks import check_adapter
from cpo_ds.model.hub import adapter_fingerprint
from cpo_ds.model.load import read_model_config
from cpo_ds.model.tokenizer import load_tokenizer
from cpo_ds.translate.local_model import identity
from cpo_ds.scoring.checkpoint import find_checkpoint
from cpo_ds.scoring.metrics import Metric

_http.time.sleep = lambda seconds: None
for name in sys.argv[1:]:
    for read in (
        read_model_config, load_tokenizer, adapter_fingerprint,
        lambda name: check_adapter(ModelConfig(name_or_path="base", adapter=name), None),
        lambda name: identity(name, None), lambda name: list(read_raw(name, "train")),
        lambda name: find_checkpoint(Metric("m", name)),
    ):
        try:
            read(name)
            print("nothing is wrong")
        except UserError as error:
            print(error)
"""


def messages(folder: Path, *names: str, **environment: str) -> tuple[list[str], list[str]]:
    """The message of each kind of thing for each name, and the lines on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names],
        env=launch.ENVIRONMENT | {"HF_HOME": str(folder), "DS_ACCELERATOR": "cpu"} | environment,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 7 * len(names), said
    return said, [line for line in done.stderr.splitlines() if "hub" in line or "Retry" in line]


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    unreachable = {
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }  # fmt: skip
    said, errors = messages(tmp_path, "someone/absent", **unreachable)
    for line in said:
        assert "someone/absent" in line
        assert "the Hugging Face hub does not answer (check the network and HF_ENDPOINT" in line
    (retries,) = errors
    assert retries == (
        "the Hugging Face hub does not answer ([Errno 111] Connection refused); trying again, up "
        "to 5 times for each file"
    )
    # Paths are not asked for.
    said, errors = messages(tmp_path, "/absent", "./absent", "../a", "absent/", **unreachable)
    assert errors == []
    assert not any("Hugging Face hub" in line for line in said), said


def test_the_offline_variable_is_named(tmp_path: Path) -> None:
    said, _ = messages(tmp_path, "someone/absent", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="")
    for line in said:
        assert "HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked" in line
