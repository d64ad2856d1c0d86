"""`cpo-ds prepare candidates`: adds translations by one more system to rows of sources.

The translations come from text files, from a model on this machine, or from a server.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cpo_ds.errors import UserError
from cpo_ds.translate.languages import LANGUAGE, add_language_option, all_languages
from cpo_ds.translate.lines import read_sources
from cpo_ds.translate.systems import add_systems, check_name

# Origins of translations, named by the options that ask for them.
FILES, LOCAL_MODEL, SERVER = "--system", "--model", "--server"
_MODELS = (LOCAL_MODEL, SERVER)


@dataclass(frozen=True)
class _Option:
    """An option, the origins of translations that use it, and the least value that it may have."""

    flag: str
    origins: tuple[str, ...]
    help: str
    type: Callable[[str], object] = str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    default: object = None
    at_least: float | None = None
    above: float | None = None

    @property
    def key(self) -> str:
        """The option's attribute in argparse's namespace."""
        return self.flag.removeprefix("--").replace("-", "_")

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Declares the option in a parser or in a group of one."""
        group.add_argument(
            self.flag,
            help=self.help,
            type=self.type,
            metavar=self.metavar,
            choices=self.choices,
            default=self.default,
        )

    def check_origin(self, arguments: argparse.Namespace, origin: str) -> None:
        """Raises `UserError` if the option is given and this origin makes no use of it."""
        is_given = getattr(arguments, self.key) != self.default
        if is_given and origin not in self.origins:
            context = "without --server" if origin == LOCAL_MODEL else f"with {origin}"
            raise UserError(f"{self.flag} has no effect {context}; leave it out.")

    def check_value(self, arguments: argparse.Namespace) -> None:
        """Raises `UserError` if the value is too small."""
        value = getattr(arguments, self.key)
        if value is None:
            return
        if self.at_least is not None and value < self.at_least:
            raise UserError(
                f"{self.flag} is {value:g}; give a number of at least {self.at_least:g}."
            )
        if self.above is not None and value <= self.above:
            raise UserError(f"{self.flag} is {value:g}; give a number above {self.above:g}.")


