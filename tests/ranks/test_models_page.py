"""The tables of docs/models.md are those that real runs give."""

import pytest
from models_page import PAGE, SECTIONS, table, written


@pytest.mark.parametrize("section", SECTIONS)
def test_table_is_current(section: str) -> None:
    assert table(section) == written(section, PAGE.read_text(encoding="utf-8"))
