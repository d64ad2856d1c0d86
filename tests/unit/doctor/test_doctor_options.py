"""`cpo-ds doctor`: options, imports, and the requests that other hosts answer."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from architecture import imported_names

from cpo_ds import cli
from cpo_ds.doctor import remote


@pytest.mark.parametrize(
    "options, said",
    [
        (["--hostfile", "{tmp}/none"], "hostfile {tmp}/none cannot be read: No such file"),
        (["--hostfile", "{tmp}/binary"], "hostfile {tmp}/binary cannot be read: it is not text"),
        (["--hostfile", "{tmp}/bad"], "{tmp}/bad:1: 'a': no slots"),
        (["--hostfile", "{tmp}/good", "--write", "x"], "--write goes with --reachable-only"),
        (["--hostfile", "{tmp}/good", "--size", "0"], "--size has to be more than 0"),
        (["--hostfile", "{tmp}/good", "--ssh-port", "70000"], "--ssh-port has to be between"),
        (["--hostfile", "{tmp}/good", "--confg", "x"], "unknown argument --confg"),
        (["--hostfile", "{tmp}/good", "--config", "{tmp}/none"], "{tmp}/none"),
    ],
)
def test_bad_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad").write_text("a\n")
    (tmp_path / "good").write_text("a slots=1\n")
    assert cli.main(["doctor", *(o.replace("{tmp}", str(tmp_path)) for o in options)]) == 2
    assert said.replace("{tmp}", str(tmp_path)) in capsys.readouterr().err


def test_any_python_of_the_last_years_can_be_asked() -> None:
    text = Path(remote.__file__).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))
    imported = {n for n in imported_names(text) if n.split(".")[0] not in sys.stdlib_module_names}
    assert imported == set()


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from cpo_ds import cli\ntry:\n    cli.main(['doctor', '--help'])\n"
    code += "finally:\n    assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--reachable-only" in done.stdout, done.stderr


def test_every_request_is_declared() -> None:
    public = {
        name
        for name, value in vars(remote).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert set(remote.REQUESTS) == public - {"answer_requests"}
