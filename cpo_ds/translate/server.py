"""Translates by an OpenAI-compatible server: vLLM, GPT-4, and others with the same protocol.

The key is read from the environment. It is sent to the server and goes nowhere else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import ipaddress
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cpo_ds.errors import UserError
from cpo_ds.storage.results import cache_of, content_key, hold_cache
from cpo_ds.translate.chat_client import Failure, Question, Server, ask_all
from cpo_ds.translate.job import (
    Job,
    KeptTranslations,
    Translation,
    read_untranslated,
)
from cpo_ds.translate.languages import all_languages
from cpo_ds.translate.lines import Sources
from cpo_ds.translate.prompting import PromptOf, prompt_maker

_OPENAI = "https://api.openai.com/v1"
_AGAIN = "give the same command again to ask for those without an answer once more."
_SETTINGS = ("temperature", "top_p", "seed", "max_new_tokens")


def translate(arguments: argparse.Namespace, name: str) -> int:
    """Asks the server for the missing translations; returns the exit code. Raises `UserError`."""
    if importlib.util.find_spec("openai") is None:
        raise UserError("--server needs the package openai; pip install 'cpo-ds[api]'.")
    server = _server(arguments)
    prompt_of = prompt_maker(
        arguments.prompt or "gpt4", arguments.examples, arguments.shots, all_languages(arguments)
    )
    sources = read_untranslated(arguments, name)
    settings = {key: getattr(arguments, key) for key in _SETTINGS}
    job, questions = _job(sources, name, prompt_of, server.model, json.dumps(settings))
    with contextlib.closing(hold_cache(cache_of(arguments.output))):
        _ask(job, questions, server, arguments.output)
    return 0


def _ask(job: Job, questions: list[Question], server: Server, output: Path) -> None:
    """Asks the questions, writes the rows and prints counts. Raises `UserError` on failures.

    The rows are written even if answers are missing, since servers may refuse a sentence for ever.
    """
    # Ask the questions without a kept answer.
    kept = KeptTranslations(output)
    known = kept.read()
    before = [known[question.key] for question in questions if question.key in known]
    missing = [question for question in questions if question.key not in known]
    answered = f", {len(before)} of them answered before" if before else ""
    print(f"asking {server.url} for {len(questions)} different sentences{answered}", flush=True)
    failures: list[Failure] = []
    if missing:
        failures = asyncio.run(ask_all(server, missing, kept, known=len(before)))

    # Write the rows with all answers, also of earlier runs.
    known = kept.read()
    now = [known[question.key] for question in missing if question.key in known]
    if now or before:
        print("\n".join([*job.write(output, known), *tokens(now, before)]), flush=True)
    if failures:
        outcome = f"{output} has the others" if now or before else "Nothing is written"
        raise UserError(f"{_without_answer(failures, len(questions))} {outcome}; {_AGAIN}")


def _server(arguments: argparse.Namespace) -> Server:
    """The server and its settings by the options and the environment. Raises `UserError`."""
    url = server_address(arguments.server or os.environ.get("OPENAI_BASE_URL") or _OPENAI)
    variable = arguments.key_variable or "OPENAI_API_KEY"
    # OpenAI's newer models refuse the old name, and older servers do not know the new one.
    limit = "max_completion_tokens" if url.startswith(_OPENAI) else "max_tokens"
    parameters = {
        limit if key == "max_new_tokens" else key: value
        for key in _SETTINGS
        if (value := getattr(arguments, key)) is not None
    }
    return Server(
        url=url,
        model=arguments.model,
        key=server_key(os.environ.get(variable, ""), variable, url),
        key_variable=variable,
        parameters=parameters,
        concurrency=arguments.concurrency or 8,
        retries=8 if arguments.retries is None else arguments.retries,
        timeout=arguments.timeout or 60.0,
    )


def server_address(url: str) -> str:
    """The address, checked. Raises `UserError` for a malformed one, and for one with a password."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (reading the port checks it)
    except ValueError as error:
        raise UserError(f"--server {url} is no address: {error}.") from None
    if parts.username or parts.password:
        raise UserError("--server: put no user or password into the address.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UserError(f"--server {url} is no address like http://localhost:8000/v1.")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise UserError(f"--server {url}: leave /chat/completions out; it is added.")
    return url.rstrip("/")


def server_key(value: str, variable: str, url: str) -> str:
    """The key, checked. Raises `UserError` if it is empty and the server is not on this machine."""
    key = value.strip()
    if not key and not _is_this_machine(urlsplit(url).hostname or ""):
        raise UserError(
            f"the environment variable {variable} is not set; it must hold the key of {url} "
            "(any text, if that needs no key). --key-variable names another variable."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {variable} holds something that is no key.")
    return key


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _job(
    sources: Sources, name: str, prompt_of: PromptOf, model: str, settings: str
) -> tuple[Job, list[Question]]:
    """The job of translating all rows, and a question for each different prompt."""
    prompts = tuple(prompt_of(row) for row in sources.rows)
    questions: dict[str, Question] = {}
    keys = []
    for row, prompt in zip(sources.rows, prompts, strict=True):
        # A plain text goes as one message of the user.
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        keys.append(content_key(model, settings, json.dumps(messages)))
        questions.setdefault(keys[-1], Question(keys[-1], tuple(messages), row.where))
    return Job(sources, name, prompts, tuple(keys)), list(questions.values())


def tokens(now: Iterable[Translation], before: Iterable[Translation]) -> list[str]:
    """Lines to print on the tokens that the server counted, of this run and of earlier ones."""
    lines = []
    for when, answers in (("", list(now)), (" by earlier runs", list(before))):
        if answers:
            asked = sum(answer.prompt_tokens for answer in answers)
            written = sum(answer.completion_tokens for answer in answers)
            lines.append(f"tokens{when}: {asked} of prompts, {written} of {len(answers)} answers")
            uncounted = sum(answer.prompt_tokens == 0 for answer in answers)
            lines += [f"  without a count by the server: {uncounted}"] if uncounted else []
    return lines


def _without_answer(failures: list[Failure], questions: int) -> str:
    """A sentence on the questions that got no answer."""
    counts = Counter(failure.reason for failure in failures)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in counts.most_common())
    first = failures[0]
    said = f": {first.message}" if first.message else ""
    return (
        f"{len(failures)} of {questions} sentences got no answer ({reasons}), the first is "
        f"{first.where}{said}."
    )
