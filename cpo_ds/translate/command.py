"""`cpo-ds translate`: translates rows, text or a test set by a model on this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cpo_ds.data.prompts import with_names
from cpo_ds.errors import UserError
from cpo_ds.ranks.relaunch import as_one_of_ranks, become_ranks, is_rank
from cpo_ds.scoring.metrics import LEXICAL, model_of
from cpo_ds.translate.by_model import RowsByModel
from cpo_ds.translate.decoding import Decoding
from cpo_ds.translate.generate import translate_on_ranks
from cpo_ds.translate.inputs import PAIR, read_input
from cpo_ds.translate.languages import LANGUAGE, add_language_option, language_names
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.model_choice import ModelChoice, choose_model
from cpo_ds.translate.prompting import prompt_maker
from cpo_ds.translate.prompts_of_rows import REFUSE, SERVE, SPLIT
from cpo_ds.translate.record import Request
from cpo_ds.translate.rerank import MBR
from cpo_ds.translate.systems import check_name
from cpo_ds.translate.test_sets import FLORES_WARNING
from cpo_ds.translate.tokens import PromptSettings, prompt_settings

if TYPE_CHECKING:
    import torch

    from cpo_ds.ranks.ranks import Ranks

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")
_LEAST = {
    "beam": 1, "max_new_tokens": 1, "samples": 1, "top_k": 0, "min_p": 0, "max_prompt_tokens": 1,
    "batch_tokens": 1, "shots": 1, "ranks": 1,
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `cpo-ds translate`."""
    add = parser.add_argument_group("model").add_argument
    add("--model", required=True, metavar="NAME_OR_PATH", help="a base, adapter, export or run")
    add("--adapter", metavar="NAME_OR_PATH", help="adapter of the base")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(bfloat16; on a CPU, float32)")
    add("--ranks", type=int, default=1, help="processes on this host (1)")
    add("--hostfile", help="hosts and slots, as for training, in place of --ranks")
    add("--shard", action="store_true", help="split the model over the ranks (ZeRO-3)")
    add("--batch-tokens", type=int, help="most tokens of a batch (16384; with --vllm, 2**20)")
    add("--vllm", action="store_true", help="by vLLM: greedy or samples, on one process")

    add = parser.add_argument_group("input and output").add_argument
    add("--input", type=Path, help="rows (jsonl), plain text, or a folder of ALMA's layout")
    add("--text", help="a sentence; its translation is printed")
    add("--test-set", metavar="SET:DIRECTION", help="like wmt22:en-de, wmt24pp:en-de_DE, ntrex:...")
    add(PAIR, "--language-pair", dest="language_pair", metavar="de-en", help="direction of text")
    add("--references", type=Path, help="references of plain text, line by line")
    add("--output", type=Path, help="the same rows with the translations, jsonl")
    add("--name", help="the system's name in the output (last part of the model's name)")

    group = parser.add_argument_group("prompts and cleaning")
    add = group.add_argument
    add("--prompt", choices=("alma", "few-shot", "chat", "gpt4"), help="(the run's, else alma)")
    add("--examples", type=Path, help="rows with references, for --prompt few-shot")
    add("--shots", type=int, help="examples before each source (5)")
    add_language_option(group)
    add("--add-bos", choices=("auto", "always", "never"), help="as data.add_bos (the run's)")
    add("--chat-template-kwargs", metavar="JSON", help="arguments of the chat template (the run's)")
    add("--max-prompt-tokens", type=int, default=256, help="longer ones are long sources (256)")
    add("--long", choices=(REFUSE, SPLIT, SERVE), default=SERVE, help="long sources (serve)")
    add("--cleaning", choices=("alma", "full"), help="(alma; with --prompt chat or gpt4, full)")

    add = parser.add_argument_group("decoding").add_argument
    add("--beam", "--beams", type=int, help="beams of the search; 1: greedy (5)")
    add("--max-new-tokens", type=int, default=256, help="most tokens of a translation (256)")
    add("--samples", type=int, metavar="N", help="sample N translations of each source")
    add("--temperature", type=float, help="of sampling (the model's own, else 1)")
    add("--top-k", type=int, help="sample from the K likeliest tokens (own, else all)")
    add("--top-p", type=float, help="sample from the likeliest of this probability (own, else 1)")
    add("--min-p", type=float, help="least probability relative to the likeliest (own, else 0)")
    add("--seed", type=int, help="of sampling (0)")
    add(
        "--rerank",
        metavar="mbr|METRIC",
        help="keep the best sample: likest to the others by chrF (mbr), or by a metric of `cpo-ds "
        "prepare score` that needs no reference",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes or prints the translations; returns the exit code. Raises `UserError`."""
    _check(arguments)
    decoding = _decoding(arguments)
    choice = choose_model(arguments.model, arguments.adapter)
    request = _request(arguments, choice, decoding)

    # For several ranks this process becomes the launcher of the same command.
    if (arguments.ranks > 1 or arguments.hostfile) and not is_rank():
        become_ranks(sys.executable, arguments.argv, arguments.ranks, arguments.hostfile)
    if arguments.text is not None and arguments.output is None:
        _print_translation(request)
        return 0
    with as_one_of_ranks() as ranks:
        rows = _translate(request, ranks)
        _free_memory()  # for the metric, which runs in processes of its own
    if request.rerank not in (None, MBR) and ranks.rank == 0:
        print("\n".join(rows.finish_scoring()), flush=True)
    return 0


def _translate(request: Request, ranks: Ranks) -> RowsByModel:
    dtype = request.dtype or _fast_dtype(ranks.device)
    if (file := request.choice.recipe_file) is not None:
        ranks.say(f"prompts and tokens as in {file}, unless options say otherwise")
    if request.origin.startswith("flores+:"):
        ranks.say(f"warning: {FLORES_WARNING}")
    rows = RowsByModel(replace(request, dtype=dtype))
    translate_on_ranks(rows.work, ranks)
    return rows


def _fast_dtype(device: torch.device) -> str:
    """bfloat16 on a GPU that computes it, else float32."""
    import torch

    from cpo_ds.model.precision import gpu_precision

    if device.type != "cuda":
        return "float32"
    return gpu_precision(torch.cuda.get_device_capability(device)).dtype


def _free_memory() -> None:
    """Frees the model, and gives memory that torch keeps for later back to the GPU."""
    from cpo_ds.engine.release import free_models

    free_models()


def _print_translation(request: Request) -> None:
    """Prints the translations of a single source, and all else to standard error."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "text.jsonl"
        with contextlib.redirect_stdout(sys.stderr), as_one_of_ranks() as ranks:
            _translate(replace(request, output=output), ranks)
        candidates = json.loads(output.read_text(encoding="utf-8"))["candidates"]
    for name in request.names:
        print(candidates[name])


def _check(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for options that contradict each other, or a bad `--output`."""
    inputs = {"--input": arguments.input, "--text": arguments.text}
    given = [flag for flag, value in (inputs | {"--test-set": arguments.test_set}).items()
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise UserError(
            "say what to translate by one of --input, --text and --test-set"
            + (f", not by {' and '.join(given)}." if given else ".")
        )
    if arguments.test_set is not None and arguments.language_pair:
        raise UserError(f"--test-set names its direction; leave {PAIR} out.")
    for problem in _problems(arguments):
        raise UserError(problem)
    output = arguments.output
    if output is None:
        if arguments.text is None:
            raise UserError("give --output, a .jsonl file to write to.")
        return
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output} must end in .jsonl.")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file.")
    source = arguments.input
    if source and output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the input; choose another file.")


def _problems(arguments: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the values of options, as whole sentences."""
    if arguments.references and (arguments.input is None or arguments.input.is_dir()):
        yield "--references belongs to --input with plain text; leave it out."
    on_ranks = arguments.ranks > 1 or arguments.hostfile or arguments.shard
    if arguments.text is not None and on_ranks:
        yield "--text is translated by one process; leave --ranks, --hostfile and --shard out."
    if arguments.vllm and arguments.samples is None and arguments.beam != 1:
        yield "--vllm has no beam search here; give --beam 1 or --samples, or leave --vllm out."
    if arguments.vllm and on_ranks:
        yield "--vllm runs on one process; leave --ranks, --hostfile and --shard out."
    if arguments.long == SPLIT and arguments.prompt == "few-shot":
        yield f"--long {SPLIT} cannot be combined with --prompt few-shot; take --long {SERVE}."
    for key, least in _LEAST.items():
        value = getattr(arguments, key)
        if value is not None and value < least:
            yield f"--{key.replace('_', '-')} is {value:g}; give a number of at least {least}."
    if arguments.temperature is not None and arguments.temperature <= 0:
        yield "--temperature must be above 0; leave it and --samples out for a search."
    if arguments.top_p is not None and not 0 < arguments.top_p <= 1:
        yield f"--top-p is {arguments.top_p:g}; give a number above 0, up to 1."
    if arguments.samples is None:
        for key in _SAMPLING:
            if getattr(arguments, key) is not None:
                yield f"--{key.replace('_', '-')} has no effect without --samples; give that too."
        if arguments.rerank is not None:
            yield "--rerank chooses among samples; give --samples, 16 for example."
    elif arguments.beam is not None:
        yield "--samples draws without a search; leave --beam out."
    elif arguments.rerank is not None:
        if arguments.samples < 2:
            yield "--rerank needs at least --samples 2."
        if arguments.rerank != MBR and arguments.output is None:
            yield f"--rerank {arguments.rerank} needs --output; {MBR} does not."
        rerank = arguments.rerank
        if rerank != MBR and model_of(rerank, f"--rerank {rerank}") in LEXICAL:
            yield f"--rerank {arguments.rerank} would compare with the reference; give {MBR}."


def _decoding(arguments: argparse.Namespace) -> Decoding:
    """The settings of decoding by the options."""
    if arguments.samples is None:
        return Decoding(arguments.beam or 5, arguments.max_new_tokens)
    return Decoding(
        1,
        arguments.max_new_tokens,
        arguments.samples,
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        arguments.min_p,
        arguments.seed or 0,
    )


def _request(arguments: argparse.Namespace, choice: ModelChoice, decoding: Decoding) -> Request:
    """The whole request; a run's recipe decides what no option says. Raises `UserError`."""
    data = choice.recipe.data if choice.recipe else None
    own_style = data.prompt_style if data and data.format != "pairs" else "alma"
    arguments.prompt = style = arguments.prompt or own_style
    names = dict(data.languages) if data else {}
    languages = with_names(names | language_names(arguments), LANGUAGE)
    prompts = prompt_settings(arguments)
    if data:
        own = data.chat_template_kwargs if style in ("chat", "gpt4") else {}
        prompts = PromptSettings(
            arguments.add_bos or data.add_bos,
            prompts.chat_template_kwargs or own,
            data.template_date,
        )
    parts = [part for part in (arguments.model, arguments.adapter) if part]
    ranks = str(arguments.ranks)
    name = arguments.name or "+".join(Path(part).name for part in parts)
    check_name(name, "--name")

    def read() -> Sources:
        return read_input(
            path=arguments.input,
            text=arguments.text,
            test_set=arguments.test_set,
            pair=arguments.language_pair,
            references=arguments.references,
        )

    return Request(
        choice=choice,
        read=read,
        origin=arguments.test_set or (str(arguments.input) if arguments.input else "--text"),
        output=arguments.output or Path("text.jsonl"),
        name=name,
        style=style,
        prompt_of=prompt_maker(style, arguments.examples, arguments.shots, languages),
        prompts=prompts,
        languages=languages,
        decoding=decoding,
        dtype=arguments.dtype or "",
        max_prompt_tokens=arguments.max_prompt_tokens,
        long=arguments.long,
        cleaning=arguments.cleaning or ("full" if style in ("chat", "gpt4") else "alma"),
        rerank=arguments.rerank,
        batch_tokens=arguments.batch_tokens or (2**20 if arguments.vllm else 16384),
        is_vllm=arguments.vllm,
        shard=arguments.shard,
        scoring=(
            *(("--hostfile", arguments.hostfile) if arguments.hostfile else ("--ranks", ranks)),
            *(("--shard",) if arguments.shard else ()),
        ),
    )
