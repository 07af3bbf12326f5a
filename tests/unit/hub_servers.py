"""Local servers that speak as much of the hubs' protocols as a download needs, and break when told to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = 200  # Hugging Face keeps smaller files in git, where only the blob's SHA-1 is known


class Hub:
    """Repositories {id: {path: bytes}}, and what to do wrong. `seen` holds every request's (path, headers)."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.drops: Counter[str] = Counter()
        """How often the connection is closed half-way through a file of that path."""
        self.corrupt: set[str] = set()
        self.statuses: dict[str, list[int]] = {}
        """What the next requests of a path (as in the URL) are answered with."""
        self.ranges = True
        self.files_at: str | None = None
        """Base URL of the server that files are redirected to, as to a CDN."""
        self.seen: list[tuple[str, dict[str, str]]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.seen.append((self.path, dict(self.headers)))
        waiting = self.hub.statuses.get(path)
        if waiting:
            return self.answer(waiting.pop(0), {"error": "told to"})
        for repository, files in self.hub.repositories.items():
            if path == f"/api/datasets/{repository}":
                card = {"license": "gpl-3.0"}
                return self.answer(200, {"id": repository, "sha": COMMIT, "cardData": card, "tags": []})
            if path.startswith(f"/api/datasets/{repository}/tree/{COMMIT}"):
                folder = path.removeprefix(f"/api/datasets/{repository}/tree/{COMMIT}").strip("/")
                return self.answer(
                    200, [tree_entry(name, data) for name, data in files.items() if name.startswith(folder)]
                )
            if path == f"/api/v1/datasets/{repository}/repo/tree":
                return self.modelscope_tree(files, query)
            if path.startswith(f"/datasets/{repository}/resolve/{COMMIT}/"):
                return self.file(files, path.removeprefix(f"/datasets/{repository}/resolve/{COMMIT}/"))
            if path == f"/api/v1/datasets/{repository}/repo":
                return self.file(files, query["FilePath"][0])
        return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def modelscope_tree(self, files: dict[str, bytes], query: dict[str, list[str]]) -> None:
        number, size = int(query["PageNumber"][0]), int(query["PageSize"][0])
        folders = sorted({name.rpartition("/")[0] for name in files} - {""})
        entries = [{"Path": name, "Type": "tree", "Size": 0, "Sha256": ""} for name in folders] + [
            {"Path": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        page = entries[(number - 1) * size : number * size]
        self.answer(200, {"Code": 200, "Success": True, "Data": {"Files": page}})

    def file(self, files: dict[str, bytes], name: str) -> None:
        if self.hub.files_at is not None and self.headers["Host"] not in self.hub.files_at:
            self.send_response(302)
            self.send_header("Location", self.hub.files_at + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name not in files:
            return self.answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = files[name] if name not in self.hub.corrupt else files[name][:-1] + b"\0"
        begin, asked = 0, self.headers.get("Range")
        if asked and self.hub.ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        rest = data[begin:]
        self.send_response(206 if asked and self.hub.ranges else 200)
        if asked and self.hub.ranges:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if self.hub.drops[name] > 0:
            self.hub.drops[name] -= 1
            self.wfile.write(rest[: len(rest) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(rest)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tree_entry(name: str, data: bytes) -> dict[str, object]:
    """A file of Hugging Face's tree: in git when small, else an LFS pointer with the SHA-256."""
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
    if len(data) >= SMALL:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def served(hub: Hub):
    """The base URL of a server of `hub`; several may serve one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
