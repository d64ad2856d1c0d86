"""Results of rounds, read from the files that their stages publish."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpo_ds.data.json_text import finite
from cpo_ds.errors import UserError
from cpo_ds.rounds.checks import Inputs
from cpo_ds.rounds.layout import SAMPLES, Layout, system_of
from cpo_ds.rounds.verdict import Verdict
from cpo_ds.storage.files import writing
from cpo_ds.storage.metrics_file import read_metrics


@dataclass(frozen=True)
class Trained:
    """The counts and means of a round's stages before its evaluation.

    `sample_means` are means over all samples by each selecting metric, and `best_means` over the
    best sample of each source. `accuracy` is the share of pairs with a higher reward of the chosen
    text: of held-out pairs if there are any, else of the last step's.
    """

    sources: int
    sampled: int
    distinct: int  # of `sampled`: without a sample that equals another of its source
    pairs: int  # lines to train on
    comparisons: int  # rejected texts of all lines
    dropped: dict[str, int]
    sample_means: dict[str, float]
    best_means: dict[str, float]
    accuracy: float | None
    accuracy_is_held_out: bool


def read_trained(inputs: Inputs, number: int) -> Trained:
    """Reads the files of a round. Raises `UserError` if one is damaged."""
    layout = inputs.layout
    try:
        summary = json.loads((layout.at(number, "pairs") / "summary.json").read_text("utf-8"))
        comparisons = sum(summary["pairs"].values())
        lines = int(summary.get("lines", comparisons))
        rows = _rows(layout.at(number, "scored.jsonl"))
        samples = [_samples(row) for row in rows]
        by_metric = {
            metric.name: [_scores(row, metric.name) for row in rows] for metric in inputs.selecting
        }
        dropped = {str(reason): int(count) for reason, count in summary["dropped"].items() if count}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{layout.at(number, '')} has a damaged file ({error!r}); remove the folder, and give "
            "the same command again."
        ) from None
    accuracy, is_held_out = _accuracy(layout, number)
    return Trained(
        sources=len(rows),
        sampled=sum(map(len, samples)),
        distinct=sum(len(set(texts)) for texts in samples),
        pairs=lines,
        comparisons=comparisons,
        dropped=dropped,
        sample_means={
            name: _mean([s for row in rows for s in row]) for name, rows in by_metric.items()
        },
        best_means={name: _mean([max(r) for r in rows if r]) for name, rows in by_metric.items()},
        accuracy=accuracy,
        accuracy_is_held_out=is_held_out,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def _is_sample(name: str) -> bool:
    return name.startswith(f"{SAMPLES}-")


def _samples(row: dict[str, Any]) -> list[str]:
    return [text for name, text in row["candidates"].items() if _is_sample(name)]


def _scores(row: dict[str, Any], metric: str) -> list[float]:
    """The scores of a row's samples by a metric, without missing ones."""
    scored = row["scores"][metric].items()
    return [float(s) for name, s in scored if _is_sample(name) and finite(s) is not None]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _accuracy(layout: Layout, number: int) -> tuple[float | None, bool]:
    """The reward accuracy at the end of a training, and whether it is of held-out pairs."""
    training, held_out = read_metrics(layout.at(number, "run"))
    if held_out:
        return finite(held_out[-1].get("eval_reward_accuracy")), True
    return (finite(training[-1].get("reward_accuracy")) if training else None), False


def read_times(layout: Layout) -> dict[tuple[int, str], float]:
    """Seconds of each stage, by round and stage; those of starts that were killed are not known."""
    times: dict[tuple[int, str], float] = {}
    try:
        lines = layout.times.read_text(encoding="utf-8").splitlines()
    except OSError:
        return times
    for line in lines:
        try:
            value = json.loads(line)
            times[int(value["round"]), str(value["stage"])] = float(value["seconds"])
        except (ValueError, KeyError, TypeError):
            continue  # half a line of a start that was killed
    return times


@dataclass(frozen=True)
class Course:
    """All rounds so far: verdicts from round 0 on, trainings from round 1 on, and their outcome."""

    verdicts: tuple[Verdict, ...]
    trained: tuple[Trained, ...]
    best: int
    stopped: str | None  # the reason if a watched metric fell
    planned: int  # rounds at most

    @property
    def last(self) -> int:
        """The newest round."""
        return self.verdicts[-1].round

    @property
    def is_over(self) -> bool:
        """Whether no further round follows."""
        return self.stopped is not None or self.last >= self.planned


def write_results(inputs: Inputs, course: Course) -> None:
    """Writes rounds.json, which holds no times, and the link to the best round's run."""
    layout = inputs.layout
    values = {
        "best": {
            "round": course.best,
            "by": inputs.deciding[0].name,
            "model": best_model(inputs, course.best),
        },
        "finished": course.is_over,
        "stopped": course.stopped,
        "deciding": [metric.name for metric in inputs.deciding],
        "watching": [metric.name for metric in inputs.watching],
        "selecting": [metric.name for metric in inputs.selecting],
        "warnings": list(inputs.warnings),
        "rounds": [_as_json(course, verdict) for verdict in course.verdicts],
    }
    with writing(layout.results) as unfinished:
        text = json.dumps(values, ensure_ascii=False, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
    _link(layout, course.best)


def _as_json(course: Course, verdict: Verdict) -> dict[str, Any]:
    trained = course.trained[verdict.round - 1] if verdict.round else None
    return {
        "round": verdict.round,
        "system": system_of(verdict.round),
        "compared_with": verdict.compared_with,
        "watched": {name: asdict(one) for name, one in verdict.watched.items()},
        "trained": asdict(trained) if trained else None,
    }


def best_model(inputs: Inputs, best: int) -> str:
    """The name to give to `cpo-ds translate --model` for the best policy."""
    if best:
        return str(inputs.layout.at(best, "run"))
    policy = inputs.settings.policy
    return policy.model + (f" with the adapter {policy.adapter}" if policy.adapter else "")


def _link(layout: Layout, best: int) -> None:
    """Lets `best` point to the best round's run, at once; removes it if that is the start."""
    if not best:
        layout.best.unlink(missing_ok=True)
        return
    unfinished = layout.folder / ".best.unfinished"
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(Path(f"round-{best}") / "run")
    unfinished.replace(layout.best)
