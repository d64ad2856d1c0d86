"""Metrics on the Hugging Face hub that are gated, missing or out of reach."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest


class Hub(http.server.BaseHTTPRequestHandler):
    """A Hugging Face hub that answers as for a gated model, and as for a missing one."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_gated_missing_and_unreachable_models_are_said(hub: str, tmp_path: Path) -> None:
    code = (
        "from cpo_ds.scoring.checkpoint import *\n"
        "for name in ('some/gated', 'some/missing'):\n"
        "    try: find_checkpoint(Metric('m', name))\n"
        "    except UserError as error: print(error)\n"
    )

    def found(**more: str) -> list[str]:
        environment = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        run = subprocess.run(
            [sys.executable, "-c", code], env=launch.ENVIRONMENT | environment,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    gated, missing = found(HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert "some/gated is gated: accept its licence" in gated and "hf auth login" in gated
    assert "there is no model some/missing on the Hugging Face hub" in missing
    for line in found(HF_HUB_OFFLINE="1"):
        assert "HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked" in line
