"""Paired tests of a difference between two systems, by sacreBLEU's conventions.

For BLEU and chrF the tests are sacreBLEU's own. Metrics with a score of each segment are tested in
the same way: the same random draws, the same statistics and the same p-value.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cpo_ds.evaluate.delta_accuracy import agreement
from cpo_ds.evaluate.metric_facts import facts_of
from cpo_ds.evaluate.neural import SegmentScores
from cpo_ds.evaluate.rows import Direction
from cpo_ds.scoring.corpus import make_metric
from cpo_ds.scoring.metrics import Metric

if TYPE_CHECKING:  # numpy and sacreBLEU's tests are imported late, so that `--help` is quick
    import numpy as np

SEED = 12345  # sacreBLEU's
SAMPLES = {"bs": 1000, "ar": 10000}
NAMES = {"bs": "paired bootstrap", "ar": "approximate randomization"}
LEVEL = 0.05  # a difference with a higher p-value is a tie


class Kind(NamedTuple):
    """A test, `bs` or `ar`, and the number of its resamples or trials."""

    test: str
    samples: int


@dataclass(frozen=True)
class Comparison:
    """A test of a system's difference from the baseline in one direction."""

    metric: str
    language_pair: str
    system: str
    baseline: str
    test: str
    samples: int
    seed: int
    difference: float
    p_value: float
    verdict: str  # better, worse, tie or same texts
    agreement: str | None = None  # share of people's decisions, like 80-85%, by delta accuracy
    mean: float | None = None  # of the system's resampled scores, for the bootstrap
    interval: float | None = None  # half of their 95% interval

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class _Outcome(NamedTuple):
    score: float
    p_value: float
    mean: float | None
    interval: float | None


def compare_lexical(
    metric: Metric, direction: Direction, tokenizer: str, baseline: str, kind: Kind
) -> list[Comparison]:
    """Tests of BLEU or chrF by sacreBLEU, of each other system against the baseline."""
    from sacrebleu.significance import PairedTest

    counts = make_metric(metric.model, direction.references, tokenizer)
    systems = [baseline, *(name for name in direction.systems if name != baseline)]
    texts = [(system, direction.translations(system)) for system in systems]
    test = PairedTest(texts, {metric.name: counts}, None, kind.test, kind.samples)
    test._seed = SEED  # not that of the environment variable SACREBLEU_SEED
    (results,) = [values for name, values in test()[1].items() if name != "System"]
    outcomes = [_Outcome(r.score, r.p_value, r.mean, r.ci) for r in results]
    return [
        _comparison(metric, direction, (system, baseline), kind, outcomes[0].score, outcome)
        for system, outcome in zip(systems[1:], outcomes[1:], strict=True)
    ]


def compare_segments(
    scores: SegmentScores, direction: Direction, baseline: str, kind: Kind
) -> list[Comparison]:
    """Tests of the mean score of segments, of each other system against the baseline."""
    import numpy as np

    pair = direction.language_pair
    first = np.array(scores.values[pair, baseline])
    run = _bootstrap if kind.test == "bs" else _randomization
    comparisons = []
    for system in direction.systems:
        if system != baseline:
            outcome = run(first, np.array(scores.values[pair, system]), kind.samples)
            names = (system, baseline)
            comparisons.append(
                _comparison(scores.metric, direction, names, kind, float(first.mean()), outcome)
            )
    return comparisons


def _bootstrap(baseline: np.ndarray, system: np.ndarray, samples: int) -> _Outcome:
    """Koehn's paired bootstrap, with the statistics of Riezler and Maxwell, as in sacreBLEU."""
    import numpy as np
    from sacrebleu.significance import estimate_ci

    drawn = np.random.default_rng(SEED).choice(len(system), (samples, len(system)), replace=True)
    of_system, of_baseline = system[drawn].mean(1), baseline[drawn].mean(1)
    differences = np.abs(of_system - of_baseline)
    p_value = _p_value(differences - differences.mean(), abs(system.mean() - baseline.mean()))
    mean, interval = estimate_ci(of_system)
    return _Outcome(float(system.mean()), p_value, float(mean), float(interval))


def _randomization(baseline: np.ndarray, system: np.ndarray, samples: int) -> _Outcome:
    """Approximate randomization: segments change sides at random, as in sacreBLEU."""
    import numpy as np

    draws = np.random.default_rng(SEED).integers(2, size=(samples, len(system)), dtype=bool)
    # Two shuffled systems: if one has the baseline's segment, the other has the system's.
    both = np.stack([baseline, system], axis=1)
    kept = np.concatenate([part.astype(float) @ both for part in np.array_split(draws, 20)])
    given = both.sum(0) - kept
    first, second = kept[:, 0] + given[:, 1], given[:, 0] + kept[:, 1]
    differences = np.abs(first / len(system) - second / len(system))
    p_value = _p_value(differences, abs(system.mean() - baseline.mean()))
    return _Outcome(float(system.mean()), p_value, None, None)


def _p_value(statistics: np.ndarray, difference: float) -> float:
    return float(((statistics > difference).sum() + 1) / (len(statistics) + 1))


def _comparison(
    metric: Metric,
    direction: Direction,
    systems: tuple[str, str],
    kind: Kind,
    baseline_score: float,
    outcome: _Outcome,
) -> Comparison:
    system, baseline = systems
    difference = float(outcome.score - baseline_score)
    lower_is_better = facts_of(metric.name, metric.model).lower_is_better
    if direction.translations(system) == direction.translations(baseline):
        verdict = "same texts"
    elif difference == 0 or outcome.p_value >= LEVEL:
        verdict = "tie"
    else:
        verdict = "better" if (difference < 0) == lower_is_better else "worse"
    return Comparison(
        metric=metric.name,
        language_pair=direction.language_pair,
        system=system,
        baseline=baseline,
        test=kind.test,
        samples=kind.samples,
        seed=SEED,
        difference=difference,
        p_value=float(outcome.p_value),
        verdict=verdict,
        agreement=agreement(metric, difference),
        mean=None if outcome.mean is None else float(outcome.mean),
        interval=None if outcome.interval is None else float(outcome.interval),
    )
