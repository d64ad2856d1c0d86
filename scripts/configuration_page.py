"""Writes docs/configuration.md from the settings themselves."""

from __future__ import annotations

from pathlib import Path

from cpo_ds.recipe import SETTINGS, default_text, type_name

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """\
# Every setting

A recipe is a YAML file with these fields, grouped by the part before the dot. Any of them is
overridden on the command line as `--section.field value` (`--output-dir` and `--output_dir` are the
same); `none` means no value. An unknown key is an error that names the closest known one, and so is
a setting that would have no effect. The resolved configuration is saved as `config.yaml` with the
run. This page is written by `scripts/configuration_page.py`.

| field | type | default | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = [
        f"| `{name}` | {_cell(type_name(field))} | {_cell(default_text(field))} "
        f"| {_cell(field.description)} |"
        for name, field in SETTINGS.items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.removeprefix("default ").replace("|", " \\| ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
