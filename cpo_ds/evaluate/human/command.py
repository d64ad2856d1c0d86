"""`cpo-ds evaluate human`: draws samples for people to judge, and tallies their judgements."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cpo_ds.data.candidates import REFERENCE, CandidateRow, left_out, read_candidates
from cpo_ds.errors import UserError, did_you_mean
from cpo_ds.storage.files import writing
from cpo_ds.storage.folders import check_replaceable, replacing_folder

PEARMUT, APPRAISE, PAGE = "pearmut.json", "appraise", "page.html"
NO_SPANS = "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the two steps of `cpo-ds evaluate human`, and their options."""
    steps = parser.add_subparsers(title="steps", dest="step", required=True, metavar="STEP")
    about = "draw a blinded sample of translations, as tasks for three tools"
    _add_sample_options(steps.add_parser("sample", help=about, description=f"{about}."))
    about = "tally the judgements of annotators"
    _add_tally_options(steps.add_parser("tally", help=about, description=f"{about}."))


def _add_sample_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", required=True, type=Path, help="rows with candidates, jsonl")
    add("--output", required=True, type=Path, metavar="FOLDER", help="a new folder for the tasks")
    add("--key", type=Path, help="file that says which letter is which system (OUTPUT.key.json)")
    add(
        "--system",
        action="append",
        default=[],
        dest="systems",
        metavar="NAME",
        help="a system to compare, or `reference`; repeat the option (all candidates)",
    )
    add("--segments", type=int, default=400, help="sources to draw, over all directions (400)")
    add("--seed", type=int, default=12345, help="seed of the drawing and the order (12345)")
    add(
        "--protocol",
        choices=("contrastive", "esa"),
        default="contrastive",
        help="all translations of a source side by side, or one at a time (contrastive)",
    )
    add(
        "--spans",
        metavar="METRIC",
        help="fill in the error spans of this metric, or `none` (the one metric that has them)",
    )
    add("--show-reference", action="store_true", help="show annotators the reference")
    add("--annotators", type=int, default=1, help="annotators of each direction (1)")
    add("--shared", type=int, help="sources of each direction that all of them judge (all)")


def _add_tally_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--key", required=True, type=Path, help="the key that `sample` wrote")
    add(
        "--results",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="files saved from the page, Pearmut's annotations, Appraise's scores",
    )
    add("--partial", action="store_true", help="tally what there is of an unfinished evaluation")
    add("--bootstrap", type=int, default=1000, help="samples for confidence intervals (1000)")
    add("--seed", type=int, default=12345, help="seed of these samples (12345)")
    add("--json", type=Path, help="file to write all numbers to")
    add("--markdown", type=Path, help="file to write the tables to")


def run(arguments: argparse.Namespace) -> int:
    """Carries out a step; returns the exit code. Raises `UserError`."""
    return _sample(arguments) if arguments.step == "sample" else _tally(arguments)


