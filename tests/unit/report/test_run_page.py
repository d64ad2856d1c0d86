"""The page of runs: whole without a network, for runs of any state, with texts that stay texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_run import write_run
from preference_data import write
from report_page import Page

from cpo_ds import cli
from cpo_ds.report.run_folder import names_of, read_run
from cpo_ds.report.run_page import run_page
from cpo_ds.storage.held_out_file import PairMargin, write_margins
from cpo_ds.storage.lock import hold_folder

NASTY = '</script><script>alert(1)</script><img src="http://x" onerror=x>&amp;'


def checked(text: str) -> Page:
    """A page, after the checks that hold for every page."""
    page = Page(text)
    assert page.tags["script"] == 1 and page.tags["img"] == page.tags["link"] == 0
    assert all(link.startswith("#") for link in page.links) and "@import" not in text
    assert {link[1:] for link in page.links} == set(page.ids)
    return page


def page_of(*runs: Path) -> Page:
    """The page of runs, without the picture that the command draws too."""
    names = names_of(runs)
    text = run_page([read_run(*one) for one in zip(runs, names, strict=True)])
    assert " nan" not in text
    return checked(text)


def write_lines(run: Path, lines: Iterable[Any]) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    write(run / "metrics.jsonl", list(lines))
    return run


def with_pairs(run: Path, data: dict[str, Any], origins: list[tuple[str, str]]) -> Path:
    """A finished run that keeps margins; the first pair gains, the last one loses."""
    write_run(run)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data, "loss": {"name": "cpo"}}))
    for step, factor in ((0, 1), (3, 2)):
        size = len(origins) - 1
        write_margins(
            run,
            [PairMargin(step, *one, factor * (size / 2 - at)) for at, one in enumerate(origins)],
        )
    return run


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "first")
    assert cli.main(["report", str(tmp_path / "first")]) == 0
    page = checked((tmp_path / "first" / "report.html").read_text(encoding="utf-8"))
    assert f"report: {tmp_path}/first/report.html" in capsys.readouterr().out
    assert "Run first" in page.text
    assert "reward accuracy 0.250 → 0.750, reward margin 0.125 → 0.375" in page.text
    assert page.line("en-de")[:4] == ["en-de", "4", "0.250", "0.750"]
    assert page.tags["svg"] == 4  # loss, accuracy, margin, and accuracy by direction


def test_runs_over_each_other(tmp_path: Path) -> None:
    runs = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c" / "run"]
    for number, run in enumerate(runs):
        run.parent.mkdir()
        write_run(run)
        values = {"optim": {"learning_rate": number}, "train": {"epochs": 1}}
        (run / "config.yaml").write_text(yaml.safe_dump(values) + "# ranks: 2\n")
    output = tmp_path / "all.html"
    assert cli.main(["report", *map(str, runs), "--output", str(output)]) == 0
    page = checked(output.read_text(encoding="utf-8"))
    assert "Runs a/run, b/run and c/run" in page.text
    assert page.line("optim.learning_rate") == ["optim.learning_rate", "0", "1", "2"]
    assert (
        "train.epochs\n" not in page.text.partition("Settings in which")[2].partition("a/run:")[0]
    )
    assert page.tags["svg"] == 4 and not (runs[0] / "report.html").exists()


def test_a_run_in_each_state(tmp_path: Path) -> None:
    run = write_lines(tmp_path / "run", [])
    assert "no step is logged so far" in page_of(run).text
    lock = hold_folder(run)
    assert "run is in progress" in page_of(run).text
    lock.close()
    write_lines(run, [{"step": 0, "eval_loss": 2.0}])  # evaluated, and not trained
    assert "On held-out pairs, step 0 → 0: loss 2.000 → 2.000" in page_of(run).text
    write_lines(run, [{"step": 1, "loss": 2.0, "epoch": 0.5}])
    page = page_of(run)
    assert "run is not finished: 1 step logged" in page.text
    assert "No held-out pairs were evaluated" in page.text
    (run / "finished.json").write_text("{}")
    assert "run is finished" in page_of(run).text


@pytest.mark.parametrize("value", [None, "high", [1], {}, True, 10**400])
def test_values_that_are_no_numbers_are_left_out(tmp_path: Path, value: Any) -> None:
    names = ("loss", "reward_accuracy", "step_seconds", "epoch", "grad_norm", "peak_memory_gib")
    training = [{"step": step} | dict.fromkeys(names, value) for step in (1, 2)]
    held_out = [
        {"step": step, "eval_pairs": value, "eval_directions": directions}
        | dict.fromkeys(("eval_loss", "eval_reward_accuracy", "eval_reward_margin"), value)
        for step, directions in ((0, value), (2, {"en-de": {"pairs": value}, "a-b": value}))
    ]
    page_of(write_lines(tmp_path / "run", [*training, *held_out]))


@pytest.mark.parametrize("line", ['{"step": Infinity}', '{"step": "1", "loss": 2}', "[]", "{"])
def test_a_damaged_line_is_named(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_lines(tmp_path / "run", [{"step": 1, "loss": 2.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert cli.main(["report", str(run)]) == 2
    assert f"{run}/metrics.jsonl, line 2" in capsys.readouterr().err


def test_other_damaged_files_are_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    (run / "config.yaml").write_text("a: [1\n# {")
    (run / "samples.jsonl").write_bytes(b'{"step": 1}\nnull\n\xff\n{"step": 2, "tr')
    (run / "held_out_pairs.jsonl").write_text("null\n{}\n")
    (run / "pairs").mkdir()
    (run / "pairs" / "0.arrow").write_bytes(b"no pairs" * 9)
    (run / "logs").mkdir()
    (run / "logs" / "rank_0.txt").write_bytes(b"\xff\x00---\n")
    assert "Lengths of run are not shown" in page_of(run).text


@pytest.mark.parametrize("name", ["folder", "page.txt"])
def test_an_output_that_is_no_page(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    write_run(tmp_path / "run")
    output = str(tmp_path / name)
    assert cli.main(["report", str(tmp_path / "run"), "--output", output]) == 2
    assert "give a name that ends in .html" in capsys.readouterr().err


def test_texts_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write(path, [{"prompt": NASTY, "chosen": f"{NASTY} c", "rejected": f"{NASTY} r"}])
    data = {"format": "pairs", "path": str(path)}
    run = with_pairs(tmp_path / NASTY.replace("/", ""), data, [(f"{path}:1", ""), ("x:1", NASTY)])
    sample = {"language_pair": NASTY, "prompt": NASTY, "translation": NASTY, "chosen": NASTY}
    write(run / "samples.jsonl", [sample | {"step": step, "rejected": NASTY} for step in (0, 3)])
    (run / "logs").mkdir()
    (run / "logs" / "rank_0.txt").write_text(
        f"--- rank 0 on host {NASTY}, process 1, {NASTY}\nread 3 rows, kept 2 pairs\n"
        f"  dropped, {NASTY}: 1\nresumed from x at step 2 of 3\n"
    )
    page = page_of(run)
    assert page.text.count(NASTY) >= 12
    assert page.line(run.name, "1")[-1] == "step 2"


ALMA = {
    "translation": {
        "language_pair": "en-de", "en": "Good day.", "de": "Guten Tag.", "Delta": 0,
        "gpt4_de": "CHOSEN", "alma_de": "REJECTED", "gpt4_en": "x", "alma_en": "y",
        "required_directions": "en-de",
        "gpt4_de_kiwi_xcomet": 0.9, "ref_de_kiwi_xcomet": 0.7, "alma_de_kiwi_xcomet": 0.5,
    }
}  # fmt: skip
PLAIN = {"source": "Good day.", "chosen": "CHOSEN", "rejected": "REJECTED"}
MESSAGES = {
    "prompt": [{"role": "user", "content": "Good day."}],
    "chosen": [{"role": "assistant", "content": "CHOSEN"}],
    "rejected": [{"role": "assistant", "content": "REJECTED"}],
}
TRIPLET = {
    "language_pair": "en-de", "source": "Good day.", "reference": "Guten Tag.",
    "candidates": {"a": "CHOSEN", "b": "REJECTED"},
    "scores": {m: {"reference": 0.5, "a": 0.9, "b": 0.1} for m in ("kiwi", "xcomet")},
}  # fmt: skip


@pytest.mark.parametrize("place", ["path", "eval_path"])
@pytest.mark.parametrize(
    ("data_format", "row", "direction"),
    [
        ("pairs", {"prompt": "Good day.", "chosen": "CHOSEN", "rejected": "REJECTED"}, ""),
        ("pairs", MESSAGES, ""),
        ("alma-r", ALMA, "en-de"),
        ("x-alma", {**PLAIN, "reject": "REJECTED", "directions": "en-de"}, "en-de"),
        ("triplets", TRIPLET, "en-de"),
    ],
)
def test_texts_of_each_format_come_from_the_data(
    tmp_path: Path, data_format: str, row: Any, direction: str, place: str
) -> None:
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    write(path, [row, row])
    write(other, [row])
    paths = {"path": str(path)} if place == "path" else {"path": str(other), "eval_path": str(path)}
    origins = [(f"{path}:{number}", direction) for number in (1, 2)]
    run = with_pairs(tmp_path / "run", {"format": data_format} | paths, origins)
    text = page_of(run).text
    assert text.count("Good day.") == text.count("CHOSEN") == text.count("REJECTED") == 2
    assert "pairs that gained most" in text and "pairs that lost most" in text


def test_several_rejected_texts_are_counted_and_very_many_cut_short(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Good day.", "chosen": "CHOSEN", "rejected": [f"R{n}!" for n in range(count)]}
        for count in (3, 50)
    ]
    path = tmp_path / "rows.jsonl"
    write(path, rows)
    origins = [(f"{path}:{number}", "") for number in (1, 2)]
    text = page_of(
        with_pairs(tmp_path / "run", {"format": "pairs", "path": str(path)}, origins)
    ).text
    assert "rejected, 1 of 3R0!" in text and "rejected, 3 of 3R2!" in text
    assert "rejected, 8 of 50R7!" in text and "R8!" not in text and "and 42 more" in text


def test_the_built_in_sample_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    origins = [(f"sample/en-de.jsonl:{number}", "en-de") for number in (1, 2)]
    text = page_of(with_pairs(tmp_path / "run", {"format": "sample"}, origins)).text
    assert "The city council voted late on Tuesday" in text and "not shown: the" not in text


def test_data_that_is_gone_or_changed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    origins = [(f"{path}:{number}", "") for number in (1, 2)]
    run = with_pairs(tmp_path / "run", {"format": "pairs", "path": str(path)}, origins)
    text = page_of(run).text
    assert "Texts of run are not shown" in text and "does not exist" in text
    assert f"{path}:1" in text  # the pair is named nevertheless
    write(path, [{"prompt": "Good day.", "chosen": "CHOSEN", "rejected": "REJECTED"}])
    text = page_of(run).text
    assert "1 of the pairs are not in the data any more" in text and "CHOSEN" in text


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    names = ("loss", "reward_margin", "grad_norm", "learning_rate", "pairs_per_second")
    lines = [
        {"step": step} | dict.fromkeys(names, step * 7919 % 1000 / 1000)
        for step in range(1, 20_001)
    ]
    run = write_lines(tmp_path / "run", lines)
    text = run_page([read_run(run, "run")])
    assert len(checked(text).text) < len(text) < 150_000


def test_translations_at_the_first_and_the_latest_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    lines = [
        {"step": step, "language_pair": "en-de", "prompt": "Good day.", "translation": text}
        | {"is_whole": step > 0, "reference": "Guten Tag.", "rejected": "Schlechten Tag."}
        for step, text in ((0, "Tag Tag"), (20, "Gute Tag"), (1000, "Guten Tag!"))
    ]
    write(run / "samples.jsonl", lines)
    values = {"eval_loss": 1.0, "eval_sample_chrf": 44.0, "eval_sample_bleu_to_chosen": 3.0}
    write_lines(run, [{"step": step} | values for step in (0, 1000)])
    page = page_of(run)
    shown = page.text.partition("Greedy translations")[2]
    assert "step 0, cut at the limit of tokensTag Tag" in shown and "Gute Tag" not in shown
    assert "step 1,000Guten Tag!" in shown and "reference in the dataGuten Tag." in shown
    assert "chrF of sample translations" in page.text
    assert "against chosen texts, not references" in page.text and page.tags["svg"] == 3
