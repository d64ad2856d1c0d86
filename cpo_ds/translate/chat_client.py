"""Asks an OpenAI-compatible server many questions, several at a time; keeps each answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cpo_ds.data.prompts import Message
from cpo_ds.errors import UserError, one_line
from cpo_ds.ranks.progress import SENTENCES, Progress
from cpo_ds.translate.job import KeptTranslations, Translation

if TYPE_CHECKING:
    import openai

_FAILURES_IN_A_ROW = 20  # so many hardly have their cause in the rows
_LEAST_KEY = 8  # characters: a shorter one, like "none", is no secret and may be in a translation
_FATAL_STATUSES = (401, 402, 403, 404)  # the server would refuse any other row, too
_ROW_STATUSES = (400, 413, 422)  # the server refuses this row and may accept another


@dataclass(frozen=True)
class Server:
    """The address of a server and the settings of requests; `key` is empty if none is needed."""

    url: str
    model: str
    key: str = field(repr=False)
    key_variable: str
    parameters: dict[str, str | int | float]  # sent with each request: temperature and the like
    concurrency: int
    retries: int
    timeout: float  # seconds


@dataclass(frozen=True)
class Question:
    """A conversation to answer. `where` names the first row that it belongs to."""

    key: str
    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Failure:
    """A question that got no answer in spite of all retries."""

    reason: str
    message: str
    where: str
    is_of_row: bool = False
    no_connection: bool = False


def without_key(text: str, key: str) -> str:
    """The text with the key taken out, in case a server repeats it."""
    return text.replace(key, "[key]") if key else text


async def ask_all(
    server: Server, questions: Sequence[Question], kept: KeptTranslations, *, known: int
) -> list[Failure]:
    """Asks all questions and keeps the answers; returns the questions that got none.

    `known` is the number of answers of earlier runs. Raises `UserError` if going on makes no sense:
    the server refuses the key or the model, or fails to answer many requests in a row.
    """
    import openai

    async with openai.AsyncOpenAI(
        base_url=server.url,
        api_key=server.key or "none",
        max_retries=server.retries,
        timeout=server.timeout,
    ) as client:
        # The workers share one iterator: each takes the next question.
        asking = _Asking(server, client, kept, len(questions), known)
        waiting = iter(questions)
        workers = min(server.concurrency, len(questions))
        tasks = [asyncio.create_task(asking.work(waiting)) for _ in range(workers)]
        reporter = asyncio.create_task(asking.report_progress())
        try:
            await asyncio.gather(*tasks)
        finally:
            # If one worker raised, end the others before the client closes.
            for task in (*tasks, reporter):
                task.cancel()
            await asyncio.gather(*tasks, reporter, return_exceptions=True)
    return asking.failures


class _Asking:
    """The state that the workers share: client, kept answers, failures and progress."""

    def __init__(
        self,
        server: Server,
        client: openai.AsyncOpenAI,
        kept: KeptTranslations,
        questions: int,
        known: int,
    ) -> None:
        self._server, self._client, self._kept = server, client, kept
        self._known, self._answers, self._failures_in_a_row = known, 0, 0
        self._progress = Progress(SENTENCES, questions, questions, questions, _print)
        self.failures: list[Failure] = []

    async def work(self, waiting: Iterator[Question]) -> None:
        """Asks one question after the other."""
        for question in waiting:
            outcome = await self._ask(question)
            if isinstance(outcome, Translation):
                self._kept.add({question.key: outcome})
                self._answers, self._failures_in_a_row = self._answers + 1, 0
            else:
                self.failures.append(outcome)
                self._progress.note = f", {len(self.failures)} without an answer"
                self._check_outage(outcome)
            self._progress.advance(1, 1)

    async def report_progress(self) -> None:
        """Prints the progress every few seconds, also while no answer comes."""
        while True:
            await asyncio.sleep(1)
            self._progress.report()

    async def _ask(self, question: Question) -> Translation | Failure:
        """The answer to a question. Raises `UserError` if every question would fail like it."""
        import openai

        # Ask. The client retries by itself.
        where = question.where
        try:
            answer = await self._client.chat.completions.create(
                model=self._server.model,
                messages=list(question.messages),
                **self._server.parameters,
            )
        except openai.APITimeoutError:
            return Failure(f"nothing within {self._server.timeout:g} s", "", where)
        except openai.APIConnectionError as error:
            cause = self._clean(str(error.__cause__ or error))
            return Failure("no connection", cause, where, no_connection=True)
        except openai.APIStatusError as error:
            return self._refused(error, where)
        except (openai.OpenAIError, ValueError) as error:
            return Failure("no chat completion", self._clean(str(error)), where)

        # Read the translation.
        translation = _translation(answer, self._server.key)
        return translation or Failure("no chat completion", self._clean(str(answer)), where)

    def _refused(self, error: Any, where: str) -> Failure:
        """The failure for a status of HTTP. Raises `UserError` if every row would get it."""
        status, message = error.status_code, self._clean(error.message)
        if status in _FATAL_STATUSES or error.code == "insufficient_quota":
            raise UserError(f"{self._server.url} refuses: {message}. {self._advice(status)}")
        return Failure(f"status {status}", message, where, is_of_row=status in _ROW_STATUSES)

    def _advice(self, status: int) -> str:
        """The advice for a status, as a sentence."""
        if status in (401, 403):
            return f"Check the key in the environment variable {self._server.key_variable}."
        if status == 404:
            return (
                "Most servers' address ends in /v1, and --model must be one that they serve, "
                f"which {self._server.model} seems not to be."
            )
        return "All answers are kept: solve the problem and give the same command again."

    def _check_outage(self, failure: Failure) -> None:
        """Raises `UserError` if the failures look like those of the server, not of single rows."""
        if failure.is_of_row and (self._answers or self._known):
            return
        self._failures_in_a_row += 1
        at_once = failure.no_connection and not self._answers
        if at_once or self._failures_in_a_row == _FAILURES_IN_A_ROW:
            reason = failure.reason + (f" ({failure.message})" if failure.message else "")
            failures = self._failures_in_a_row
            count = f"{failures} times in a row" if failures > 1 else "at once"
            raise UserError(
                f"{self._server.url} does not answer: {reason}, {count}, after "
                f"{self._server.retries} retries each. All answers are kept: check the server and "
                "the options, and give the same command again."
            )

    def _clean(self, text: str) -> str:
        """A text for messages: one line, without the key."""
        return one_line(without_key(text, self._server.key))


def _translation(answer: Any, key: str) -> Translation | None:
    """The translation in a server's answer; None if the answer is no chat completion."""
    try:
        choice, usage = answer.choices[0], answer.usage
        text = choice.message.content or ""
        if len(key) >= _LEAST_KEY:
            text = without_key(text, key)
        # Half of a surrogate pair could not be written to a file.
        text = text.encode("utf-8", "replace").decode("utf-8")
        prompt_tokens = usage.prompt_tokens or 0 if usage else 0
        completion_tokens = usage.completion_tokens or 0 if usage else 0
        is_whole = choice.finish_reason != "length"
        return Translation(text, is_whole, int(prompt_tokens), int(completion_tokens))
    except (AttributeError, IndexError, TypeError, ValueError):  # servers may send anything
        return None


def _print(text: str) -> None:
    print(text, flush=True)
