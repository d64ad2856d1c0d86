"""Files that are no recipe, or no DeepSpeed file, or only look like one."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from recipes import load

from cpo_ds.errors import UserError
from cpo_ds.recipe import load_config, read_deepspeed_file

# Each list holds the one before nine times.
_ALIASES_OF_ALIASES = b"data: {directions: [&a0 [x]" + b"".join(
    f", &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]".encode() for n in range(1, 10)
) + b"]}"  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"a: \xff\xfe\n", "is not valid YAML"),
        (b"data: {format: pairs}\nmodel: {}\ndata: {}\n", "data is given twice.* lines 1 and 3"),
        (b"data:\n  path: a\n  path: b\n", "path is given twice.* lines 2 and 3"),
        (b"data: &a {path: *a}\n", "line 1: an alias .* inside the value that it names"),
        (_ALIASES_OF_ALIASES, "aliases .* make more than 100000 values"),
        (b"loss: " + 5000 * b"[" + 5000 * b"]", "is not valid YAML: maximum recursion depth"),
        (b"batch: {pairs: 2024-99-99}\n", "is not valid YAML: month must be in 1..12"),
        (b'output_dir: "a\\0b"\n', "a value holds a character of code 0"),
        (b"model: {name_or_path: [" + 999 * b"x," + b"]}", r"it is \['x', 'x', .*\.\.\.\]"),
    ],
)
def test_a_recipe_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_config(["--config", str(path)])
    assert "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_byte_order_marks_and_carriage_returns_are_taken(tmp_path: Path) -> None:
    """Some editors write them into a recipe and into a DeepSpeed file."""
    recipe, deepspeed = tmp_path / "r.yaml", tmp_path / "ds.json"
    lines = ["model:", "  name_or_path: x", "data:", "  format: sample", f"deepspeed: {deepspeed}"]
    recipe.write_bytes(codecs.BOM_UTF8 + "\r\n".join(lines).encode())
    deepspeed.write_bytes(codecs.BOM_UTF8 + b'{\r\n"zero_optimization": {"stage": 2}}')
    config, _ = load_config(["--config", str(recipe)])
    assert config.model.name_or_path == "x"
    settings = {"zero_optimization": {"stage": 2}}
    assert read_deepspeed_file(config) == (deepspeed, settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"bf16": {}, "bf16": {}}', "is not valid JSON: bf16 is given twice"),
        ("[" * 100_000, "is not valid JSON: maximum recursion depth"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_deepspeed_file_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "stage.json"
    path.write_text(content, encoding="utf-8")
    config = load(tmp_path, "--deepspeed", str(path))
    with pytest.raises(UserError, match=message):
        read_deepspeed_file(config)
