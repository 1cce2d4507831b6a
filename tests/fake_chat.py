"""A stand-in for the chat server: the same command line and protocol, no model. Started by the real runner.

``CRUCIBLE_FAKE_CHAT`` holds JSON: ``load`` seconds until ready, ``pace`` seconds per piece, ``fail`` a message instead
of ever getting ready, ``die_after`` pieces until the process is gone, ``dropped`` messages said to be left out.

A question that begins with "slowly" is answered with seconds between the words, whatever the pace.
The question "request?" is answered with the request itself as JSON. With tools, the first of them is called once.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPTIONS: dict[str, Any] = {"load": 0.2, "pace": 0.0, "fail": "", "die_after": 0, "dropped": 0}
OPTIONS |= json.loads(os.environ.get("CRUCIBLE_FAKE_CHAT", "{}"))
SLOWLY_S = 3.0
STARTED = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """Health, and answers that repeat the question."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """/health, and of a model how it writes calls of tools."""
        ready = time.monotonic() - STARTED > OPTIONS["load"]
        state = "failed" if OPTIONS["fail"] else "ready" if ready else "loading"
        error = {"kind": "model", "message": OPTIONS["fail"], "hint": "", "field": ""} if OPTIONS["fail"] else None
        self.reply(200, {"state": state, "phase": "weights", "error": error, "tool_style": "hermes"})

    def do_POST(self) -> None:
        """/v1/chat/completions, always streamed."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if asked.get("tools") and asked["messages"][-1]["role"] == "user":
            function = {"name": asked["tools"][0]["function"]["name"], "arguments": "{}"}
            call = {"index": 0, "id": "call00001", "type": "function", "function": function}
            self.piece({"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"})
        else:
            slowly = str(asked["messages"][-1]["content"]).startswith("slowly")
            self.words(answer_to(asked), SLOWLY_S if slowly else OPTIONS["pace"])
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        self.event({"choices": [], "usage": usage, "timings": {"predicted_per_second": 10.0}})
        self.wfile.write(b"data: [DONE]\n\n")

    def words(self, answer: str, pace: float) -> None:
        """An answer, word by word."""
        for number, piece in enumerate(answer.split(" ")):
            if OPTIONS["die_after"] and number >= OPTIONS["die_after"]:
                os._exit(9)
            self.piece({"delta": {"content": piece + " "}, "finish_reason": None})
            time.sleep(pace)
        self.piece({"delta": {}, "finish_reason": "stop"})

    def piece(self, choice: dict[str, Any]) -> None:
        """One event of an answer."""
        more = {"dropped_messages": OPTIONS["dropped"]} if OPTIONS["dropped"] else {}
        self.event({"choices": [{"index": 0, **choice}], **more})

    def event(self, said: dict[str, Any]) -> None:
        """One event of the stream."""
        body = {"object": "chat.completion.chunk", **said}
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()

    def reply(self, code: int, body: dict[str, Any]) -> None:
        """One JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def answer_to(asked: dict[str, Any]) -> str:
    """What the model says."""
    last = asked["messages"][-1]["content"]
    if last == "request?":
        return json.dumps({key: value for key, value in asked.items() if key != "messages"})
    if last == "messages?":
        return json.dumps(asked["messages"])
    turns = sum(message["role"] == "user" for message in asked["messages"])
    return f"{asked['model']} turn {turns} heard {last}"


def main() -> None:
    """Serve until standard input closes."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
