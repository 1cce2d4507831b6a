"""A stand-in for the chat server: the same command line and protocol, no model. Started by the real runner.

``CRUCIBLE_FAKE_CHAT`` holds JSON: ``load`` seconds until ready, ``pace`` seconds per piece, ``fail`` a message instead
of ever getting ready, ``die_after`` pieces until the process is gone.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPTIONS: dict[str, Any] = {"load": 0.2, "pace": 0.0, "fail": "", "die_after": 0}
OPTIONS |= json.loads(os.environ.get("CRUCIBLE_FAKE_CHAT", "{}"))
STARTED = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """Health, and answers that repeat the question."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """/health"""
        ready = time.monotonic() - STARTED > OPTIONS["load"]
        state = "failed" if OPTIONS["fail"] else "ready" if ready else "loading"
        error = {"kind": "model", "message": OPTIONS["fail"], "hint": "", "field": ""} if OPTIONS["fail"] else None
        self.reply(200, {"state": state, "phase": "weights", "error": error})

    def do_POST(self) -> None:
        """/v1/chat/completions, always streamed."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        turns = sum(message["role"] == "user" for message in asked["messages"])
        answer = f"{asked['model']} turn {turns} heard {asked['messages'][-1]['content']}"
        for number, piece in enumerate(answer.split(" ")):
            if OPTIONS["die_after"] and number >= OPTIONS["die_after"]:
                os._exit(9)
            self.piece({"delta": {"content": piece + " "}, "finish_reason": None})
            time.sleep(OPTIONS["pace"])
        self.piece({"delta": {}, "finish_reason": "stop"})
        self.wfile.write(b"data: [DONE]\n\n")

    def piece(self, choice: dict[str, Any]) -> None:
        """One event of the stream."""
        body = {"object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]}
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()

    def reply(self, code: int, body: dict[str, Any]) -> None:
        """One JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until standard input closes."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
