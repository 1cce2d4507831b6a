"""The loop of calls and results, over a server that plays a model, in each of the three protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from studio import tool_loop
from studio.chat_client import ChatError
from studio.tool_calls import Call
from studio.tool_loop import MOST_CALLS, ROUNDS, Asked, Step, tool_style_at
from studio.tool_protocols import Protocol
from studio.tools import Tool
from studio.tools.calculator import calculator
from tests.scripted_model import FOR_EVER, ScriptedModel

QUESTION = [{"role": "user", "content": "What is 12*12?"}]


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    server = ScriptedModel()
    yield server
    server.shutdown()
    server.server_close()


def steps(model: ScriptedModel, tools: list[Tool], protocol: Protocol = "native", **options: Any) -> list[Step]:
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


def test_native_calls_are_carried_out_and_the_model_goes_on(model: ScriptedModel) -> None:
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


def test_without_tools_it_is_a_plain_answer(model: ScriptedModel) -> None:
    model.lines = ["Hello."]
    found = steps(model, [])
    assert shape(found) == [("text", "Hello.")]
    assert found[-1].messages == ({"role": "assistant", "content": "Hello."},)
    assert "tools" not in model.asked[0][1]


def test_react_calls_are_read_from_text(model: ScriptedModel) -> None:
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


def test_moss_thinks_commands_and_answers(model: ScriptedModel) -> None:
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


def test_moss_that_needs_no_tool_answers_and_its_thoughts_are_not_shown(model: ScriptedModel) -> None:
    model.lines = ["<|Inner Thoughts|>: None<eot>\n<|Commands|>: None", " Hello."]
    found = steps(model, [calculator()], "moss")
    assert shape(found) == [("text", " Hello.")]
    assert model.asked[1][1]["prompt"].endswith("<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n<|MOSS|>:")
    assert found[-1].messages == ({"role": "assistant", "content": " Hello."},)


def test_refusals_are_results_the_model_reads(model: ScriptedModel) -> None:
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


def test_the_loop_ends_whatever_the_model_does(model: ScriptedModel) -> None:
    model.lines = [*([[Call("calculate", '{"expression": "1"}')]] * ROUNDS), "Enough."]
    found = steps(model, [calculator()])
    assert sum(step.kind == "result" for step in found) == ROUNDS
    assert shape(found)[-1] == ("text", "Enough.")
    assert ["tools" in body for _, body in model.asked] == [True] * ROUNDS + [False]
    assert found[-1].kind == "end"


def test_too_many_calls_at_once_are_not_carried_out(model: ScriptedModel) -> None:
    used: list[dict[str, Any]] = []
    tool = Tool("count", "", {"type": "object", "properties": {}}, lambda given: str(used.append(given)))
    model.lines = [[Call("count", "{}")] * (MOST_CALLS + 3), "Done."]
    results = [step for step in steps(model, [tool]) if step.kind == "result"]
    assert len(used) == MOST_CALLS
    assert [step.failed for step in results] == [False] * MOST_CALLS + [True] * 3


def test_a_model_that_repeats_its_calls_does_not_fill_the_conversation(model: ScriptedModel) -> None:
    tool = Tool("count", "", {"type": "object", "properties": {}}, lambda given: "1")
    model.lines = [*[[Call("count", "{}")] * 40] * ROUNDS, "Done."]
    found = steps(model, [tool])
    assert sum(step.kind == "call" for step in found) == sum(step.kind == "result" for step in found)
    assert len(found[-1].messages) <= 100  # what the chat page takes back
    assert all(len(body["messages"]) <= 100 for _, body in model.asked)


def test_a_refusal_of_the_server_is_told(model: ScriptedModel) -> None:
    model.lines = [400]
    with pytest.raises(ChatError, match="tools: no place for them"):
        steps(model, [calculator()])


@pytest.mark.parametrize("protocol", ["native", "react"])
def test_closing_the_loop_stops_the_answer(model: ScriptedModel, protocol: Protocol) -> None:
    model.lines = [FOR_EVER]

    async def begin() -> None:
        async with aclosing(tool_loop.run(Asked(model.url, "tuned"), QUESTION, [calculator()], protocol)) as going:
            async for step in going:
                if step.text:
                    return

    asyncio.run(begin())
    assert model.gone.wait(60), "the server notices that nobody reads any more"


def test_a_tool_that_breaks_off_does_not_end_the_conversation(
    model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: dict[str, Any]) -> str:
        raise ZeroDivisionError

    model.lines = [[Call("broken", "{}")], "Sorry."]
    found = steps(model, [Tool("broken", "", {"type": "object", "properties": {}}, broken)])
    assert shape(found)[1:] == [("result", "broken: it broke off (ZeroDivisionError)"), ("text", "Sorry.")]
    assert "ZeroDivisionError" in capsys.readouterr().err, "the log has the whole story"


def test_how_a_served_model_writes_calls(model: ScriptedModel) -> None:
    assert tool_style_at(model.url, "tuned") == "hermes"
    assert tool_style_at(model.url, "other") == ""
