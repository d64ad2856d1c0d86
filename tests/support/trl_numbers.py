"""Numbers that TRL computes, kept as data, since TRL may drop the trainers that compute them.

With TRL installed a test computes its numbers anew and compares them with the kept ones. Without
TRL the test takes the kept ones. `pytest tests/parity --update-trl` writes them again, and
`pytest tests/parity --without-trl` behaves as if TRL were not installed.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repository import ROOT

FILE = ROOT / "tests" / "parity" / "trl_numbers.json"
DIRECTIONS = 8  # of a gradient's sketch
SKETCH_TOLERANCE = 1e-4  # float32 sums in another order on another machine


class TrlNumbers:
    """The kept numbers by name; `update` replaces them by what TRL computes."""

    def __init__(self, file: Path = FILE, *, update: bool = False) -> None:
        self._file, self._update = file, update
        self._kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))

    def of(self, name: str, compute: Callable[[], Any], *, tolerance: float = 1e-5) -> Any:
        """The kept numbers of a name, after a comparison with `compute()` if TRL is installed.

        `compute` imports from TRL what it needs, and returns numbers, texts, lists and dicts. Its
        numbers may differ from the kept ones by `tolerance`, which is relative.
        """
        try:
            computed = json.loads(json.dumps(compute()))
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "trl":
                raise
            return self._kept[name]
        if self._update:
            self._kept[name] = computed
            self._write()
        assert name in self._kept, f"{name} is not kept; run pytest tests/parity --update-trl"
        difference = first_difference(computed, self._kept[name], tolerance)
        assert difference is None, f"TRL differs from what is kept of {name}: {difference}"
        return self._kept[name]

    def _write(self) -> None:
        lines = [
            f"{json.dumps(name)}: {json.dumps(self._kept[name])}" for name in sorted(self._kept)
        ]
        self._file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def first_difference(actual: Any, expected: Any, tolerance: float, at: str = "") -> str | None:
    """The first place at which two values differ, or None; floats of a list count as a vector."""
    if isinstance(expected, float) and isinstance(actual, float):
        actual, expected = [actual], [expected]
    if _are_floats(expected) and _are_floats(actual) and len(actual) == len(expected):
        error = math.dist(actual, expected) / max(math.hypot(*expected), 1e-30)
        return None if error <= tolerance else f"{at}: relative error {error:.1e}"
    if isinstance(expected, dict) and isinstance(actual, dict) and actual.keys() == expected.keys():
        items = [(key, actual[key], value) for key, value in expected.items()]
    elif isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        items = [(str(i), one, value) for i, (one, value) in enumerate(zip(actual, expected))]  # noqa: B905
    else:
        return None if actual == expected else f"{at}: {actual} instead of {expected}"
    for key, one, value in items:
        allowed = max(tolerance, SKETCH_TOLERANCE) if key == "gradients" else tolerance
        if difference := first_difference(one, value, allowed, f"{at}/{key}"):
            return difference
    return None


def _are_floats(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, float) for v in value)


def sketch(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, list[float]]:
    """Norm and `DIRECTIONS` random projections of each gradient, by the parameter's name.

    The mean square of a projection on random signs is the square of the norm. So the projections
    of two gradients tell the norm of their difference, without the gradients.
    """
    result = {}
    for name, gradient in named:
        signs = np.random.RandomState(zlib.crc32(name.encode())).randint(
            0, 2, size=(DIRECTIONS, gradient.numel())
        )
        flat = gradient.detach().double().reshape(-1)
        projections = torch.from_numpy(2.0 * signs - 1.0) @ flat
        values = [flat.norm().item(), *projections.tolist()]
        result[name] = [float(f"{value:.8g}") for value in values]
    return result


def largest_sketch_error(
    actual: dict[str, list[float]], expected: dict[str, list[float]], scale: float = 1.0
) -> float:
    """The largest relative error over all parameters; `expected` is multiplied by `scale`."""
    assert actual.keys() == expected.keys()
    errors = []
    for name, (norm, *projections) in expected.items():
        difference = np.array(actual[name][1:]) - scale * np.array(projections)
        errors.append(float(np.sqrt(np.mean(difference**2))) / (scale * norm))
    return max(errors)


def checksum(value: Any) -> int:
    """A short number that stands for a long value of JSON."""
    return zlib.crc32(json.dumps(value, ensure_ascii=False).encode())


def hide_trl() -> None:
    """Makes every import of TRL fail, as if it were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        del sys.modules[name]
    sys.modules["trl"] = None  # type: ignore[assignment]
