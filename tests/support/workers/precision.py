"""A run in `model.dtype: auto` on ranks with different processors."""

from __future__ import annotations

import os
from unittest import mock

from cpo_ds.model import precision
from cpo_ds.run.main import main


def train_on_unlike_processors(*arguments: str) -> int:
    """Trains as if only rank 0's processor multiplied bfloat16 faster."""
    capabilities = {"avx512_bf16": os.environ["RANK"] == "0"}

    def chosen(_: object) -> precision.Precision:
        return precision.cpu_precision(capabilities)

    with mock.patch.object(precision, "device_precision", chosen):
        return main(list(arguments))
