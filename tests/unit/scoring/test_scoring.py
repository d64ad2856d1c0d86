"""What scoring is made of: batches, kept results, rows, names, checkpoints, chrF and BLEU."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
import workers
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from cpo_ds import cli
from cpo_ds.data.candidates import read_candidates
from cpo_ds.errors import UserError
from cpo_ds.scoring.checkpoint import check_complete, find_checkpoint, read_weights
from cpo_ds.scoring.metrics import Metric, parse_metrics
from cpo_ds.scoring.plan import Item, joint_batches, separate_batches, share
from cpo_ds.scoring.spans import closed_runs
from cpo_ds.storage.results import Parts, content_key

TEXTS = st.text("ab c", min_size=1, max_size=12)
ITEMS = st.lists(st.builds(Item, TEXTS, TEXTS, st.just(None), st.just("en-de")), unique=True)


def cost(batch: list[Item], cut: Any) -> int:
    """Tokens of a batch, padding included, a token being a character."""
    if cut is joint_batches:
        return len(batch) * max(sum(map(len, item.texts)) for item in batch)
    texts = {text for item in batch for text in item.texts}
    return len(texts) * max(map(len, texts))


@pytest.mark.parametrize("cut", [joint_batches, separate_batches])
@given(items=ITEMS, seed=st.randoms(), budget=st.integers(1, 80))
def test_batches_hold_everything_once_within_the_budget(
    cut: Any, items: list[Item], seed: Any, budget: int
) -> None:
    batches = cut(items, len, budget)
    assert Counter(item for batch in batches for item in batch) == Counter(items)
    assert all(cost(batch, cut) <= budget or len(batch) == 1 for batch in batches)
    shuffled = list(items)
    seed.shuffle(shuffled)
    assert cut(shuffled, len, budget) == batches


def test_longest_batches_come_first_and_sources_stay_together() -> None:
    items = [Item("x" * n, "y" * n, None, "en-de") for n in (1, 9, 4, 9)]
    items[3] = Item("z" * 9, "y" * 9, None, "en-de")
    batches = joint_batches(items, len, 20)
    assert [[len(item.source) for item in batch] for batch in batches] == [[9], [9], [4, 1]]
    shared = [Item(source, text, None, "en-de") for text in ("a", "b") for source in ("s", "t")]
    batches = separate_batches(shared, len, 3)
    assert [{item.source for item in batch} for batch in batches] == [{"s"}, {"t"}]


@given(count=st.integers(0, 20), world_size=st.integers(1, 5))
def test_ranks_share_all_batches_in_equally_many_steps(count: int, world_size: int) -> None:
    batches = [[Item(str(n), "", None, "")] for n in range(count)]
    shares = [share(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(own) for own in shares}) == 1
    kept = [batch for own in shares for batch in own if batch is not None]
    assert sorted(kept, key=str) == sorted(batches, key=str)
    assert max(sum(b is None for b in own) for own in shares) <= 1


def test_a_key_changes_with_every_content() -> None:
    keys = {content_key("a", "b", None), content_key("ab", "", None), content_key("a", "b", "")}
    keys |= {content_key("b", "a", None), Item("a", "b", None, "en-de").key}
    assert len(keys) == 5 and all(len(key) == 32 for key in keys)


@given(labels=st.lists(st.integers(0, 3)))
def test_spans_are_runs_of_errors_that_end(labels: list[int]) -> None:
    """Beside the loop over tokens that COMET makes."""
    expected, open_since = [], None
    for place, label in enumerate(labels):
        if label and open_since is None:
            open_since = place
        if not label and open_since is not None:
            expected.append((open_since, place))
            open_since = None
    assert closed_runs(labels) == expected


@given(cut=st.integers(0, 200), torn=st.booleans())
@settings(max_examples=40, deadline=None)
def test_parts_survive_a_line_that_was_cut_off(
    tmp_path_factory: pytest.TempPathFactory, cut: int, torn: bool
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    first, second = Parts(folder, "metric", 0), Parts(folder, "metric", 1)
    first.add({"a": [1.0], "b": [2.5]})
    second.add({"c": [0.1, [{"text": "ü\u2028"}]]})
    file = folder / "metric.0.jsonl"
    if torn:
        file.write_bytes(file.read_bytes()[:cut])
    expected = {"c": [0.1, [{"text": "ü\u2028"}]]}
    whole = not torn or cut >= len('\n{"a": [1.0], "b": [2.5]}')
    assert first.read() == expected | ({"a": [1.0], "b": [2.5]} if whole else {})
    Parts(folder, "metric", 0).add({"d": [4.0]})
    assert second.read()["d"] == [4.0] and second.read()["c"] == expected["c"]
    assert Parts(folder, "other").read() == {}


def test_parts_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="what is finished is kept"):
        Parts(tmp_path / "file" / "x", "metric").add({"a": 1})


# Rows.

ROW = {"language_pair": "en-de", "source": "s", "reference": "r", "candidates": {"a": "x"}}


def rows_file(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_blank_texts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = rows_file(
        tmp_path,
        ROW | {"id": 7},
        ROW | {"source": " "},
        ROW | {"reference": "", "candidates": {"a": "\t", "b": None, "c": "y"}},
        {"language_pair": "en-de", "source": "s"},
    )
    with path.open("a") as file:
        file.write("\n")
    rows, skipped = read_candidates(str(path))
    assert [row.translations for row in rows] == [{"reference": "r", "a": "x"}, {"c": "y"}, {}]
    assert rows[0].values["id"] == 7
    assert skipped == {
        "empty source": 1, "empty reference": 1, "empty candidate": 1, "blank line": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, said",
    [
        (ROW | {"language_pair": "en-xx"}, "line 1: field language_pair has an unknown direction"),
        (ROW | {"source": 3}, "line 1: field source is not a string"),
        (ROW | {"candidates": {"a": 3}}, "line 1: field candidates.a is not a string"),
        (ROW | {"candidates": {"reference": "x"}}, "the name that the row's reference goes by"),
        (ROW | {"candidates": ["x"]}, "line 1: field candidates is not an object"),
        ({"source": "s"}, "line 1: field language_pair is missing"),
        (ROW | {"source": ""}, "has no row with a source"),
    ],
)
def test_rows_that_are_not_as_they_should_are_refused(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_candidates(str(rows_file(tmp_path, row)))


# Metrics and checkpoints.


def test_metrics_by_name() -> None:
    metrics = parse_metrics(["kiwi", "x=/m/x.ckpt", "BLEU", "Unbabel/XCOMET-XL", "XCOMET-XXL"])
    assert [(m.name, m.model) for m in metrics] == [
        ("kiwi", "Unbabel/wmt23-cometkiwi-da-xxl"),
        ("x", "/m/x.ckpt"),
        ("BLEU", "bleu"),
        ("Unbabel/XCOMET-XL", "Unbabel/XCOMET-XL"),
        ("XCOMET-XXL", "Unbabel/XCOMET-XXL"),
    ]
    assert [m.is_lexical for m in metrics] == [False, False, True, False, False]
    for wrong in (["kiwi", "kiwi"], ["=x"], ["x="]):
        with pytest.raises(UserError, match="--metric"):
            parse_metrics(wrong)


def save_checkpoint(folder: Path, weight: float = 1.0) -> Path:
    path = folder / "checkpoints" / "model.ckpt"
    path.parent.mkdir(parents=True)
    weights = {"linear.weight": torch.full((300, 300), weight)}
    torch.save({"state_dict": weights, "hyper_parameters": {}}, path)
    (folder / "hparams.yaml").write_text("class_identifier: unified_metric\n")
    return path


def test_a_checkpoint_is_known_by_what_it_holds(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path / str(n), float(n == 2)) for n in range(3)]
    found = [find_checkpoint(Metric("x", str(path))) for path in paths]
    by_folder = find_checkpoint(Metric("x", str(tmp_path / "0")))
    assert by_folder == found[0] and by_folder.kind == "unified_metric"
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint
    weights = read_weights(found[2])
    assert weights["linear.weight"][0, 0] == 1


def test_checkpoints_that_are_not_whole_are_said(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "m")
    checkpoint = find_checkpoint(Metric("x", str(path)))
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(300, 300)})
    with pytest.raises(UserError, match="lacks the weight linear"):
        check_complete(model, read_weights(checkpoint), path)
    small = torch.nn.ModuleDict({"linear": torch.nn.Linear(3, 3)})
    with pytest.raises(UserError, match="has linear"):
        check_complete(small, read_weights(checkpoint), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(checkpoint)
    (tmp_path / "m" / "hparams.yaml").unlink()
    with pytest.raises(UserError, match=r"there is no .*hparams.yaml"):
        find_checkpoint(Metric("x", str(path)))
    for nowhere in (str(tmp_path / "gone"), "./gone/model.ckpt", str(tmp_path)):
        with pytest.raises(UserError, match="there is no checkpoint"):
            find_checkpoint(Metric("x", nowhere))


class Hub(http.server.BaseHTTPRequestHandler):
    """What the Hugging Face hub answers for a gated model, and for one that is not there."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_gated_missing_and_unreachable_models_are_said(hub: str, tmp_path: Path) -> None:
    code = (
        "from cpo_ds.scoring.checkpoint import *\n"
        "for name in ('some/gated', 'some/missing'):\n"
        "    try: find_checkpoint(Metric('m', name))\n"
        "    except UserError as error: print(error)\n"
    )

    def found(**more: str) -> list[str]:
        environment = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        run = subprocess.run(
            [sys.executable, "-c", code], env=launch.ENVIRONMENT | environment,
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    gated, missing = found(HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert "some/gated is gated: accept its licence" in gated and "hf auth login" in gated
    assert "there is no model some/missing on the Hugging Face hub" in missing
    for line in found(HF_HUB_OFFLINE="1"):
        assert "the Hugging Face hub cannot be reached" in line


# The command, with metrics that need no model.


def score_lexical(folder: Path, *options: object, ranks: int = 1) -> list[launch.Finished]:
    arguments = ["prepare", "score", "--input", folder / "rows.jsonl", "--output"]
    arguments += [folder / "scored.jsonl", *options]
    return launch.on_ranks(workers.cpo_ds_command, [str(a) for a in arguments], ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 3])
def test_chrf_and_bleu_are_those_of_sacrebleu(tmp_path: Path, ranks: int) -> None:
    rows = [
        ROW | {"reference": "the cat sat on the mat", "candidates": {"a": "the cat sat on a mat",
               "b": "a dog"}, "scores": {"kiwi": {"a": 0.5}}, "scorers": {"kiwi": {}}},
        ROW | {"language_pair": "en-zh", "reference": "猫坐在垫子上。", "candidates": {
               "a": "猫坐在地上。"}},
        {"language_pair": "en-de", "source": "s", "candidates": {"a": "no reference here"}},
    ]  # fmt: skip
    rows_file(tmp_path, *rows)
    done = score_lexical(tmp_path, "--metric", "chrf", "--metric", "bleu", ranks=ranks)
    assert [one.code for one in done] == [0] * ranks, done[0].output
    assert "left out, chrf: no reference: 1" in done[0].output
    assert "chrf: likeness to one reference, not a quality estimate" in done[0].output
    first, second, third = map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())
    for name, metric in (("chrf", CHRF()), ("bleu", BLEU(effective_order=True))):
        expected = {
            key: metric.sentence_score(text, [first["reference"]]).score
            for key, text in ({"reference": first["reference"]} | first["candidates"]).items()
        }
        assert first["scores"][name] == pytest.approx(expected, abs=1e-12)
        assert first["scorers"][name]["uses_reference"] is True
        assert "not a quality estimate" in first["scorers"][name]["note"]
    assert first["scores"]["kiwi"] == {"a": 0.5}, "scores that were there stay"
    chinese = BLEU(effective_order=True, tokenize="zh").sentence_score(
        "猫坐在地上。", ["猫坐在垫子上。"]
    )
    assert second["scores"]["bleu"]["a"] == pytest.approx(chinese.score, abs=1e-12)
    assert third["scores"] == {"chrf": {}, "bleu": {}}


