"""The checkout under test, and data beside it that only some machines have."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WMT22 = ROOT.parent / "shared" / "data" / "wmt22_candidates.jsonl.gz"
