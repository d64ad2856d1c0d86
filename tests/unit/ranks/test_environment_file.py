"""`.deepspeed_env`: its lines, and which of its variables count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpo_ds.errors import UserError
from cpo_ds.ranks.environment_file import apply_environment_files, parse_environment_file

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
values = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), max_size=20)


@given(st.dictionaries(names, values, max_size=5))
def test_environment_file_is_taken_as_it_is(variables: dict[str, str]) -> None:
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    assert parse_environment_file(text) == variables


@pytest.mark.parametrize("line", ["", "# comment", "# A=1", "export A=1", "A", "=1", "1A=2"])
def test_lines_that_the_launcher_fails_on_are_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2 is .* instead of NAME=VALUE"):
        parse_environment_file(f"A=1\n{line}\nB=2\n")


def test_a_byte_order_mark_is_named() -> None:
    with pytest.raises(ValueError, match="it begins with a byte order mark, which DeepSpeed's"):
        parse_environment_file("\ufeffA=1\nB=2\n")


def test_variables_of_the_environment_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is set already stays; the launch folder's file wins over the home's."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    for path, text in ((home, "A=home\nB=home\nC=home\n"), (folder, "A=folder\nB=folder\n")):
        path.mkdir()
        (path / ".deepspeed_env").write_text(text)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", os.environ | {"A": "set"})
    apply_environment_files()
    assert [os.environ[name] for name in "ABC"] == ["set", "folder", "home"]

    (folder / ".deepspeed_env").write_text("# A=1\n")
    with pytest.raises(UserError, match=r"folder/\.deepspeed_env: line 1 is '# A=1'"):
        apply_environment_files()
