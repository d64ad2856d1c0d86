"""A Hugging Face hub on this machine that serves one model folder and counts fetched files."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def model_hub(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Runs the hub; yields its address and a counter of fetched files."""
    fetched: Counter[str] = Counter()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path, _, rest = self.path.partition("?")[0].partition("/resolve/")
            name = rest.partition("/")[2]  # after the revision
            if name and (folder / name).is_file():
                fetched[name] += with_body
                self.send(200, (folder / name).read_bytes(), with_body)
            elif path.startswith("/api/models/") and "/tree/" not in path:
                files = [{"rfilename": file.name} for file in folder.iterdir()]
                about = {"id": "someone/tiny", "sha": "a" * 40, "siblings": files}
                self.send(200, json.dumps(about).encode(), with_body)
            else:
                self.send(404, b"", with_body)

        def send(self, code: int, body: bytes, with_body: bool) -> None:
            self.send_response(code)
            if code == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
