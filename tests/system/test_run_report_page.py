"""The page of runs in a browser: it fits a phone and a desktop, light and dark."""

from __future__ import annotations

import json
from pathlib import Path

from browser import browser
from finished_run import write_run

from cpo_ds import cli

HOVER = """(() => {
  const svg = document.querySelector("svg[data-x]"), frame = svg.getBoundingClientRect();
  const at = {clientX: frame.left + (348 / 360) * frame.width, clientY: frame.top + 50};
  svg.dispatchEvent(new PointerEvent("pointermove", at));
  return document.querySelector(".hover").innerText;
})()"""


def test_it_fits_and_shows_values_under_the_pointer(tmp_path: Path) -> None:
    runs = [tmp_path / "first", tmp_path / ("a-name-without-a-space-" * 6)]
    for run in runs:
        write_run(run)
        sample = {"step": 3, "language_pair": "", "prompt": "p" * 500, "translation": "t" * 500}
        (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    assert cli.main(["report", *map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    with browser(tmp_path) as page:
        papers = set()
        for width in (390, 1200):
            for scheme in ("light", "dark"):
                page.open(tmp_path / "page.html", width, scheme=scheme)
                assert page.run("document.documentElement.scrollWidth") <= width
                papers.add(page.run("getComputedStyle(document.body).backgroundColor"))
                # Letters of charts are as large as they are drawn, or nearly.
                drawn = "document.querySelector('svg').getBoundingClientRect().width / 360"
                assert 0.9 < page.run(drawn) < 1.4
        assert papers == {"rgb(255, 255, 255)", "rgb(20, 24, 28)"}
        # At the right end of the first chart, both runs' last loss: 1/3 smoothed by nothing.
        shown = page.run(HOVER).splitlines()
        assert "first, step 3: 0.3333" in shown and "first, held out, step 3: 1.25" in shown
