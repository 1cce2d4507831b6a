"""A server of the OpenAI protocol that plays a model: it says what the test wrote down, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from studio.tool_calls import Call

FOR_EVER = "for ever"


class ScriptedModel(ThreadingHTTPServer):
    """Says its lines one after the other; a line is text, calls as a list, or a status code to refuse with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Turn)
        self.lines: list[str | list[Call] | int] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.gone = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Turn(BaseHTTPRequestHandler):
    server: ScriptedModel
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        body = json.dumps({"id": self.path.rpartition("/")[2], "tool_style": "hermes"}).encode()
        self.send_response(200 if self.path == "/v1/models/tuned" else 404)
        self.end_headers()
        self.wfile.write(body if self.path == "/v1/models/tuned" else b"no")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body))
        line = self.server.lines.pop(0)
        if isinstance(line, int):
            self.send_response(line)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "tools: no place for them"}}')
            return
        self.send_response(200)
        self.end_headers()
        try:
            for choice in self._choices(line):
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\ndata: [DONE]\n\n')
        except OSError:
            self.server.gone.set()

    def _choices(self, line: str | list[Call]) -> Iterator[dict[str, Any]]:
        if isinstance(line, list):
            yield {"delta": {"tool_calls": [call.as_dict() for call in line]}, "finish_reason": "tool_calls"}
            return
        plain = self.path.endswith("/v1/completions")
        if line == FOR_EVER:
            while True:
                yield {"delta": {"content": "la " * 1000}}
        for at in range(0, len(line), 5):
            piece = line[at : at + 5]
            yield {"text": piece} if plain else {"delta": {"content": piece}}
