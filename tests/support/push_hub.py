"""A Hugging Face hub on this machine that takes repositories, commits and large files (LFS)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

TOKENS = {"writer": "write", "reader": "read"}  # and their roles; other tokens are unknown
PART_BYTES = 100_000  # large files come in parts of this size


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0


@dataclass
class Hub:
    """The hub's state. `parts_left` is how many parts of large files it takes before it is lost."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    parts_left: int | None = None
    requests: list[str] = field(default_factory=list)

    def get(self, path: str, role: str) -> tuple[int, Any]:
        if path == "/api/whoami-v2":
            orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]
            token = {"accessToken": {"role": role, "displayName": "t"}}
            return 200, {"type": "user", "name": "ann", "orgs": orgs, "auth": token}
        if "/tree/" in path:
            repository = self.repositories.get(path.removeprefix("/api/models/").split("/tree/")[0])
            if repository is None:
                return 404, {}
            files = repository.files.items()
            return 200, [
                {"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files
            ]
        return 404, {}

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            wish = json.loads(body)
            name = f"{wish.get('organization') or 'ann'}/{wish['name']}"
            taken = name in self.repositories
            private = bool(wish.get("private")) or wish.get("visibility") == "private"
            self.repositories.setdefault(name, Repository(private))
            return 409 if taken else 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            modes = [
                {"path": f["path"], "shouldIgnore": False, "oid": None}
                | {"uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"objects": [self.batched(wish) for wish in json.loads(body)["objects"]]}
        if path.startswith("/lfs/") and path.endswith("/complete"):
            oid = path.split("/")[2]
            content = b"".join(part for _, part in sorted(self.parts[oid].items()))
            assert hashlib.sha256(content).hexdigest() == oid
            self.large[oid] = content
            return 200, {}
        if "/commit/" in path:
            return self.commit(path.removeprefix("/api/models/").split("/commit/")[0], body)
        return 200 if path == "/verify" else 404, {}

    def batched(self, wish: dict[str, Any]) -> dict[str, Any]:
        """How to upload a large file; nothing to do for one that is there."""
        oid = wish["oid"]
        if oid in self.large:
            return wish
        numbers = range(1, -(-wish["size"] // PART_BYTES) + 1)
        header = {f"{n:05}": f"{self.url}/lfs/{oid}/{n}" for n in numbers}
        header["chunk_size"] = str(PART_BYTES)
        upload = {"href": f"{self.url}/lfs/{oid}/complete", "header": header}
        return wish | {"actions": {"upload": upload, "verify": {"href": f"{self.url}/verify"}}}

    def commit(self, name: str, body: bytes) -> tuple[int, Any]:
        repository = self.repositories[name]
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        url = f"{self.url}/{name}/commit/{'1' * 40}"
        return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": url}


@contextlib.contextmanager
def push_hub() -> Iterator[Hub]:
    """Runs the hub; yields its state."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self) -> None:
            self.answer(lambda path, role: hub.get(path, role))

        def do_POST(self) -> None:
            body = self.body()
            self.answer(lambda path, _: hub.post(path, body))

        def do_PUT(self) -> None:
            if hub.parts_left == 0:
                self.rfile.read(10)  # and the connection is lost
                return
            hub.parts_left = None if hub.parts_left is None else hub.parts_left - 1
            _, _, oid, number = self.path.split("/")
            hub.parts.setdefault(oid, {})[int(number)] = self.body()
            self.send(200, {}, {"ETag": f"etag-{number}"})

        def answer(self, handle: Any) -> None:
            path = urlparse(self.path).path
            hub.requests.append(f"{self.command} {path}")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            is_upload = path.startswith("/lfs/")  # its addresses need no token
            if token not in TOKENS and not is_upload:
                self.send(401, {"error": "Invalid credentials"}, {})
                return
            code, content = handle(path, TOKENS.get(token, ""))
            self.send(code, content, {"X-Error-Code": "RepoNotFound"} if code == 404 else {})

        def send(self, code: int, content: Any, headers: dict[str, str]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
