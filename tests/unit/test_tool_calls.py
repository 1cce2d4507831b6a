"""Calls of tools as families of models write them, whole and in pieces; and the two ways of writing them in text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from studio.records.template import ChatTemplate
from studio.records.template_names import named_template
from studio.tool_calls import ID_LENGTH, LONGEST, Call, CallReader, parse, style_of
from studio.tool_protocols import moss_prompt, moss_thought, moss_without_commands, protocol_of, react_messages

CITY = {"city": "上海"}
J = json.dumps(CITY, ensure_ascii=False)
W: list[tuple[str, dict[str, Any]]] = [("weather", CITY)]
ANSWERS: list[tuple[str, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("hermes", f'I look.\n<tool_call>\n{{"name": "weather", "arguments": {J}}}\n</tool_call>', "I look.", W),
    ("hermes", f'<tool_call>{{"name": "a", "arguments": {J}}}</tool_call>\n<tool_call>{{"name": "b"}}', "",
     [("a", CITY), ("b", {})]),
    ("hermes", "<tool_call>\n<function=weather>\n"
     "<parameter=city>\n上海\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
     "</function>\n</tool_call>", "", [("weather", {"city": "上海", "days": 3})]),
    ("hermes", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>上海</arg_value>\n</tool_call>", "", W),
    ("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {J}, "id": "123456789"}}]', "", W),
    ("mistral", f'[TOOL_CALLS]weather[ARGS]{J}[TOOL_CALLS]clock[ARGS]{{}}', "", [*W, ("clock", {})]),
    ("mistral", f'[{{"name": "weather", "arguments": {J}}}]', "", W),
    ("llama3", f'{{"name": "weather", "parameters": {J}}}', "", W),
    ("llama3", f'<|python_tag|>{{"type": "function", "function": "weather", "parameters": {J}}}; {{"name": "b"}}', "",
     [*W, ("b", {})]),
    ("internlm", f'I look.<|action_start|><|plugin|>\n{{"name": "weather", "parameters": {J}}}<|action_end|>\n',
     "I look.", W),
    ("internlm", f'I look.\n{{"name": "weather", "parameters": {J}}}', "I look.", W),
    ("deepseek", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{J}\n```"
     "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "", W),
    ("deepseek", f"x<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{J}<｜tool▁call▁end｜>"
     "<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜>", "x", [*W, ("b", {})]),
    ("listed", f'<|tool_call|>[{{"name": "weather", "arguments": {J}}}]<|/tool_call|>', "", W),
    ("react", f"Thought: the sky\nAction: weather\nAction Input: {J}\nResponse: invented\nFinal Answer: no",
     "Thought: the sky", W),
    ("react", "思考\nAction：weather\nAction Input：上海", "思考", [("weather", {"input": "上海"})]),
    ("react", "Action: [calculate]\nAction Input:\n```json\n{\"expression\": \"1+1\"}\n```\nObservation: 3", "",
     [("calculate", {"expression": "1+1"})]),
    ("moss", '<|Inner Thoughts|>: hm<eot>\n<|Commands|>: Search("tea (green)"), Calculate("(2+3)*4")<eoc>\n',
     "<|Inner Thoughts|>: hm<eot>", [("Search", {"input": "tea (green)"}), ("Calculate", {"input": "(2+3)*4"})]),
    ("moss", "<|Commands|>: Say('it\\'s (fine)' ), Ask(what's up), Broken(", "",
     [("Say", {"input": "it's (fine)"}), ("Ask", {"input": "what's up"})]),
    ("moss", "<|Commands|>: Calculate((2+3)*4)", "", [("Calculate", {"input": "(2+3)*4"})]),
]  # fmt: skip


def read(found: tuple[str, list[Call]]) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    return found[0], [(call.name, json.loads(call.arguments)) for call in found[1]]


@pytest.mark.parametrize(("style", "answer", "said", "calls"), ANSWERS)
def test_calls_are_read_in_each_style(style: str, answer: str, said: str, calls: list[Any]) -> None:
    assert read(parse(answer, style)) == (said, calls)
    ids = [call.id for call in parse(answer, style)[1]]
    assert all(len(one) == ID_LENGTH and one.isalnum() for one in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("style", "answer", "said", "calls"), ANSWERS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_in_pieces_are_the_same_and_never_shown_as_text(
    style: str, answer: str, said: str, calls: list[Any], size: int
) -> None:
    reader = CallReader(style)
    shown = "".join(reader.push(answer[at : at + size]) for at in range(0, len(answer), size))
    rest, found = reader.finish()
    bare_behind_text = style == "internlm" and "<|" not in answer  # cannot be told from text before the end
    assert "weather" not in shown or bare_behind_text
    if not bare_behind_text:
        assert (f"{shown}{rest}".strip(), read((rest, found))[1]) == (said, calls)


@pytest.mark.parametrize(
    "style", ["", "hermes", "mistral", "internlm", "deepseek", "listed", "llama3", "react", "moss"]
)
@pytest.mark.parametrize(
    "answer",
    [
        "Hello!", "", "  \n", "1 < 2 and <tool", "The action: go home.", "[1, 2, 3]", '{"a": 1}', "{not json",
        "[" * 5000, "<tool_call>\n{broken\n</tool_call>", "Action: think", '<tool_call>{"name": 3}</tool_call>',
        "<|Commands|>: None", "x" * (LONGEST + 1),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text_to_the_last_character(style: str, answer: str) -> None:
    assert parse(answer, style) == (answer, [])
    reader = CallReader(style)
    shown = "".join(reader.push(answer[at : at + 7]) for at in range(0, len(answer), 7))
    rest, calls = reader.finish()
    assert not calls
    assert f"{shown}{rest}" == answer


@pytest.mark.parametrize("style", ["hermes", "mistral", "internlm", "deepseek", "listed", "llama3", "react", "moss"])
@pytest.mark.parametrize(
    "line",
    ["Action:" + " " * 9000, "Action: a\nAction Input:" + " \t" * 9000, "<|Commands|>:" + "a" * 30_000,
     "a" * 30_000 + "[ARGS]", "<|Commands|>: a(" + " " * 9000,
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a" + " \n" * 9000, "<tool_call><function=f>" + "<parameter=x>" * 7000,
     "<tool_call>" + "<arg_key>" * 10_000, "<tool_call>f" + "<arg_key>k</arg_key><arg_value>" * 3000,
     "<|Commands|>:" + "a(" * 9000, "<|Commands|>:" + 'a("' * 9000, "[TOOL_CALLS]" + "a " * 9000, "{" * 9000],
)  # fmt: skip
def test_no_answer_takes_long_to_read(style: str, line: str) -> None:
    """Each of these takes minutes with a pattern that tries every division of the text."""
    began = time.process_time()
    parse(line, style)
    assert time.process_time() - began < 5, "seconds of computing, not of waiting"


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    reader = CallReader("hermes")
    assert reader.push("Hel") == "Hel"
    assert reader.push("lo <tool") == "lo "
    assert reader.push("box>") == "<toolbox>"
    reader = CallReader("llama3")
    assert reader.push("Hi {") == "Hi {", "only an answer that begins with JSON can be a call"


def test_moss_and_react_are_known_without_being_told() -> None:
    assert parse("Action: a\nAction Input: {}", "")[1][0].name == "a"
    assert parse('<|Commands|>: Solve("x=1")', "hermes")[1][0].name == "Solve"
    assert parse('{"name": "a", "arguments": {}}', "") == ('{"name": "a", "arguments": {}}', []), (
        "JSON may be an answer"
    )


@pytest.mark.parametrize("name", ["chatml", "internlm2_chat", "qwen_chat"])
def test_what_our_templates_write_is_read_again(name: str) -> None:
    template = ChatTemplate(named_template(name).source, {"bos_token": "", "eos_token": "<end>"})
    call = Call("weather", J)
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call.as_dict()]},
    ]
    rendered = template.render(messages)
    (start, end), *_ = rendered.spans
    answer = rendered.text[start:end].replace("<|im_end|>", "").replace("<end>", "")
    assert style_of(template.source) == "hermes"
    assert protocol_of(template.source) == "native"
    assert read(parse(answer, "hermes")) == ("I look.", [("weather", CITY)])


def test_protocols_by_template() -> None:
    assert protocol_of(named_template("moss_sft").source) == "moss"
    assert protocol_of(named_template("vicuna").source) == "react"
    assert style_of("{{ '[TOOL_CALLS]' }}") == "mistral"
    assert style_of("{%- if tools %}Environment: ipython{%- endif %}") == "llama3"
    assert style_of("<｜tool▁calls▁begin｜>") == "deepseek"


# ---- texts -----------------------------------------------------------------------------------------------------------

TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Works it out.",
        "parameters": {"type": "object", "properties": {"expression": {}}, "required": ["expression"]},
    },
}
CALL = Call("calculate", '{"expression": "1+1"}', "c1").as_dict()
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "hm", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
]


def test_react_puts_tools_into_the_system_prompt_and_results_into_user_turns() -> None:
    first, *rest = react_messages(TALK, [TOOL])
    assert first["role"] == "system"
    assert first["content"].startswith("Be kind.\n\nYou can use tools:\ncalculate: Works it out.")
    assert "[calculate]" in first["content"]
    assert rest == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": 'hm\nAction: calculate\nAction Input: {"expression": "1+1"}'},
        {"role": "user", "content": "Response: 2"},
    ]
    assert react_messages(TALK[1:2], []) == TALK[1:2], "without tools nothing is said of them"


def test_react_turns_alternate_whatever_the_number_of_results() -> None:
    again = {"role": "user", "content": "And 2+2?"}
    roles = [message["role"] for message in react_messages([*TALK, TALK[-1], again], [TOOL])]
    assert roles == ["system", "user", "assistant", "user"]


def test_moss_is_one_text_with_its_marks() -> None:
    assert moss_prompt(TALK[:2], [TOOL]) == (
        "Be kind.\n- Calculator: enabled. API: Calculate(expression)\n<|Human|>: 1+1?<eoh>\n"
    )
    asked = (
        "Be kind.\n<|Human|>: 1+1?<eoh>\n"
        '<|Inner Thoughts|>: hm<eot>\n<|Commands|>: Calculate("1+1")<eoc>\n'
        '<|Results|>:\nCalculate("1+1") =>\n2\n<eor>\n<|MOSS|>:'
    )
    assert moss_prompt(TALK, []) == asked
    answered = [*TALK, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Hi"}]
    assert moss_prompt(answered, []) == f"{asked} Two.<eom>\n<|Human|>: Hi<eoh>\n"
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert moss_prompt(plain, []) == (
        "<|Human|>: Hi<eoh>\n<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|Results|>: None<eor>\n"
        "<|MOSS|>: Hello<eom>\n"
    )


def test_moss_that_commands_nothing_goes_on_to_its_answer() -> None:
    thoughts = "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None"
    assert moss_without_commands("P", thoughts) == f"P{thoughts}<eoc>\n<|Results|>: None<eor>\n<|MOSS|>:"
    assert moss_thought("<|Inner Thoughts|>: I add.<eot>") == "I add."
    assert moss_thought(thoughts) == ""
