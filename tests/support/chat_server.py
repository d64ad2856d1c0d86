"""An OpenAI-compatible server on loopback, with the faults of real ones, for the tests.

It answers a request by its last message in capitals. `faults` maps a text to a list of faults: each
request whose message has the text meets the next fault of the list, until none is left.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """The server; it counts the requests, and `url` is its address."""

    daemon_threads = True

    def __init__(self, faults: dict[str, list[str]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.faults = {text: list(kinds) for text, kinds in (faults or {}).items()}
        self.seconds = 0.0  # that an answer takes
        self.answers_left: int | None = None  # then it answers no more, but does not hang up
        self.asked: Counter[str] = Counter()  # by last message
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.at_a_time = self.most_at_a_time = 0
        self.ended = threading.Event()
        self.changed = threading.Condition()

    def wait_for(self, count: int, seconds: float = 60) -> None:
        """Waits until the server has given `count` answers."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.answered.total() >= count, seconds)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that close their connection."""

    def take_fault(self, message: str) -> str:
        for text, kinds in self.faults.items():
            if text in message and kinds:
                return kinds[0] if kinds[0].startswith("always ") else kinds.pop(0)
        return ""


@contextmanager
def chat_server(faults: dict[str, list[str]] | None = None) -> Iterator[ChatServer]:
    server = ChatServer(faults)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_: Any) -> None:
        """Writes no log."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = body["messages"][-1]["content"]
        with server.changed:
            server.asked[message] += 1
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            server.at_a_time += 1
            server.most_at_a_time = max(server.most_at_a_time, server.at_a_time)
            fault = server.take_fault(message).removeprefix("always ")
            if not fault and server.answers_left is not None:
                server.answers_left -= 1
                fault = "stall" if server.answers_left < 0 else ""
        server.ended.wait(server.seconds)
        with server.changed:
            server.at_a_time -= 1  # before the client can go on to the next
        self._respond(fault, message)

    def _respond(self, fault: str, message: str) -> None:
        kind, _, value = fault.partition(" ")
        if kind == "stall":
            self.server.ended.wait(120)
            self.close_connection = True
        elif kind == "hang-up":
            self.close_connection = True
        elif kind == "status":  # an error body that repeats the key
            said = f"no: you sent {self.headers['Authorization']} and {message[-20:]}"
            self._send(int(value), {"error": {"message": said, "code": None}})
        elif kind == "rate":
            self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": value})
        elif kind == "text":
            self._send(200, {"error": "not a completion"})
        elif kind == "length":
            self._answer(message, finish_reason="length")
        elif kind == "say":
            self._answer(message, text=value.replace("KEY", self.headers["Authorization"][7:]))
        else:
            self._answer(message)

    def _answer(self, message: str, text: str | None = None, finish_reason: str = "stop") -> None:
        text = message.upper() if text is None else text
        choice = {"index": 0, "finish_reason": finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(message.split()), "completion_tokens": len(text.split())}
        usage["total_tokens"] = sum(usage.values())
        answer = {"id": "1", "object": "chat.completion", "created": int(time.time()), "model": "m"}
        self._send(200, answer | {"choices": [choice], "usage": usage})
        with self.server.changed:
            self.server.answered[message] += 1
            self.server.changed.notify_all()

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
