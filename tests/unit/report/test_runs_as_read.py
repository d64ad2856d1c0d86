"""Parts of a run's folder that the report reads: lengths of its pairs, and its log."""

from __future__ import annotations

from pathlib import Path

import pair_rows
import pytest
from pair_rows import Starts
from pairs_plainly import pairs_plainly

from cpo_ds.report.pair_lengths import histogram, read_lengths
from cpo_ds.report.run_folder import Start, names_of, read_run

LOG = """--- rank 0 on host node-1, process 12, 2026-01-02 03:04:05 +0000
planned: 4 ranks
  memory that is no data
read 260 rows, kept 250 pairs
  en-de: 250
  dropped, chosen equals rejected: 10
training pairs: 221
  tokens, prompt            mean   49.8
held-out pairs: 29
  tokens, prompt            mean   49.3
training a LoRA adapter
  an indented line of a library
held-out pairs at step 0: loss 4.6386
--- rank 0 on host node-2, process 99, 2026-01-02 05:04:05 +0000
training pairs: 221
resumed from /x/runs at step/step-00000020 at step 20 of 28
held-out pairs at step 28: loss 3.6386
"""


def test_lengths_are_those_of_the_pairs(tmp_path: Path) -> None:
    path = pair_rows.write_rows(tmp_path / "rows.jsonl", "x-alma", 60)
    config = pair_rows.make(tmp_path, path, data={"eval_fraction": 0.2})
    Starts()(config)
    pairs, _, _ = pairs_plainly(config)
    lengths = {name: one.tolist() for name, one in read_lengths(Path(config.output_dir)).items()}
    assert lengths["prompt"] == [pair.starts[0] for pair in pairs]
    assert lengths["chosen"] == [pair.num_scored[0] for pair in pairs]
    assert lengths["rejected"] == [pair.num_scored[1] for pair in pairs]


def test_values_beyond_the_ends_count_in_the_outermost_bins() -> None:
    bins = histogram("margins", 1, [-9.0, 0.0, 0.5, 1.0, 9.0, 9.0], (0.0, 1.0))
    assert sum(bins.counts) == 6 and (bins.counts[0], bins.counts[-1]) == (2, 3)
    assert (bins.edges[0], bins.edges[-1]) == (0.0, 1.0)


def test_starts_and_what_reading_counted_come_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank_0.txt").write_text(LOG)
    (tmp_path / "metrics.jsonl").touch()
    run = read_run(tmp_path, "run")
    assert run.starts == [
        Start("2026-01-02 03:04:05 +0000", "node-1", 0),
        Start("2026-01-02 05:04:05 +0000", "node-2", 20),
    ]
    assert run.data_lines == LOG.splitlines()[3:10]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/run", "/r/b/run", "/r/c"], ["a/run", "b/run", "r/c"]),
        (["/x/a/run", "/y/a/run"], ["x/a/run", "y/a/run"]),
    ],
)
def test_names_tell_runs_apart(paths: list[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names
