"""MetricX models: tokens and scores are those of transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from metricx_models import Oracle, sample_texts, save_metricx

from cpo_ds.errors import UserError
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.scoring.metricx import MetricXScorer, tokenizer
from cpo_ds.scoring.metricx_files import find_metricx
from cpo_ds.scoring.plan import Item

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), rank=0, world_size=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_metricx(tmp_path_factory.mktemp("metricx"))


@pytest.fixture(scope="module")
def oracle(model: Path) -> Oracle:
    return Oracle(model)


def scorer(folder: Path, qe: str = "", dtype: str = "float64") -> MetricXScorer:
    metric = Metric("m", f"{folder}{qe}")
    files = find_metricx(metric)
    return MetricXScorer(files, ALONE, dtype, shard=False, is_estimate=metric.is_estimate)


def items(texts: list[str], *, with_reference: bool) -> list[Item]:
    """Sources, translations and references, each another text."""
    turned = zip(texts, texts[1:] + texts[:1], texts[2:] + texts[:2], strict=True)
    return [Item(a, b, c if with_reference else None, "en-de") for a, b, c in turned]


def values(made: MetricXScorer, given: list[Item]) -> list[float]:
    return [score for score, _ in made.score(given)]


@pytest.mark.parametrize("qe", ["", ":qe"])
def test_a_batch_has_the_scores_of_the_formula(model: Path, oracle: Oracle, qe: str) -> None:
    given = items(sample_texts()[:60], with_reference=not qe)
    expected = [oracle.score(*item.texts) for item in given]
    assert values(scorer(model, qe), given) == pytest.approx(expected, abs=1e-5)
    assert min(expected) == 0 and max(expected) == 25, "both limits are reached"
    assert len({round(score, 2) for score in expected}) > 10, "scores that hardly differ"


def test_tokens_are_those_of_transformers_fast_tokenizer(model: Path, oracle: Oracle) -> None:
    encode = tokenizer(find_metricx(Metric("m", str(model))))
    texts = [*sample_texts(), "Ünï\u00ad  \u200bzero 🙂🙂 日本語\n\tx", "ﬁ ½ ①", "a<b</x> 🙂"]
    for text in texts:
        assert encode(f"source: {text}") == oracle.ids(f"source: {text}"), text


def test_long_inputs_are_cut_off_as_by_transformers_and_counted(
    model: Path, oracle: Oracle
) -> None:
    made = scorer(model, ":qe")
    text = " ".join(sample_texts())
    cut = Item(text[:2600], text[2600:5200], None, "en-de")
    whole = Item(text[:600], text[600:1200], None, "en-de")
    texts = [*cut.texts, *whole.texts]
    count = dict(zip(texts, made.count_tokens(texts), strict=True)).__getitem__
    assert len(oracle.ids(f"source: {cut.source} candidate: {cut.translation}")) == 1535
    assert (made.cuts_off(cut, count), made.cuts_off(whole, count)) == (True, False)
    expected = [oracle.score(*cut.texts), oracle.score(*whole.texts)]
    assert values(made, [cut, whole]) == pytest.approx(expected, abs=1e-5)


def test_a_model_in_several_files_or_with_its_embeddings_as_head(tmp_path: Path) -> None:
    given = items(sample_texts()[:12], with_reference=True)
    several = save_metricx(tmp_path / "several", splits=True)
    oracle = Oracle(several)
    expected = [oracle.score(*item.texts) for item in given]
    assert values(scorer(several), given) == pytest.approx(expected, abs=1e-5)

    # Tied to the embeddings, Google's code scales hidden states; transformers 5 does not.
    tied = save_metricx(tmp_path / "tied", is_tied=True)
    oracle = Oracle(tied)
    text = "source: {} candidate: {} reference: {}"
    logits = [oracle.logit(text.format(*item.texts)) / 4 for item in given]
    expected = [min(25.0, max(0.0, logit)) for logit in logits]
    assert values(scorer(tied), given) == pytest.approx(expected, abs=1e-5)
    assert find_metricx(Metric("m", str(tied))).fingerprint != find_metricx(
        Metric("m", str(several))
    ).fingerprint  # fmt: skip


def test_models_that_are_not_whole_are_refused(tmp_path: Path, model: Path) -> None:
    def said(change: Any, dtype: str = "float64") -> str:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model, folder)
        change(folder)
        with pytest.raises(UserError) as error:
            scorer(folder, dtype=dtype)
        return str(error.value)

    def settings(**changes: Any) -> Any:
        def change(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    weights = "model.safetensors"
    assert "has no weights" in said(lambda folder: (folder / weights).unlink())
    assert "cannot be read" in said(lambda folder: (folder / weights).write_bytes(b"x" * 99))
    assert "lacks the weight encoder.block.3" in said(settings(num_layers=4))
    assert "its settings say (24" in said(settings(d_ff=24))
    assert "spiece.model cannot be read" in said(
        lambda folder: (folder / "spiece.model").write_bytes(b"x")
    )
    assert "google/mt5-xl is not on this machine" in said(
        lambda folder: (folder / "spiece.model").unlink()
    )
    assert "float16: mT5's activations overflow" in said(lambda folder: None, "float16")
    with pytest.raises(UserError, match="there is no folder"):
        find_metricx(Metric("m", "/no/metricx-24"))


def test_metricx_by_name(model: Path) -> None:
    given = ["metricx-24", "metricx-24-QE", "metricx-24-large-qe"]
    given += ["google/metricx-24-hybrid-xl-v2p6", f"a={model}", f"b={model}:qe", "c=metricx-24-xl"]
    metrics = parse_metrics(given)
    assert [metric.model for metric in metrics[:4]] == [
        "google/metricx-24-hybrid-xxl-v2p6",
        "google/metricx-24-hybrid-xxl-v2p6:qe",
        "google/metricx-24-hybrid-large-v2p6:qe",
        "google/metricx-24-hybrid-xl-v2p6",
    ]
    assert all(metric.is_metricx for metric in metrics)
    assert [metric.is_estimate for metric in metrics] == [0, 1, 1, 0, 0, 1, 0]
    assert metrics[5].location == str(model)
    assert not any(metric.is_metricx for metric in parse_metrics(["kiwi", "chrf", "x=/m/x.ckpt"]))
    for name, reason in (("google/metricx-23-xl-v2p0", "reads other"), ("BLEURT-20", "BLEURT is")):
        with pytest.raises(UserError, match=reason):
            parse_metrics([name])