def _sample(arguments: argparse.Namespace) -> int:
    """Writes the folder of tasks and the key."""
    # Imported late, as in `_tally`: `--help` needs none of it.
    from cpo_ds.evaluate.human import appraise, page, pearmut, sample

    # Check the options, before anything is read.
    contrastive = arguments.protocol == "contrastive"
    folder, key_path = arguments.output, arguments.key
    key_path = key_path or folder.resolve().with_name(f"{folder.resolve().name}.key.json")
    if min(arguments.segments, arguments.annotators) < 1 or (arguments.shared or 0) < 0:
        raise UserError("--segments and --annotators take numbers above 0, --shared from 0.")
    if folder.resolve() in key_path.resolve().parents:
        raise UserError(f"--key {key_path} is inside --output; annotators must not see it.")
    check_replaceable(folder, (PEARMUT, APPRAISE, PAGE), PEARMUT)

    # Draw.
    rows, skipped = read_candidates(str(arguments.input))
    skipped.pop("empty candidate", None)  # which are judged, too
    systems = sample.choose_systems(rows, arguments.systems)
    spans = _spans_metric(rows, arguments.spans)
    options = sample.Options(arguments.segments, arguments.seed, spans, arguments.show_reference)
    if arguments.show_reference and REFERENCE in systems:
        raise UserError("--show-reference would show the answer for --system reference; drop one.")
    drawn = sample.draw(rows, systems, options)
    _check_key(key_path, drawn.id)

    # Write the key, then the folder, each whole or not at all.
    _write_json(key_path, sample.key_of(drawn, options, contrastive=contrastive))
    plan = {"annotators": arguments.annotators, "shared": arguments.shared}
    files = appraise.files(drawn, annotators=arguments.annotators)
    with replacing_folder(folder) as unfinished:
        _write_json(unfinished / PEARMUT, pearmut.campaigns(drawn, contrastive=contrastive, **plan))
        for name, content in files.items():
            _write_json(unfinished / APPRAISE / name, content)
        with writing(unfinished / PAGE) as file:
            file.write_text(page.render(drawn, contrastive=contrastive, **plan), encoding="utf-8")

    # Say what was drawn.
    counts = ", ".join(f"{name}: {len(items)}" for name, items in drawn.by_direction.items())
    print(f"drew {len(drawn.items)} of {len(rows)} sources ({counts}) of {', '.join(systems)}")
    print(f"  errors marked beforehand: {f'by {spans}' if spans else 'none'}")
    print("\n".join(left_out(skipped + drawn.left_out)) or "  left out: none")
    print(f"written to {folder}: {PAGE}, {PEARMUT}, {APPRAISE}")
    print(f"written to {key_path}: the key; keep it from the annotators")
    return 0


def _check_key(path: Path, sample_id: str) -> None:
    """Raises `UserError` if the file is there and is not the key of the same sample.

    Without its key, an evaluation that people work on would be lost.
    """
    from cpo_ds.evaluate.human.results import read_key

    if path.exists() and read_key(path).sample != sample_id:
        raise UserError(
            f"{path} is the key of another sample, whose results need it; give another --output or "
            "--key, or remove the file if nobody judges that sample."
        )


def _spans_metric(rows: list[CandidateRow], given: str | None) -> str | None:
    """The metric whose error spans are filled in; None for none. Raises `UserError`."""
    fields = [row.values.get("error_spans") for row in rows]
    known = sorted({name for field in fields if isinstance(field, dict) for name in field})
    if given == NO_SPANS or (given is None and not known):
        return None
    if given is None and len(known) > 1:
        raise UserError(
            f"rows have error spans by {' and '.join(known)}; choose one by --spans, or `none`."
        )
    if given is not None and given not in known:
        raise UserError(
            f"--spans {given}: no row has such error spans{did_you_mean(given, known)} (known: "
            f"{', '.join(known) or 'none'}); make them by `cpo-ds prepare score --spans`."
        )
    return given or known[0]


def _tally(arguments: argparse.Namespace) -> int:
    """Prints the tally, and writes it to files."""
    from cpo_ds.evaluate.human.judgements import complete_groups
    from cpo_ds.evaluate.human.results import read_key, read_results
    from cpo_ds.evaluate.human.tables import as_markdown, as_text
    from cpo_ds.evaluate.human.tally import tally

    if arguments.bootstrap < 1 or arguments.seed < 0:
        raise UserError("--bootstrap takes a number above 0, --seed one from 0.")
    key = read_key(arguments.key)
    groups, missing = complete_groups(read_results(arguments.results, key), key)
    if missing and not (arguments.partial and groups):
        raise UserError(
            f"the evaluation is not complete: {'; '.join(missing)}. Have it finished and give all "
            "files of results, or tally complete items alone by --partial."
        )
    numbers = tally(groups, key, samples=arguments.bootstrap, seed=arguments.seed)
    numbers["missing"] = missing

    # Write the files, then print.
    if arguments.json:
        _write_json(arguments.json, numbers)
    if arguments.markdown:
        with writing(arguments.markdown) as unfinished:
            unfinished.write_text(as_markdown(numbers), encoding="utf-8")
    print(as_text(numbers))
    return 0


def _write_json(path: Path, content: Any) -> None:
    with writing(path) as unfinished:
        text = json.dumps(content, ensure_ascii=False, indent=1)
        unfinished.write_text(text + "\n", encoding="utf-8")
