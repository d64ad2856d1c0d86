"""The documentation as a site: it is built, its links lead somewhere, and it needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed: bash scripts/setup.sh")

_LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\s\">]+)")
_STYLES = re.compile(r"<link[^>]*\shref=\"?([^\s\">]+)[^>]*>")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds a site as scripts/site.sh does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    return subprocess.run(
        [*command, "--config-file", str(config), "--site-dir", str(site)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


def test_the_site_is_built_without_a_broken_link_and_read_without_a_network(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = [*_LOADED.findall(text), *_STYLES.findall(text)]
        outside = [address for address in loaded if re.match(r"(https?:)?//", address)]
        assert loaded and not outside, (page.name, outside)
    for name, text in (
        ("quickstart", "needs a GPU and a download"),
        ("troubleshooting", '<pre class="message">'),
    ):
        assert text in (tmp_path / "site" / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("link", ["[a](there.md)", "[a](#there)", "[a](b.md#there)", "[a](/b.md)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{link} [b](b.md#b)\n")
    (tmp_path / "docs" / "b.md").write_text("# B\n")
    (tmp_path / "docs" / "site.css").touch()
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nnot_in_nav: ''\n"
        "nav: [index.md, b.md]\n"
    )
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1 and link.split("(")[1].strip(")").split("#")[-1] in done.stderr
