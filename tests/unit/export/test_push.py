"""Exports pushed by the hub's own client to a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from push_hub import PART_BYTES, Hub, Repository, push_hub
from repository import ROOT

CARD = """---
base_model: tiny
library_name: peft
---

# tiny, tuned to translate by CPO
"""
# Pushes a folder as `cpo-ds export --push` does. Arguments: the folder, its base, and the options
# of `Push` as JSON.
PROGRAM = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
from cpo_ds.cli import _tell_error
from cpo_ds.errors import UserError
from cpo_ds.export.push import Push
time.sleep = lambda seconds: None  # the client tries again after pauses
folder, base, options = sys.argv[1:]
config = SimpleNamespace(model=SimpleNamespace(name_or_path=base))
try:
    push = Push(**json.loads(options))
    push.check_base(config, as_adapter=Path(folder, "adapter_config.json").exists())
    print("pushed:", push.send(Path(folder)))
except UserError as error:
    _tell_error(str(error))
    sys.exit(error.exit_code)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with push_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter's export, on a base in a folder, with weights of several parts."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 4})
    )
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(250)) * (PART_BYTES // 100))
    (folder / "tokenizer.json").write_text('{"vocab": {"/usr/bin": 1}}')
    (folder / "optimizer.pt").write_bytes(b"states")
    (tmp_path / "base").mkdir()
    return folder


def push(
    hub: Hub,
    folder: Path,
    name: str,
    *,
    base: str | None = None,
    token: str = "writer",
    **options: bool,
) -> tuple[int, str]:
    """Runs PROGRAM; returns its exit code, and its output with errors."""
    arguments = [str(folder), str(folder.parent / "base")]
    arguments.append(json.dumps({"name": name, "base": base} | options))
    return run("-c", PROGRAM, *arguments, HF_ENDPOINT=hub.url, HF_TOKEN="writer")


def run(*arguments: str, **variables: str) -> tuple[int, str]:
    """Runs Python with its own variables of the hub; returns exit code and output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": "/nowhere", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1"} | variables  # its protocol is not HTTP alone
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    return done.returncode, done.stdout + done.stderr


def test_an_export_is_pushed_as_others_can_load_it(hub: Hub, folder: Path) -> None:
    code, output = push(hub, folder, "tuned", base="org/tiny")
    assert (code, output) == (0, f"pushed: {hub.url}/ann/tuned\n")
    repository = hub.repositories["ann/tuned"]
    assert repository.private and repository.commits == 1
    files = repository.files
    # Large files come in parts; states of the optimizer stay.
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert sorted(files) == [
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip
    assert json.loads(files["adapter_config.json"]) == {
        "base_model_name_or_path": "org/tiny",
        "r": 4,
    }
    assert files["README.md"].decode() == CARD.replace("base_model: tiny", "base_model: org/tiny")
    assert str(folder.parent).encode() not in b"".join(files.values())


def test_a_repository_in_use_is_replaced_only_if_asked(hub: Hub, folder: Path) -> None:
    old = Repository(private=False, files={".gitattributes": b"", "model.safetensors": b"old"})
    hub.repositories["team/tuned"] = old
    code, output = push(hub, folder, "team/tuned", base="org/tiny")
    assert code == 2 and "team/tuned is there already, with 1 file(s)" in output
    assert not any(request.startswith("POST") for request in hub.requests)
    code, output = push(hub, folder, "team/tuned", base="org/tiny", replace=True)
    assert code == 0, output
    assert "model.safetensors" not in old.files and "adapter_model.safetensors" in old.files


def test_a_public_repository_must_be_asked_for(hub: Hub, folder: Path) -> None:
    code, output = push(hub, folder, "team/open", base="org/tiny", public=True)
    assert code == 0, output
    assert not hub.repositories["team/open"].private


def test_a_lost_connection_leaves_no_half_model(hub: Hub, folder: Path) -> None:
    hub.parts_left = 1
    code, output = push(hub, folder, "tuned", base="org/tiny")
    assert code == 2 and "Traceback" not in output
    assert "could not be pushed to ann/tuned" in output and f"It is in {folder}" in output
    assert list(hub.repositories["ann/tuned"].files) == [".gitattributes"]
    hub.parts_left = None
    code, output = push(hub, folder, "tuned", base="org/tiny")
    assert (code, hub.repositories["ann/tuned"].commits) == (0, 1), output


@pytest.mark.parametrize(
    ("options", "variables", "part"),
    [
        (["--push", "tuned"], {"HF_TOKEN": "forgotten"}, "does not know the token"),
        (["--push", "tuned"], {"HF_TOKEN": "reader"}, "may only read"),
        (["--push", "tuned"], {"HF_TOKEN": ""}, "hf auth login"),
        (["--push", "tuned"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set; unset it"),
        (["--push", "club/tuned"], {}, "ann may not write for club"),
        (["--push", "a/b/c"], {}, "--push a/b/c is no name on the Hugging Face hub"),
        (["--push", "tuned", "--base", "../tiny"], {}, "--base ../tiny is no name"),
        (["--public"], {}, "--public belongs to --push REPO"),
    ],
)
def test_what_the_hub_would_refuse_is_said_first(
    hub: Hub, tmp_path: Path, options: list[str], variables: dict[str, str], part: str
) -> None:
    """Before a checkpoint is looked for: there is none."""
    defaults = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "writer"}
    command = ["-m", "cpo_ds.cli", "export", str(tmp_path / "no-run"), *options]
    code, output = run(*command, **defaults | variables)
    assert code == 2 and part in output and output.count("\n") == 1, output
    assert not any(request.startswith("POST") for request in hub.requests)


def test_an_adapter_needs_a_base_that_others_have(hub: Hub, folder: Path) -> None:
    code, output = push(hub, folder, "tuned")
    assert code == 2 and "give the base's name on the hub by --base" in output
    assert not hub.repositories


def test_paths_of_this_machine_are_not_pushed(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text(CARD + "Preference pairs from /data/customers/pairs.jsonl:\n")
    code, output = push(hub, folder, "tuned", base="org/tiny")
    assert code == 2 and "names the path /data/customers/pairs.jsonl" in output
    assert not hub.repositories
