"""Options of `cpo-ds prepare ...`. Imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def add_prepare(commands: Any) -> None:
    """Adds `prepare` and its commands to `cpo-ds`."""
    about = "from sources to preference triplets"
    prepare = commands.add_parser("prepare", help=about, description=f"{about}.")
    steps = prepare.add_subparsers(title="steps, in order", required=True, metavar="STEP")
    for add in (_add_candidates, _add_score, _add_select, _add_noise, _add_report):
        add(steps)


def _step(steps: Any, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    step = steps.add_parser(name, help=about, description=f"{about}.", allow_abbrev=False)
    step.set_defaults(run_command=run)
    return step


def _add_ranks(step: argparse.ArgumentParser) -> None:
    step.add_argument("--ranks", type=int, default=1, help="processes on this host (1)")
    step.add_argument("--hostfile", help="hosts and slots, as for training, in place of --ranks")


def _add_candidates(steps: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.prepare.candidates import run

        return run(arguments)

    step = _step(steps, "candidates", "translate sources, or read translations of systems", run)
    add = step.add_argument
    add("--input", required=True, type=Path, help="rows (jsonl), or plain text, a sentence a line")
    add("--output", required=True, type=Path, help="the same rows with more candidates, jsonl")
    add("--language-pair", metavar="en-de", help="of plain text")
    add("--references", type=Path, help="of plain text, line by line")
    add = step.add_argument_group("translations from files").add_argument
    add("--system", action="append", dest="systems", metavar="NAME=FILE",
        help="plain text, line by line. Give it several times for several")  # fmt: skip
    add = step.add_argument_group("translations by a model, here or on a server").add_argument
    add("--model", metavar="NAME_OR_PATH", help="a causal LM; with --server, its name there")
    add("--name", help="of the system in the output (last part of the model's name)")
    add("--prompt", choices=("alma", "few-shot", "chat", "gpt4"),
        help="what it is asked (alma; with --server, gpt4)")  # fmt: skip
    add("--examples", type=Path, help="rows with references, for --prompt few-shot")
    add("--shots", type=int, help="examples before each source (5)")
    add("--max-new-tokens", type=int, help="of a translation (256; with --server, its own limit)")
    add("--temperature", type=float, help="sample at this temperature (no sampling; server's own)")
    add("--top-p", type=float, help="sample from the likeliest tokens (no sampling; server's own)")
    add("--seed", type=int, help="of sampling (0; with --server, none)")
    add = step.add_argument_group("a model here").add_argument
    add("--adapter", metavar="NAME_OR_PATH", help="LoRA adapter of the model")
    add("--dtype", choices=DTYPES, help="of the model (bfloat16)")
    add("--beams", type=int, help="beam search (5)")
    add("--batch-tokens", type=int,
        help="sentences x beams x (prompt and new tokens) of a batch (16384)")  # fmt: skip
    _add_ranks(step)
    add = step.add_argument_group("an OpenAI-compatible server").add_argument
    add("--server", nargs="?", const="", metavar="URL",
        help="its address ($OPENAI_BASE_URL, or else OpenAI's)")  # fmt: skip
    add("--key-variable", metavar="NAME", help="environment variable of the key (OPENAI_API_KEY)")
    add("--concurrency", type=int, help="requests at a time (8)")
    add("--retries", type=int, help="of a request that fails (8)")
    add("--timeout", type=float, help="seconds until a request counts as failed (60)")


def _add_score(steps: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.prepare.score import run

        return run(arguments)

    step = _step(steps, "score", "score candidates by COMET models, chrF or BLEU", run)
    step.add_argument("--input", required=True, type=Path, help="rows with candidates, jsonl")
    step.add_argument("--output", required=True, type=Path, help="the same rows with scores")
    step.add_argument(
        "--metric",
        required=True,
        action="append",
        dest="metrics",
        metavar="NAME_OR_CHECKPOINT",
        help="kiwi, xcomet, kiwi-22, comet-22, chrf, bleu, a Hugging Face name, or a checkpoint "
        "file or folder; NAME=CHECKPOINT names it in the output. Give it several times for several",
    )
    step.add_argument(
        "--shard", action="store_true", help="split each COMET model over the ranks (ZeRO-3)"
    )
    step.add_argument("--dtype", choices=DTYPES, default="float32", help="of COMET (float32)")
    step.add_argument(
        "--use-reference",
        action="store_true",
        help="show the reference to metrics that work with and without one, like XCOMET",
    )
    step.add_argument("--spans", action="store_true", help="keep XCOMET's error spans")
    step.add_argument(
        "--batch-tokens", type=int, default=4096, help="tokens of a batch, padding included (4096)"
    )
    step.add_argument("--cache", type=Path, help="folder of scores already made (OUTPUT.cache)")
    _add_ranks(step)


def _add_select(steps: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.prepare.select import run

        return run(arguments)

    step = _step(steps, "select", "pick chosen and rejected by the scores", run)
    add = step.add_argument
    add("--input", required=True, type=Path, help="rows with scores, jsonl")
    add("--output", required=True, type=Path, metavar="FOLDER", help="new, or of an earlier select")
    add("--metrics", metavar="kiwi+xcomet",
        help="to average (kiwi+xcomet, the XXL models; else those that all rows have)")  # fmt: skip
    add("--pairs", choices=("best-worst", "best-each"), default="best-worst",
        help="the best against the worst, or against each other one (best-worst)")  # fmt: skip
    add("--min-margin", type=float, default=0.0, metavar="SCORE",
        help="drop pairs whose mean scores are closer (0)")  # fmt: skip
    add("--directions", metavar="en-de,de-en", help="directions to keep (all)")
    add("--check-language", nargs="?", type=float, const=0.7, metavar="CONFIDENCE",
        help="drop pairs with a text in another language, or a copy of the source; how sure "
        "py3langid must be (0.7)")  # fmt: skip
    add("--max-length-ratio", type=float, metavar="TIMES",
        help="drop pairs with a text so many times longer or shorter than is usual")  # fmt: skip
    add("--prompt-style", choices=("alma", "chat"), default="alma",
        help="prompts as text, or as a user's turn for a chat template (alma)")  # fmt: skip


def _add_noise(steps: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.prepare.noise import run

        return run(arguments)

    step = _step(steps, "noise", "replace rejected by a noised copy of chosen", run)
    add = step.add_argument
    add("--input", required=True, type=Path, help="pairs, as select writes them")
    add("--output", required=True, type=Path, help="the same pairs with noise, jsonl")
    add("--deletion", type=float, default=0.15, help="probability of deleting a word (0.15)")
    add("--swap", type=float, default=0.3, help="probability of swapping a word (0.3)")
    add("--range", type=int, default=1, help="how many places a swap moves a word at most (1)")
    add("--seed", type=int, default=42, help="of the draws (42)")


def _add_report(steps: Any) -> None:
    def run(arguments: argparse.Namespace) -> int:
        from cpo_ds.prepare.report import run

        return run(arguments)

    step = _step(steps, "report", "analyse scores and choices in one HTML file", run)
    step.add_argument("--input", required=True, type=Path, help="rows with scores, jsonl")
    step.add_argument("--output", required=True, type=Path, help="the page to write, HTML")
    step.add_argument(
        "--metrics",
        metavar="kiwi+xcomet",
        help="choose by the mean of these (all that do not compare with the reference)",
    )
