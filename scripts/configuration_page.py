"""Writes docs/configuration.md, the page of all settings, from their declarations.

    python scripts/configuration_page.py

The declarations are in cpo_ds/config.py and cpo_ds/settings/. A test checks that the page is
current.
"""

from __future__ import annotations

from pathlib import Path

from cpo_ds.recipe import SETTINGS, default_text, type_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """\
# Every setting

A recipe is a YAML file with these fields, grouped by the part before the dot. To change a field for
one run, give `--section.field value` on the command line (`--output-dir` and `--output_dir` are the
same). The value `none` means no value. An unknown field is an error that names the closest known
one. A setting that would have no effect is an error too. Each run saves its resolved configuration
as `config.yaml`. This page is written by `scripts/configuration_page.py`.

| field | type | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Returns the page: an introduction, then a row of the table for each setting."""
    rows = [
        f"| `{name}` | {_cell(type_name(field))} | {_cell(default_text(field))} "
        f"| {_cell(field.description or '')} |"
        for name, field in SETTINGS.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    # A bare "|" would end the table's cell.
    return text.removeprefix("default ").replace("|", " \\| ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
