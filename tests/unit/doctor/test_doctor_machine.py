"""`cpo-ds doctor` without a hostfile: the checks of this machine."""

from __future__ import annotations

import dataclasses
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from recipes import recipe

from cpo_ds import cli
from cpo_ds.doctor import machine as asked
from cpo_ds.doctor.checks.machine import judge_machine
from cpo_ds.doctor.machine import Machine
from cpo_ds.doctor.survey import Gpu

TORCH = {
    "gpus": ["NVIDIA H100"], "cuda": "13.0", "trouble": "", "dtype": "bfloat16",
    "dtype_because": "the GPU computes it", "attention": "torch_varlen",
    "attention_because": "fastest", "works": ["torch_varlen", "sdpa"], "refused": {},
}  # fmt: skip
HEALTHY = Machine(
    python="3.11.2",
    python_range="<3.14,>=3.10",
    versions={"torch": "2.13.0+cu130", "deepspeed": "0.19.8"},
    required={"torch": ">=2.12", "deepspeed": ">=0.19.8"},
    gpus=(Gpu("NVIDIA H100", 81559, 4, "580.1"),),
    torch=TORCH,
    memory=100.0,
    shm=8.0,
    disks={"/data": 500.0},
    hub="https://huggingface.co",
    hub_seconds=0.2,
    deepspeed_files={"zero3": ""},
)


def test_a_healthy_machine_has_no_findings() -> None:
    rows = judge_machine(HEALTHY, 20.0, 8.0)
    assert {row.state for row in rows} == {"ok"}
    seen = {row.check: row.seen for row in rows}
    assert seen["devices"] == "0: NVIDIA H100, 80 GiB; driver 580.1, torch's CUDA 13.0"
    assert seen["attention"] == "torch_varlen: fastest; works too: sdpa"


@pytest.mark.parametrize(
    ("change", "check", "state", "said"),
    [
        ({"python": "3.9.1"}, "Python", "fix", "Python 3.9.1 is not supported (<3.14,>=3.10)"),
        ({"versions": {"torch": "2.11.0+cu126"}}, "packages", "fix", "torch 2.11.0+cu126 is not"),
        ({"versions": {"torch": "2.13.0"}}, "packages", "fix", "pip install 'deepspeed>=0.19.8'"),
        ({"torch": TORCH | {"gpus": [], "cuda": ""}}, "devices", "fix", "it is built for CPUs"),
        ({"torch": TORCH | {"gpus": [], "trouble": "driver too old"}}, "devices", "fix", "too old"),
        ({"gpus": (Gpu("L4", 23034, 9000, "1"),)}, "devices", "warn", "GPU 0 (9 GiB) is in use"),
        ({"torch": {}, "torch_problem": "no torch"}, "precision", "fix", "no torch"),
        ({"memory": 3.0}, "memory", "warn", "3 GiB of memory are free, less than 8"),
        ({"shm": 0.06}, "memory", "warn", "--shm-size=8g"),
        ({"disks": {"/data": 5.0}}, "disk", "warn", "5 GiB are free in /data, less than 20"),
        ({"hub_seconds": None, "hub_problem": "timed out"}, "hub", "warn", "timed out"),
        ({"deepspeed_files": {"zero3": "bad"}}, "ds_configs", "fix", "zero3: bad"),
        ({"deepspeed_files": {}}, "ds_configs", "fix", "install cpo-ds again"),
        ({"build_tools": ("ninja",)}, "compiler", "warn", "ninja cannot be called"),
    ],
)
def test_problems_have_a_remedy(change: dict[str, Any], check: str, state: str, said: str) -> None:
    rows = judge_machine(dataclasses.replace(HEALTHY, **change), 20.0, 8.0)
    row = next(row for row in rows if row.check == check)
    assert row.state == state
    assert said in " ".join(f"{finding.problem} {finding.fix}" for finding in row.findings)


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def test_the_hub_is_asked_and_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        _, seconds, problem = asked._ask_hub()
        server.shutdown()
    assert seconds is not None and problem == ""
    _, seconds, problem = asked._ask_hub()  # nobody listens any more
    assert seconds is None and "refused" in problem


def test_this_machine_is_checked_with_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(tmp_path / "model")
    values = {"model": {"name_or_path": model}, "data": {"format": "sample"}}
    options = ["--config", str(recipe(tmp_path, values)), "--output_dir", str(tmp_path / "run")]
    assert cli.main(["doctor", "--json", *options]) == 2
    answer = json.loads(capsys.readouterr().out)
    checks = {check["check"]: check for check in answer["checks"]}
    assert not answer["fine"] and checks["recipe"]["state"] == "fix"
    assert checks["recipe"]["findings"][0]["what"] == f"there is no {model}"
    assert checks["ds_configs"]["state"] == checks["attention"]["state"] == "ok"
    assert "sdpa" in answer["machine"]["torch"]["works"]
    assert "HF_HUB_OFFLINE is set" in checks["hub"]["seen"]


def test_options_of_hosts_need_a_hostfile(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--reachable-only"]) == 2
    assert "--reachable-only goes with --hostfile" in capsys.readouterr().err