_RANK_OPTIONS = (
    _Option("--ranks", (LOCAL_MODEL,), "processes on this host (1)", int, default=1, at_least=1),
    _Option("--hostfile", (LOCAL_MODEL,), "hosts and slots, as for training, in place of --ranks"),
)
_MODEL_OPTIONS = (
    _Option("--name", _MODELS, "the system's name in the output (last part of the model's name)"),
    _Option(
        "--prompt",
        _MODELS,
        "the kind of prompt (alma; with --server, gpt4)",
        choices=("alma", "few-shot", "chat", "gpt4"),
    ),
    _Option("--examples", _MODELS, "rows with references, for --prompt few-shot", Path),
    _Option("--shots", _MODELS, "examples before each source (5)", int, at_least=1),
    _Option(
        "--max-new-tokens",
        _MODELS,
        "tokens of a translation (256; with --server, the server's limit)",
        int,
        at_least=1,
    ),
    _Option(
        "--temperature",
        _MODELS,
        "sample at this temperature (no sampling; with --server, the server's)",
        float,
        at_least=0,
    ),
    _Option(
        "--top-p",
        _MODELS,
        "sample from the likeliest tokens of this probability (as --temperature)",
        float,
        above=0,
    ),
    _Option("--seed", _MODELS, "seed of sampling (0; with --server, none)", int),
)
_LOCAL_OPTIONS = (
    _Option("--adapter", (LOCAL_MODEL,), "LoRA adapter of the model", metavar="NAME_OR_PATH"),
    _Option(
        "--dtype",
        (LOCAL_MODEL,),
        "precision of the model (bfloat16)",
        choices=("float32", "bfloat16", "float16"),
    ),
    _Option(
        "--add-bos",
        (LOCAL_MODEL,),
        "beginning-of-sequence token before prompts, as data.add_bos (auto)",
        choices=("auto", "always", "never"),
    ),
    _Option(
        "--chat-template-kwargs",
        (LOCAL_MODEL,),
        "arguments of the chat template, as data.chat_template_kwargs",
        metavar="JSON",
    ),
    _Option("--beams", (LOCAL_MODEL,), "beams of the search (5)", int, at_least=1),
    _Option(
        "--batch-tokens",
        (LOCAL_MODEL,),
        "most tokens of a batch: sentences x beams x (prompt + new) (16384)",
        int,
        at_least=1,
    ),
)
_SERVER_OPTIONS = (
    _Option(
        "--key-variable",
        (SERVER,),
        "environment variable with the key (OPENAI_API_KEY)",
        metavar="NAME",
    ),
    _Option("--concurrency", (SERVER,), "requests at a time (8)", int, at_least=1),
    _Option("--retries", (SERVER,), "retries of a failed request (8)", int, at_least=0),
    _Option(
        "--timeout", (SERVER,), "seconds until a request counts as failed (60)", float, above=0
    ),
)
_OPTIONS = (*_RANK_OPTIONS, *_MODEL_OPTIONS, *_LOCAL_OPTIONS, *_SERVER_OPTIONS)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds prepare candidates`."""
    # Input and output, for translations of any origin.
    add = parser.add_argument
    add(
        "--input", required=True, type=Path, help="rows (jsonl), or plain text, one sentence a line"
    )
    add("--output", required=True, type=Path, help="the same rows with more candidates, jsonl")
    add("--language-pair", metavar="en-de", help="the direction of plain text")
    add("--references", type=Path, help="references of plain text, line by line")

    # One group for each origin. `--system`, `--model` and `--server` say which one it is.
    group = parser.add_argument_group("translations from files")
    group.add_argument(
        "--system",
        action="append",
        dest="systems",
        metavar="NAME=FILE",
        help="a system's translations, line by line; repeat the option for more systems",
    )
    group = parser.add_argument_group("translations by a model, local or on a server")
    group.add_argument(
        "--model", metavar="NAME_OR_PATH", help="a causal LM; with --server, its name there"
    )
    for option in _MODEL_OPTIONS:
        option.add_to(group)
    add_language_option(group)
    group = parser.add_argument_group("a local model")
    for option in _LOCAL_OPTIONS:
        option.add_to(group)
    for option in _RANK_OPTIONS:
        option.add_to(parser)
    group = parser.add_argument_group("an OpenAI-compatible server")
    group.add_argument(
        "--server",
        nargs="?",
        const="",
        metavar="URL",
        help="the server's address ($OPENAI_BASE_URL, or else OpenAI's)",
    )
    for option in _SERVER_OPTIONS:
        option.add_to(group)


def run(arguments: argparse.Namespace) -> int:
    """Writes the rows with the new translations; returns the exit code. Raises `UserError`."""
    origin = _origin(arguments)
    _check(arguments, origin)
    if origin == FILES:
        sources = read_sources(arguments.input, arguments.language_pair, arguments.references)
        add_systems(sources, arguments.systems, arguments.output)
        return 0
    # Imported late: the one needs torch and transformers, the other the package openai.
    if origin == SERVER:
        from cpo_ds.translate.server import translate
    else:
        from cpo_ds.prepare.by_model import translate
    return translate(arguments, _system_name(arguments))


def _origin(arguments: argparse.Namespace) -> str:
    """The origin of the translations that the options ask for. Raises `UserError`."""
    if arguments.systems and (arguments.model or arguments.server is not None):
        raise UserError("give either --system or --model, not both: one source of translations.")
    if arguments.server is not None and not arguments.model:
        raise UserError("--server needs --model, the name of a model that it serves.")
    if arguments.server is not None:
        return SERVER
    if arguments.model:
        return LOCAL_MODEL
    if arguments.systems:
        return FILES
    raise UserError(
        "say where translations come from: --system NAME=FILE, --model NAME_OR_PATH, or --server "
        "URL --model NAME."
    )


def _check(arguments: argparse.Namespace, origin: str) -> None:
    """Raises `UserError` for options without effect, values out of range or a bad `--output`."""
    for option in _OPTIONS:
        option.check_origin(arguments, origin)
    for option in _OPTIONS:
        option.check_value(arguments)
    if arguments.languages and origin == FILES:
        raise UserError(f"{LANGUAGE} has no effect with {FILES}; leave it out.")
    all_languages(arguments)  # refuses malformed ones
    if arguments.top_p is not None and arguments.top_p > 1:
        raise UserError(f"--top-p is {arguments.top_p:g}; give a number up to 1.")
    _check_output(arguments.input, arguments.output)


def _check_output(source: Path, output: Path) -> None:
    """Raises `UserError` if the rows cannot be written to `output`."""
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl, for the next step to read it.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file.")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(
            f"--output {output} is the input; choose another file, so that the same command can be "
            "given again."
        )


def _system_name(arguments: argparse.Namespace) -> str:
    """The system's name in the output: by default the last part of the model's name.

    An adapter's follows after `+`.
    """
    parts = [part for part in (arguments.model, arguments.adapter) if part]
    name = arguments.name or "+".join(Path(part).name for part in parts)
    check_name(name, "--name")
    return name
