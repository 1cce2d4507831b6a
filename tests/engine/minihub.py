"""A hub on the loopback that serves folders as repositories of datasets and models: what the real libraries ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "a" * 40


class MiniHub(ThreadingHTTPServer):
    """Serves <root>/<owner>/<name>; safetensors files lie in its large storage.

    Repositories in `gated` need a token, files in `hanging` never come, of those in `torn` only so many bytes.
    `sent` are (file, first byte) of all that were asked for; `resumes` whether a file can be asked for from its middle.

    What is uploaded with the token in `writer` becomes a repository; `received` are the names of large files that came,
    `made` what was said of new repositories, `refusing` breaks off every upload of a large file of that SHA-256, of the
    file called `losing` only the beginning is kept.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.hanging: set[str] = set()
        self.torn: dict[str, int] = {}
        self.sent: list[tuple[str, int]] = []
        self.resumes = True
        self.authorizations: set[str] = set()
        self.writer = ""
        self.made: list[dict[str, Any]] = []
        self.received: list[str] = []
        self.refusing = ""
        self.losing = ""
        self.objects: dict[str, bytes] = {}
        self.asked = threading.Event()
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve(root: Path) -> Iterator[MiniHub]:
    """A running hub."""
    hub = MiniHub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: MiniHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_GET(self) -> None:
        self._answer(b"")

    def do_PUT(self) -> None:
        body, name = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.path.rsplit("/", 1)[-1]
        if name == self.server.refusing:
            return self._send(403, b"{}")
        self.server.received.append(name)
        self.server.objects[name] = body
        return self._send(200, b"")

    def _answer(self, body: bytes) -> None:
        self.server.authorizations.add(self.headers.get("Authorization", ""))
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        upload = self._upload(parts) if self.command == "POST" else ("", "")
        if upload[0]:
            return self._write(upload, body)
        owner, name, *rest = parts[2:] if api else parts[1:] if parts[0] == "datasets" else parts
        repository = self.server.root / owner / name
        if not repository.is_dir():
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if not api and f"{owner}/{name}" in self.server.gated and "Bearer" not in self.headers.get("Authorization", ""):
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        return self._list(repository, rest, body) if api else self._file(repository / "/".join(rest[2:]))

    def _upload(self, parts: list[str]) -> tuple[str, str]:
        """(what is done, to which repository) of an upload; nothing for any other request."""
        if parts == ["api", "repos", "create"]:
            return "create", ""
        if parts[-4:] == ["info", "lfs", "objects", "batch"]:
            return "batch", ""
        if parts[-1] == "validate-yaml":
            return "check", ""
        if len(parts) > 4 and parts[4] in ("preupload", "commit"):
            return parts[4], f"{parts[2]}/{parts[3]}"
        return "", ""

    def _write(self, upload: tuple[str, str], body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.writer}":
            return self._send(401, b'{"error": "Invalid user token"}')
        return self._send(200, json.dumps(getattr(self, f"_{upload[0]}")(upload[1], body)).encode())

    def _create(self, _: str, body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        self.server.made.append(asked)
        (self.server.root / asked["organization"] / asked["name"]).mkdir(parents=True, exist_ok=True)
        return {"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"}

    def _check(self, *_: object) -> dict[str, Any]:
        """The heading of a card is in order."""
        return {"errors": [], "warnings": []}

    def _preupload(self, _: str, body: bytes) -> dict[str, Any]:
        def mode(path: str) -> str:
            return "lfs" if is_large(Path(path)) else "regular"

        names = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in names]}

    def _batch(self, _: str, body: bytes) -> dict[str, Any]:
        """Where each file goes; no action for one that has come before."""

        def place(item: dict[str, Any]) -> dict[str, Any]:
            known = item["oid"] in self.server.objects
            action = {"upload": {"href": f"{self.server.address}/objects/{item['oid']}"}}
            return item | ({} if known else {"actions": action})

        return {"transfer": "basic", "objects": [place(item) for item in json.loads(body)["objects"]]}

    def _commit(self, repository: str, body: bytes) -> dict[str, Any]:
        folder = self.server.root / repository
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                body = base64.b64decode(value["content"])
                (folder / value["path"]).write_bytes(body[:10] if value["path"] == self.server.losing else body)
            elif entry["key"] == "lfsFile":
                (folder / value["path"]).write_bytes(self.server.objects[value["oid"]])
        return {"commitUrl": f"{self.server.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}

    def _list(self, repository: Path, rest: list[str], body: bytes) -> None:
        paths = sorted(repository.rglob("*"))
        entries = [
            {"type": "directory" if path.is_dir() else "file", "size": path.stat().st_size, "oid": "b" * 40}
            | {"path": path.relative_to(repository).as_posix()}
            | ({"lfs": {"oid": digest(path), "size": path.stat().st_size, "pointerSize": 9}} if is_large(path) else {})
            for path in paths
        ]
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["tree"] and "recursive=true" in self.path.lower():
            return self._send(200, json.dumps(entries).encode())
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            entries = [entry for entry in entries if str(Path(str(entry["path"])).parent) == (below or ".")]
            return self._send(200, json.dumps(entries).encode())
        if rest[:1] == ["paths-info"]:
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return self._send(200, json.dumps([entry for entry in entries if entry["path"] in wanted]).encode())
        files = [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]}
            | (
                {"lfs": {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 9}}
                if "lfs" in entry
                else {}
            )
            for entry in entries
            if entry["type"] == "file"
        ]
        name = repository.relative_to(self.server.root).as_posix()
        facts = {"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": files}
        return self._send(200, json.dumps(facts).encode())

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if path.name in self.server.hanging and self.command == "GET":
            self.server.asked.set()
            self.server.closing.wait()
            return None
        body, large = path.read_bytes(), is_large(path)
        headers = {"ETag": f'"{digest(path) if large else hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked.group(1)) if asked and self.server.resumes else 0
        if self.command == "GET":
            self.server.sent.append((path.name, first))
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return self._send(206 if first else 200, body[first:], headers, self.server.torn.get(path.name))

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None, torn: int | None = None) -> None:
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:torn])
        if torn is not None:
            self.wfile.flush()
            self.server.asked.set()
            self.server.closing.wait()


def is_large(path: Path) -> bool:
    """Whether a file lies in the large storage, where its name is its SHA-256."""
    return path.suffix == ".safetensors"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
