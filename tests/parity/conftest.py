"""TRL's numbers, from TRL or from the file beside the tests."""

from __future__ import annotations

import pytest
from trl_numbers import TrlNumbers, hide_trl


@pytest.fixture(scope="session")
def trl_numbers(request: pytest.FixtureRequest) -> TrlNumbers:
    """The numbers that TRL computes, checked against TRL if it is installed."""
    if request.config.getoption("--without-trl"):
        hide_trl()
    return TrlNumbers(update=request.config.getoption("--update-trl"))
