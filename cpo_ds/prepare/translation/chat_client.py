"""Asks an OpenAI-compatible server many questions, some at a time; each answer is kept at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cpo_ds.data.prompts import Message
from cpo_ds.errors import UserError, one_line
from cpo_ds.prepare.translation.job import Kept, Translation
from cpo_ds.ranks.progress import SENTENCES, Progress

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_FAILURES_IN_A_ROW = 20  # then something is wrong that is not these rows'
_LEAST_KEY = 8  # characters: a shorter one, like "none", is no secret and may be in a translation
_STOPS = (401, 402, 403, 404)  # what no other row would fare better with
_OF_THE_ROW = (400, 413, 422)  # what another row may fare better with


@dataclass(frozen=True)
class Server:
    """Where to ask, and how. `key` is empty where none is needed."""

    url: str
    model: str
    key: str = field(repr=False)
    key_variable: str
    parameters: dict[str, Any]  # sent with each request: temperature and the like
    concurrency: int
    retries: int
    timeout: float  # seconds


@dataclass(frozen=True)
class Question:
    """A conversation to be answered; `where` is the first row that asks it."""

    key: str
    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Failure:
    """A question that got no answer, for all retries."""

    reason: str
    message: str
    where: str
    of_the_row: bool = False
    no_connection: bool = False


def without_key(text: str, key: str) -> str:
    """The text with the key taken out, should a server repeat it."""
    return text.replace(key, "[key]") if key else text


async def ask_all(
    server: Server, questions: Sequence[Question], kept: Kept, *, known: int
) -> list[Failure]:
    """Asks all questions; returns those that got no answer. `known`: answers of earlier runs.

    Raises `UserError` where going on makes no sense: a key or a model that the server refuses, or
    one request after the other without an answer.
    """
    import openai

    async with openai.AsyncOpenAI(
        base_url=server.url,
        api_key=server.key or "none",
        max_retries=server.retries,
        timeout=server.timeout,
    ) as client:
        asking = _Asking(server, client, kept, len(questions), known)
        waiting = iter(questions)  # shared: each worker takes the next
        workers = min(server.concurrency, len(questions))
        tasks = [asyncio.create_task(asking.work(waiting)) for _ in range(workers)]
        teller = asyncio.create_task(asking.tell())
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, teller):
                task.cancel()
            await asyncio.gather(*tasks, teller, return_exceptions=True)
    return asking.failures


class _Asking:
    """What the workers share."""

    def __init__(
        self, server: Server, client: AsyncOpenAI, kept: Kept, questions: int, known: int
    ) -> None:
        self._server, self._client, self._kept = server, client, kept
        self._known, self._answers, self._in_a_row = known, 0, 0
        self._progress = Progress(SENTENCES, questions, questions, questions, _say)
        self.failures: list[Failure] = []

    async def work(self, waiting: Iterator[Question]) -> None:
        """Asks one question after the other."""
        for question in waiting:
            outcome = await self._ask(question)
            if isinstance(outcome, Translation):
                self._kept.add({question.key: outcome})
                self._answers, self._in_a_row = self._answers + 1, 0
            else:
                self.failures.append(outcome)
                self._progress.note = f", {len(self.failures)} without an answer"
                self._check_outage(outcome)
            self._progress.advance(1, 1)

    async def tell(self) -> None:
        """Prints how far it is while answers are slow to come."""
        while True:
            await asyncio.sleep(1)
            self._progress.tell()

    async def _ask(self, question: Question) -> Translation | Failure:
        import openai

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
        translation = _translation(answer, self._server.key)
        return translation or Failure("no chat completion", self._clean(str(answer)), where)

    def _refused(self, error: Any, where: str) -> Failure:
        """Raises `UserError` for what every row would meet."""
        status, message = error.status_code, self._clean(error.message)
        if status in _STOPS or error.code == "insufficient_quota":
            raise UserError(f"{self._server.url} refuses: {message}. {self._advice(status)}")
        return Failure(f"status {status}", message, where, of_the_row=status in _OF_THE_ROW)

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f"See to the key in the environment variable {self._server.key_variable}."
        if status == 404:
            return (
                "Most servers' address ends in /v1, and --model must be one that they serve, "
                f"which {self._server.model} seems not to be."
            )
        return "What was answered is kept: put it right and give the same command again."

    def _check_outage(self, failure: Failure) -> None:
        if failure.of_the_row and (self._answers or self._known):
            return
        self._in_a_row += 1
        at_once = failure.no_connection and not self._answers
        if at_once or self._in_a_row == _FAILURES_IN_A_ROW:
            what = f"{failure.reason} ({failure.message})" if failure.message else failure.reason
            count = f"{self._in_a_row} times in a row" if self._in_a_row > 1 else "at once"
            raise UserError(
                f"{self._server.url} does not answer: {what}, {count}, after {self._server.retries}"
                " retries each. What was answered is kept: see to the server and the options, and "
                "give the same command again."
            )

    def _clean(self, text: str) -> str:
        return one_line(without_key(text, self._server.key))


def _translation(answer: Any, key: str) -> Translation | None:
    """None for what is no chat completion: servers may send anything."""
    try:
        choice, usage = answer.choices[0], answer.usage
        text = choice.message.content or ""
        if len(key) >= _LEAST_KEY:
            text = without_key(text, key)
        text = text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair
        prompt_tokens = usage.prompt_tokens or 0 if usage else 0
        completion_tokens = usage.completion_tokens or 0 if usage else 0
        is_whole = choice.finish_reason != "length"
        return Translation(text, is_whole, int(prompt_tokens), int(completion_tokens))
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _say(text: str) -> None:
    print(text, flush=True)
