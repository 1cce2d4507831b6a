"""The loop of calls and results, over a server that plays a model, in each of the three protocols."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import aclosing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from studio import tool_loop
from studio.chat_client import ChatError
from studio.tool_calls import Call
from studio.tool_loop import MOST_CALLS, ROUNDS, Asked, Step, tool_style_at
from studio.tool_protocols import Protocol
from studio.tools import Tool
from studio.tools.calculator import calculator

QUESTION = [{"role": "user", "content": "What is 12*12?"}]


class Model(ThreadingHTTPServer):
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
    server: Model
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
        if line == "for ever":
            while True:
                yield {"delta": {"content": "la " * 1000}}
        for at in range(0, len(line), 5):
            piece = line[at : at + 5]
            yield {"text": piece} if plain else {"delta": {"content": piece}}


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    yield server
    server.shutdown()
    server.server_close()


def steps(model: Model, tools: list[Tool], protocol: Protocol = "native", **options: Any) -> list[Step]:
    async def collect() -> list[Step]:
        asked = Asked(model.url, "tuned", options)
        return [
            step async for step in tool_loop.run(asked, QUESTION, tools, protocol) if step.kind != "text" or step.text
        ]

    return asyncio.run(collect())


def shape(found: list[Step]) -> list[tuple[str, str]]:
    """Kinds and texts, with the pieces of one text joined."""
    joined: list[tuple[str, str]] = []
    for step in found:
        text = f"{step.call.name} {step.call.arguments}" if step.kind == "call" and step.call else step.text
        if step.kind == "text" and joined and joined[-1][0] == "text":
            joined[-1] = ("text", joined[-1][1] + text)
        elif step.kind != "end":
            joined.append((step.kind, text))
    return joined


def test_native_calls_are_carried_out_and_the_model_goes_on(model: Model) -> None:
    call = Call("calculate", '{"expression": "12*12"}', "abc123def")
    model.lines = [[call], "It is 144."]
    found = steps(model, [calculator()], temperature=0)
    assert shape(found) == [("call", 'calculate {"expression": "12*12"}'), ("result", "144"), ("text", "It is 144.")]
    first, second = [body for _, body in model.asked]
    assert first["messages"] == QUESTION
    assert first["tools"] == [calculator().schema]
    assert first["temperature"] == 0
    assert second["messages"] == [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call.as_dict()]},
        {"role": "tool", "tool_call_id": "abc123def", "content": "144"},
    ]
    assert [*found[-1].messages] == [*second["messages"][1:], {"role": "assistant", "content": "It is 144."}]


def test_without_tools_it_is_a_plain_answer(model: Model) -> None:
    model.lines = ["Hello."]
    found = steps(model, [])
    assert shape(found) == [("text", "Hello.")]
    assert found[-1].messages == ({"role": "assistant", "content": "Hello."},)
    assert "tools" not in model.asked[0][1]


def test_react_calls_are_read_from_text(model: Model) -> None:
    model.lines = [
        'Thought: I add.\nAction: calculate\nAction Input: {"expression": "12*12"}\n',
        "Thought: I know.\nFinal Answer: 144",
    ]
    found = steps(model, [calculator()], "react", stop="END")
    assert shape(found) == [
        ("text", "Thought: I add.\n"),
        ("call", 'calculate {"expression": "12*12"}'),
        ("result", "144"),
        ("text", "Thought: I know.\nFinal Answer: 144"),
    ]
    first, second = [body for _, body in model.asked]
    assert "tools" not in first
    assert first["stop"] == ["END", "\nResponse:", "\nObservation:"]
    assert "calculate" in first["messages"][0]["content"]
    assert second["messages"][-1] == {"role": "user", "content": "Response: 144"}
    assert found[-1].messages[0]["tool_calls"][0]["function"]["name"] == "calculate"


def test_moss_thinks_commands_and_answers(model: Model) -> None:
    model.lines = ['<|Inner Thoughts|>: I add.<eot>\n<|Commands|>: Calculate("12*12")', " It is 144."]
    found = steps(model, [calculator()], "moss", chat_template="moss_sft")
    assert shape(found) == [
        ("text", "I add."), ("call", 'Calculate {"input": "12*12"}'), ("result", "144"), ("text", " It is 144."),
    ]  # fmt: skip
    (path, first), (_, second) = model.asked
    assert path == "/v1/completions"
    assert first["prompt"].endswith("<|Human|>: What is 12*12?<eoh>\n")
    assert "chat_template" not in first
    assert first["stop"] == ["<eoc>"]
    assert second["prompt"].endswith('<|Results|>:\nCalculate("12*12") =>\n144\n<eor>\n<|MOSS|>:')
    assert second["stop"][0] == "<eom>"


def test_moss_that_needs_no_tool_answers_and_its_thoughts_are_not_shown(model: Model) -> None:
    model.lines = ["<|Inner Thoughts|>: None<eot>\n<|Commands|>: None", " Hello."]
    found = steps(model, [calculator()], "moss")
    assert shape(found) == [("text", " Hello.")]
    assert model.asked[1][1]["prompt"].endswith("<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n<|MOSS|>:")
    assert found[-1].messages == ({"role": "assistant", "content": " Hello."},)


def test_refusals_are_results_the_model_reads(model: Model) -> None:
    model.lines = [
        [Call("calculate", '{"expression": "1/0"}'), Call("nothing", "{}"), Call("calculate", "{broken")],
        "I cannot.",
    ]
    results = [step for step in steps(model, [calculator()]) if step.kind == "result"]
    assert all(step.failed for step in results)
    assert [step.text for step in results] == [
        "calculate: this divides by zero",
        "there is no tool 'nothing'; there are: calculate",
        "the arguments are not valid JSON",
    ]
    assert model.asked[1][1]["messages"][-1]["content"] == "the arguments are not valid JSON"


def test_the_loop_ends_whatever_the_model_does(model: Model) -> None:
    model.lines = [*([[Call("calculate", '{"expression": "1"}')]] * ROUNDS), "Enough."]
    found = steps(model, [calculator()])
    assert sum(step.kind == "result" for step in found) == ROUNDS
    assert shape(found)[-1] == ("text", "Enough.")
    assert ["tools" in body for _, body in model.asked] == [True] * ROUNDS + [False]
    assert found[-1].kind == "end"


def test_too_many_calls_at_once_are_not_carried_out(model: Model) -> None:
    used: list[dict[str, Any]] = []
    tool = Tool("count", "", {"type": "object", "properties": {}}, lambda given: str(used.append(given)))
    model.lines = [[Call("count", "{}")] * (MOST_CALLS + 3), "Done."]
    results = [step for step in steps(model, [tool]) if step.kind == "result"]
    assert len(used) == MOST_CALLS
    assert [step.failed for step in results] == [False] * MOST_CALLS + [True] * 3


def test_a_refusal_of_the_server_is_told(model: Model) -> None:
    model.lines = [400]
    with pytest.raises(ChatError, match="tools: no place for them"):
        steps(model, [calculator()])


@pytest.mark.parametrize("protocol", ["native", "react"])
def test_closing_the_loop_stops_the_answer(model: Model, protocol: Protocol) -> None:
    model.lines = ["for ever"]

    async def begin() -> None:
        async with aclosing(tool_loop.run(Asked(model.url, "tuned"), QUESTION, [calculator()], protocol)) as going:
            async for step in going:
                if step.text:
                    return

    asyncio.run(begin())
    assert model.gone.wait(60), "the server notices that nobody reads any more"


def test_a_tool_that_breaks_off_does_not_end_the_conversation(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_: dict[str, Any]) -> str:
        raise ZeroDivisionError

    model.lines = [[Call("broken", "{}")], "Sorry."]
    found = steps(model, [Tool("broken", "", {"type": "object", "properties": {}}, broken)])
    assert shape(found)[1:] == [("result", "broken: it broke off (ZeroDivisionError)"), ("text", "Sorry.")]
    assert "ZeroDivisionError" in capsys.readouterr().err, "the log has the whole story"


def test_how_a_served_model_writes_calls(model: Model) -> None:
    assert tool_style_at(model.url, "tuned") == "hermes"
    assert tool_style_at(model.url, "other") == ""
