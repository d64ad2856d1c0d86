"""Limits on the time and memory that a chat template takes, since templates are programs."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from jinja2 import TemplateError

# What one rendering may take and write.
SECONDS = 10.0  # of the processor; honest templates take less than a millisecond
MEBIBYTES = 1024
CHARACTERS = 2**20  # besides ten times the conversation's
_PAGE = os.sysconf("SC_PAGE_SIZE")


class TakesTooMuch(TemplateError):
    """A template took more than a limit."""


class _TooLong(BaseException):
    """Raised in the middle of a template; no `except Exception` of a library stops it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limits the time and the additional memory of a `with` block.

    Raises `TakesTooMuch` for a block that takes more, or recurses without end. Only the
    main thread has a limit of time.
    """
    try:
        with _limited_memory(), _limited_time():
            yield
    except _TooLong:
        raise TakesTooMuch(f"it does not end within {SECONDS:g} s") from None
    except MemoryError:
        raise TakesTooMuch(f"it takes more than {MEBIBYTES} MiB of memory") from None
    except RecursionError:
        raise TakesTooMuch("it calls itself without end, or is nested too deeply") from None


def check_length(text: str, asked: int) -> None:
    """Raises `TakesTooMuch` if a text is far longer than the `asked` characters it is made of."""
    if len(text) > CHARACTERS + 10 * asked:
        raise TakesTooMuch(f"it makes {len(text)} characters of a conversation of {asked}")


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other one gets signals
        yield
        return
    _listen()
    # The time of the processor, because a template never waits, and pytest uses the other timer.
    # Again and again, because a handler in a library's C code may swallow the first.
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@functools.cache  # a call takes as long as the rest
def _listen() -> None:
    signal.signal(signal.SIGVTALRM, _raise_too_long)


def _raise_too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Limits the process's memory, which threads share, to what it has now and `MEBIBYTES` more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    limits = [_memory() + MEBIBYTES * 2**20]
    limits += [bound for bound in before if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _memory() -> int:
    """Bytes of this process's address space."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)  # a third of the time that `open` takes
    try:
        return int(os.read(descriptor, 32).split()[0]) * _PAGE
    finally:
        os.close(descriptor)