@pytest.mark.parametrize(
    "rows, options, said",
    [
        ([ROW | {"reference": ""}], ["--metric", "chrf"], "compares with a reference, and no row"),
        ([ROW], ["--metric", "chrf", "--metric", "chrf"], "--metric chrf is given twice"),
        ([ROW], ["--metric", "x=/no/model.ckpt"], "there is no checkpoint /no/model.ckpt"),
        ([ROW], ["--metric", "chrf", "--batch-tokens", 0], "numbers above 0"),
    ],
)
def test_what_cannot_be_scored_is_said_once(
    tmp_path: Path, rows: Any, options: list[object], said: str
) -> None:
    rows_file(tmp_path, *rows)
    (done,) = score_lexical(tmp_path, *options)
    assert done.code == 2, done.output
    assert done.output.count("cpo_ds: error: ") == 1 and said in done.output
    assert "Traceback" not in done.output and not (tmp_path / "scored.jsonl").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--hostfile", "/no/hosts"], "--hostfile /no/hosts is not there"),
        (["--ranks", "999"], "--ranks 999 is too many for this host"),
        (["--ranks", "2", "--hostfile", "/no/hosts"], "--ranks or --hostfile, not both"),
        (["--input", "/no/rows.jsonl"], "--input /no/rows.jsonl is not there"),
    ],
)
def test_no_rank_is_started_for_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    files = ["--input", str(rows_file(tmp_path, ROW)), "--output", str(tmp_path / "x.jsonl")]
    assert cli.main(["prepare", "score", *files, "--metric", "chrf", *options]) == 2
    assert said in capsys.readouterr().err


def test_where_comets_environment_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPO_DS_COMET_PYTHON", str(tmp_path / "python"))
    files = ["--input", str(rows_file(tmp_path, ROW)), "--output", str(tmp_path / "x.jsonl")]
    assert cli.main(["prepare", "score", *files, "--metric", "kiwi"]) == 2
    assert "scripts/setup.sh --comet" in capsys.readouterr().err


# Split over ranks.


def test_a_split_encoder_gives_the_same_and_each_rank_holds_its_half(tmp_path: Path) -> None:
    done = launch.on_ranks(workers.split_encoder, [str(tmp_path)], ranks=2)
    assert [one.code for one in done] == [0, 0], done[0].output + done[1].output
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        whole = seen["whole_bytes"]
        assert whole > 150e6 and seen["equal"]
        assert seen["held_bytes"] == pytest.approx(whole / 2, rel=1e-3)
        # While loading and computing: its half, and a layer or two.
        assert 0.45 * whole < seen["grown_bytes"] < 0.8 * whole, seen["grown_bytes"] / whole
