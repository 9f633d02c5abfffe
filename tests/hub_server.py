"""A loopback server that speaks as much of the Hub's API as small files need: make, commit, list, fetch."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the server holds, and what it was asked.

    Args:
        address: Where it listens.
        repos: Name -> commits, oldest first: identifier and files.
        messages: Of the commits.
        private: Repositories that were made private.
        requests: Method and path of every request.
        claimed: File -> size that the list claims in place of the true one.
    """

    address: str = ""
    repos: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    claimed: dict[str, int] = field(default_factory=dict)

    def commit(self, repo: str, files: dict[str, bytes], message: str) -> str:
        commits = self.repos[repo]
        identifier = hashlib.sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        before = commits[-1][1] if commits else {}
        commits.append((identifier, before | files))
        self.messages.append(message)
        return identifier

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((c for c in commits if c[0] == revision), None)

    def fetched(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any = None, *, status: int = 200, raw: bytes | None = None, **headers: str) -> None:
        body = json.dumps(value).encode() if raw is None else raw
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, what: str, code: str) -> None:
        self._answer({"error": what}, status=404, X_Error_Code=code, X_Error_Message=what)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(("POST", path))
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(raw)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.hub.repos:
                self._answer({"error": "exists", "url": f"{self.hub.address}/{repo}"}, status=409)
                return
            self.hub.repos[repo] = []
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repo)
            self._answer({"url": f"{self.hub.address}/{repo}", "name": repo})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"] and parts[4] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]
            ]
            self._answer({"files": files})
        elif parts[:2] == ["api", "models"] and parts[4] == "commit":
            lines = [json.loads(line) for line in raw.splitlines()]
            files = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
            repo = "/".join(parts[2:4])
            identifier = self.hub.commit(repo, files, lines[0]["value"]["summary"])
            url = f"{self.hub.address}/{repo}/commit/{identifier}"
            self._answer({"success": True, "commitOid": identifier, "commitUrl": url})
        else:
            self._missing("no such page", "EntryNotFound")

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        parts = path.strip("/").split("/")
        listing = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if listing else parts[:2])
        if repo not in self.hub.repos:
            self._missing("Repository not found", "RepoNotFound")
            return
        revision = (parts[5] if len(parts) > 5 else "main") if listing else parts[3]
        found = self.hub.at(repo, revision)
        if found is None:
            self._missing(f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        identifier, files = found
        if listing:
            sizes = {name: self.hub.claimed.get(name, len(content)) for name, content in files.items()}
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            self._answer({"id": repo, "modelId": repo, "sha": identifier, "siblings": siblings, "tags": []})
            return
        content = files.get("/".join(parts[4:]))
        if content is None:
            self._missing("Entry not found", "EntryNotFound")
            return
        mark = hashlib.sha1(content).hexdigest()
        self._answer(raw=content, ETag=f'"{mark}"', X_Repo_Commit=identifier, Accept_Ranges="bytes")

    do_HEAD = do_GET


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve until the block ends.

    Yields:
        What the server holds.
    """
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
