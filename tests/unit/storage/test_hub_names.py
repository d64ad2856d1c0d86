"""Names on the hub and paths, and the reasons why a name is not provided."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpo_ds.errors import UserError
from cpo_ds.storage.hub_names import (
    check_folder_or_name,
    looks_like_path,
    offline_variable,
    why_not_provided,
)

PATHS = ["/data/model", "/model", "./model", "../model", "~/model", "~", ".", "..", "model/",
         "someone/model/", "runs/x/export", "a/b/c"]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_never_names(name: str) -> None:
    assert looks_like_path(name)
    if not Path(name).is_dir() and name != "~":
        with pytest.raises(UserError, match=f"no model {name}: there is no such folder; correct"):
            check_folder_or_name("model", name)


@pytest.mark.parametrize("name", ["gpt2", "someone/model", "some.one/m-1_b", "x.y"])
def test_names_are_looked_up(name: str) -> None:
    assert not looks_like_path(name)
    check_folder_or_name("model", name)


def test_what_a_path_holds_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder_or_name("model", str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors is a file; give the folder that"):
        check_folder_or_name("model", str(file))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    with pytest.raises(UserError, match=f"no such folder; write {tmp_path}"):
        check_folder_or_name("model", f"~/{tmp_path.name}")


def test_the_variable_that_keeps_from_asking_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    lost = OSError("nothing")
    lost.__cause__ = ConnectionError("refused")
    assert offline_variable() is None
    assert "does not answer (check the network" in why_not_provided(lost)
    assert "does not provide it (check the name" in why_not_provided(OSError("404"))
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "yes")
    assert why_not_provided(lost).startswith("TRANSFORMERS_OFFLINE is set, so the Hugging Face hub")
    assert "does not provide it" in why_not_provided(OSError("404"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert offline_variable() == "HF_HUB_OFFLINE"
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    assert offline_variable("HF_DATASETS_OFFLINE") == "HF_HUB_OFFLINE"
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    assert offline_variable("HF_DATASETS_OFFLINE") == "HF_DATASETS_OFFLINE"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert offline_variable() == "TRANSFORMERS_OFFLINE"
