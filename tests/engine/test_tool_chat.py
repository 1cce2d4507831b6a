"""Tools through the real chat server and its client; the model behind it says what the test wrote down."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import uvicorn

from studio import tool_loop
from studio.engine.chat_api import Service, build_app
from studio.engine.dialogue import ModelFacts, Piece, Request
from studio.records.template_names import named_template
from studio.tool_loop import Asked, Step, protocol_of_style, tool_style_at
from studio.tools.calculator import calculator

QUESTION = [{"role": "user", "content": "What is 12*12?"}]


class Answering:
    """An answer under way."""

    dropped = 0

    def cancel(self) -> None:
        """It is over already."""


class Scripted(Service):
    """A service and the backend behind it; each line is an answer, in pieces of three characters."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.asked: list[Request] = []
        self.template = ""

    def health(self) -> dict[str, object]:
        return {"state": "ready"}

    def backend(self) -> Any:
        return self

    @property
    def models(self) -> Sequence[str]:
        return ["tuned"]

    def facts(self, model: str) -> ModelFacts:
        del model
        return ModelFacts(self.template, None, 4096)

    def begin(self, request: Request, emit: Callable[[Piece], None]) -> Answering:
        self.asked.append(request)
        line = self.lines.pop(0)
        for at in range(0, len(line), 3):
            emit(Piece(line[at : at + 3]))
        emit(Piece(finish="stop", prompt_tokens=9, completion_tokens=len(line)))
        return Answering()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Scripted, str]]:
    """The server, and its address."""
    service = Scripted()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(service, host="127.0.0.1"), log_level="warning", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield service, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


def answered(served: tuple[Scripted, str], template: str, *lines: str) -> list[Step]:
    """The steps of an answer by a model of that template."""
    service, url = served
    service.lines, service.asked, service.template = list(lines), [], template
    protocol = protocol_of_style(tool_style_at(url, "tuned"))

    async def collect() -> list[Step]:
        asked = Asked(url, "tuned", {"temperature": 0, "truncation": "auto", "max_tokens": 100})
        return [step async for step in tool_loop.run(asked, QUESTION, [calculator()], protocol)]

    return asyncio.run(collect())


def told(found: list[Step]) -> tuple[str, list[str]]:
    """The text of the last answer, and the results."""
    return str(found[-1].messages[-1]["content"]), [step.text for step in found if step.kind == "result"]


CALL = '{"name": "calculate", "arguments": {"expression": "12*12"}}'


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (named_template("chatml").source, f"<tool_call>\n{CALL}\n</tool_call>"),
        ("[AVAILABLE_TOOLS]{{ tools }}", f"[TOOL_CALLS] [{CALL}]"),
        ("Environment: ipython {{ tools }}", CALL.replace("arguments", "parameters")),
        (
            "{{ tools }}<|plugin|>",
            f"I look.<|action_start|><|plugin|>\n{CALL.replace('arguments', 'parameters')}<|action_end|>",
        ),
    ],
)
def test_a_template_that_writes_tools(served: tuple[Scripted, str], template: str, line: str) -> None:
    found = answered(served, template, line, "It is 144.")
    assert told(found) == ("It is 144.", ["144"])
    service, _ = served
    first, second = service.asked
    assert [tool["function"]["name"] for tool in first.tools] == ["calculate"]
    question, call, result = second.turns
    assert (question.role, call.role, result.role) == ("user", "assistant", "tool")
    assert (call.tool_calls[0].name, result.content) == ("calculate", "144")
    assert result.tool_call_id == call.tool_calls[0].id
    shown = "".join(step.text for step in found if step.kind == "text")
    assert shown == ("I look." if line.startswith("I look") else "") + "It is 144.", "a call is never shown as text"
    assert [step.delta.usage for step in found if step.delta.usage]


def test_a_template_without_tools_is_asked_in_plain_text(served: tuple[Scripted, str]) -> None:
    lines = ('Thought: I need it.\nAction: calculate\nAction Input: {"expression": "12*12"}', "Final Answer: 144")
    assert told(answered(served, named_template("vicuna").source, *lines)) == ("Final Answer: 144", ["144"])
    service, _ = served
    assert not service.asked[0].tools
    assert [turn.role for turn in service.asked[1].turns] == ["system", "user", "assistant", "user"]
    assert service.asked[1].turns[-1].content == "Response: 144"


def test_moss_is_asked_as_one_text(served: tuple[Scripted, str]) -> None:
    thoughts = '<|Inner Thoughts|>: I count.<eot>\n<|Commands|>: Calculate("12*12")'
    assert told(answered(served, named_template("moss_sft").source, thoughts, "144.")) == ("144.", ["144"])
    service, _ = served
    assert str(service.asked[0].prompt).endswith("<|Human|>: What is 12*12?<eoh>\n")
    assert service.asked[0].sampling.stop == ("<eoc>",)
    assert str(service.asked[1].prompt).endswith('Calculate("12*12") =>\n144\n<eor>\n<|MOSS|>:')


def test_an_adapter_of_the_notes_under_another_template_is_understood(served: tuple[Scripted, str]) -> None:
    """It writes what it was trained on, whatever it is offered."""
    for line in ("Thought: hm\nAction: calculate\nAction Input: 12*12\n", '<|Commands|>: Calculate("12*12")'):
        found = answered(served, named_template("chatml").source, line, "It is 144.")
        assert told(found) == ("It is 144.", ["144"])
