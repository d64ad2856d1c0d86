"""The page of `cpo-ds evaluate human`, filled in by headless Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from human_rows import SCRIPT, evaluate_human, rows_of, sample, tally

BEGIN = (
    "byId('annotator').value = {!r}; byId('direction').value = {!r}; byId('start').requestSubmit()"
)
NOTICE = "byId('notice').textContent"
MARKED = "[...document.querySelectorAll('.target .{}')].map(e => e.textContent).join('')"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path) as started:
        started.save_downloads(tmp_path)
        yield started


def saved(folder: Path) -> Path:
    """The file that the page saved."""
    for _ in range(100):
        if files := list(folder.glob("judgements-*.json")):
            return files[0]
        time.sleep(0.1)
    raise AssertionError("nothing was saved")


def score_by_keys(page: Browser, key: Any) -> int:
    """Judges every task by keys alone, `ours` 80 and `base` 30; returns the number of tasks."""
    tasks = 0
    while not page.run("byId('task').hidden"):
        item, letters = page.run(
            "[unitsOf(work)[work.position].item, unitsOf(work)[work.position].letters]"
        )
        for number, letter in enumerate(letters, start=1):
            page.run("document.activeElement.blur()")
            page.press(str(number), "Tab", "Tab")
            page.press(*("80" if key["items"][item]["systems"][letter] == "ours" else "30"))
        page.press("Enter", ctrl=True)
        tasks += 1
    return tasks


def test_the_page_is_judged_by_keys_saved_and_tallied(tmp_path: Path, page: Browser) -> None:
    key = sample(tmp_path, rows_of("en-de", 4) + rows_of("en-he", 2))
    page.open(tmp_path / "tasks" / "page.html")
    assert page.run("[...byId('direction').options].map(o => o.text)") == [
        "English to German", "English to Hebrew",
    ]  # fmt: skip
    page.run(BEGIN.format("Ann O'Tator", "en-de"))

    # Texts are shown as they are, and the metric's error on its characters, behind an emoji.
    assert (
        SCRIPT in page.run("byId('source').textContent") and page.run("document.title") != "broken"
    )
    assert page.run(MARKED.format("major")) == "bad"

    # No task is left without scores.
    page.press("n")
    assert "Translation 1 has no score" in page.run(NOTICE)
    page.press(*"101")
    page.press("Enter", ctrl=True)
    assert "Translation 1 has no score" in page.run(NOTICE)
    page.run("document.activeElement.value = ''")

    # A mark from the first to the third word; chosen again it is major, then removed.
    page.run("document.activeElement.blur()")
    number = 1 + page.run("unitsOf(work)[0].letters").index(
        next(
            k
            for k, v in key["items"][page.run("unitsOf(work)[0].item")]["systems"].items()
            if v == "ours"
        )
    )
    page.press(str(number), "Enter", "ArrowRight", "Enter")
    assert page.run(MARKED.format("minor")) == "Good text"
    page.press("Enter")
    assert page.run(MARKED.format("major")).replace("bad", "") == "Good text"
    page.press("Enter")
    assert page.run(MARKED.format("major")) == "bad"
    page.press("m")  # something is missing

    # Progress survives closing the page; the rest is judged, saved and tallied.
    assert score_by_keys(page, key) == 4
    page.open(tmp_path / "tasks" / "page.html")
    page.run(BEGIN.format("Ann O'Tator", "en-de"))
    assert page.run("byId('count').textContent") == "4 of 4 done"
    page.press("s")
    path = saved(tmp_path)
    assert json.loads(path.read_text())["complete"] is True
    numbers = tally(tmp_path, path, options=("--partial",))  # en-he is not judged
    ours, base = numbers["results"]
    assert (ours["system"], ours["score"]["mean"], ours["rank"]["mean"]) == ("ours", 80, 1)
    assert (base["score"]["mean"], base["win_ratio"]["mean"], base["major"]["mean"]) == (30, 0, 1)
    assert ours["minor"]["mean"] == pytest.approx(1 / 4)
    assert numbers["missing"] == [
        f"judged by nobody: 2 of 6 items (the first: {key['sample']}-0005)"
    ]


def test_on_a_phone_the_page_fits_and_a_saved_file_is_taken_up(
    tmp_path: Path, page: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    key = sample(tmp_path, rows_of("en-he", 2), "--protocol", "esa", "--show-reference")
    page.open(tmp_path / "tasks" / "page.html", 390, scheme="dark")
    assert page.run("byId('directions').hidden && byId('parts').hidden")
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.run(BEGIN.format("a", "en-he"))
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.querySelectorAll('article').length") == 1
    assert page.run("byId('reference').textContent").startswith("Reference")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"

    # Touch: a slider alone is a score.
    page.run("const r = document.querySelector('[type=range]'); r.value = 70; r.oninput()")
    assert page.run("document.querySelector('[type=number]').value") == "70"
    page.run("byId('next').click(); byId('save').click()")
    path = saved(tmp_path)
    assert evaluate_human(
        "tally", "--key", tmp_path / "tasks.key.json", "--results", path
    ) == 2  # fmt: skip
    assert "the evaluation is not complete: judged in part: 1 (the first" in capsys.readouterr().err

    # Another device goes on from the file.
    page.run("localStorage.clear()")
    page.open(tmp_path / "tasks" / "page.html", 390)
    page.run(f"goOnFrom(new File([{json.dumps(path.read_text())}], 'saved.json'))")
    assert page.run("byId('count').textContent") == "Task 2 of 4, 1 done"
    assert score_by_keys(page, key) == 3
