"""Every format is recognised by its rows alone, reads as it should, and is never mistaken for another."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio.records.conversation import Conversation, PlainText, Record
from studio.records.errors import DataError
from studio.records.formats import RowError, UnknownColumns, detect, read_file, suggest, to_record, to_row
from studio.records.mappings import load_mappings, parse_mapping
from studio.records.places import DATA

WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SAID = {"from": "human", "value": "q"}
REPLY = {"from": "gpt", "value": "a"}
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def moss_turn(human: str, answer: str, thought: str = "None", command: str = "None", result: str = "None") -> Any:
    return {
        "Human": f"<|Human|>: {human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thought}<eot>\n",
        "Commands": f"<|Commands|>: {command}<eoc>\n",
        "Tool Responses": f"<|Results|>: {result}<eor>\n",
        "MOSS": f"<|MOSS|>: {answer}<eom>\n",
    }


MSAGENT = (
    'One moment. <|startofthink|>```JSON\n{"api_name": "weather", "url": "x", "parameters": {"city": "Oslo"}}\n'
    '```<|endofthink|>\n\n<|startofexec|>```JSON\n{"result": "rain"}\n```<|endofexec|>\nIt rains.'
)

# (row, mapping, what it says as "role: content" joined by " | ")
FORMATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": [USER, ANSWER]}, "messages", "user: q | assistant: a"),
    ({"messages": [USER, ANSWER], "system": "s"}, "messages", "system: s | user: q | assistant: a"),
    ({"messages": json.dumps([USER, ANSWER])}, "messages", "user: q | assistant: a"),
    ({"messages": str([USER, ANSWER])}, "messages", "user: q | assistant: a"),
    ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, "messages",
     "system: s | user: q | assistant: a"),
    ({"messages": [USER, ANSWER], "question": "q", "answer": "a"}, "messages", "user: q | assistant: a"),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **WEATHER}]},
                   {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]}, ANSWER],
      "tools": [{"type": "function", "function": {"name": "weather"}}], "images": ["a.png"]}, "messages",
     "user: q | assistant:  | tool: rain | assistant: a"),
    ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, "conversation",
     "system: s | user: q | assistant: a"),
    ({"conversation": [{"system": "", "input": "", "output": "all of it"}]}, "conversation_text", "text: all of it"),
    ({"instruction": "q", "input": "", "output": "a", "text": "### Human: x"}, "alpaca", "user: q | assistant: a"),
    ({"instruction": "q", "input": "i", "output": "a", "instruction_zh": "问", "input_zh": "入", "output_zh": "答"},
     "alpaca_zh", "user: 问\n入 | assistant: 答"),
    ({"conversations": [SAID, REPLY]}, "sharegpt", "user: q | assistant: a"),
    ({"conversations": [REPLY, SAID, REPLY, SAID]}, "sharegpt", "user: q | assistant: a"),
    ({"conversations": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}], "system": "s"}, "sharegpt",
     "system: s | user: q | assistant: a"),
    ({"conversations": [USER, ANSWER]}, "sharegpt_roles", "user: q | assistant: a"),
    ({"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "q\n<image>"}, REPLY]}, "llava",
     "user: <image>\nq | assistant: a"),
    ({"conversations": str([{"from": "user", "value": "q"}, {"from": "assistant", "value": MSAGENT}])},
     "msagent_react", 'user: q | assistant: One moment. | tool: {"result": "rain"} | assistant: It rains.'),
    ({"text": "### Human: q### Assistant: a### Human: r ### Assistant: b\n### Human: unanswered"}, "guanaco",
     "user: q | assistant: a | user: r | assistant: b"),
    ({"text": "just words"}, "text", "text: just words"),
    ({"chat": {"turn_1": moss_turn("q", "a")}, "meta_instruction": "s\n"}, "moss",
     "system: s | user: q | assistant: a"),
    ({"plain_text": "[Human]: q<eoh> [MOSS]: a<eoa> [Human]: r<eoh> [MOSS]: b<eoa>", "prefix": "s"}, "moss_text",
     "system: s | user: q | assistant: a | user: r | assistant: b"),
    ({"prompt": "q", "completion": "a"}, "prompt_completion", "user: q | assistant: a"),
    ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion", "user: q | assistant: a"),
    ({"prompt": '[{"a": 1}]', "completion": '{"b": 2}'}, "prompt_completion",
     'user: [{"a": 1}] | assistant: {"b": 2}'),
    ({"prompt": "q", "completion": "a", "label": True}, "prompt_label", "user: q | assistant: a"),
    ({"prompt": "q", "response": "a"}, "prompt_response", "user: q | assistant: a"),
    ({"question": "q", "answer": "a"}, "question_answer", "user: q | assistant: a"),
    ({"问题": "q", "答案": "a"}, "question_answer_zh", "user: q | assistant: a"),
    ({"question": "q", "context": "c", "answer": "a"}, "question_context", "user: c\nq | assistant: a"),
    ({"question": "q", "response": "a"}, "question_response", "user: q | assistant: a"),
    ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, "openorca",
     "system: s | user: q | assistant: a"),
    ({"input": "q", "output": "a"}, "default", "user: q | assistant: a"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference", "user: q | assistant: a | rejected: b"),
    ({"prompt": "q", "chosen": '{"a": 1}', "rejected": "b"}, "preference",
     'user: q | assistant: {"a": 1} | rejected: b'),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "b"}]}, "preference",
     "user: q | assistant: a | rejected: b"),
    ({"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}],
      "messages": [USER, ANSWER]}, "preference", "user: q | assistant: a | rejected: b"),
    ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "preference",
     "user: q | assistant: a | rejected: b"),
    ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}, "preference",
     "user: q | assistant: a | rejected: b"),
    ({"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"}, "preference_alpaca",
     "user: q\ni | assistant: a | rejected: b"),
    ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "preference_question",
     "system: s | user: q | assistant: a | rejected: b"),
    ({"conversations": [SAID], "chosen": REPLY, "rejected": {"from": "gpt", "value": "b"}}, "preference_sharegpt",
     "user: q | assistant: a | rejected: b"),
]  # fmt: skip
WITH_SYSTEM: list[tuple[dict[str, Any], str, str]] = [
    ({"question": "How many?", "context": "CREATE TABLE t (a INT)", "answer": "SELECT count(*) FROM t"}, "sql",
     "CREATE TABLE t (a INT)\nHow many?"),
    ({"description": "like moss", "color": "#556b2f"}, "colors", "like moss"),
    ({"id": "1", "authors": "x", "abstract": "We show", "title": "On y"}, "arxiv", "We show"),
]  # fmt: skip


def said(record: Record) -> str:
    if isinstance(record, PlainText):
        return f"text: {record.text}"
    turns = [f"{m.role}: {m.content}" for m in record.messages]
    return " | ".join([*turns, *(f"rejected: {m.content}" for m in record.rejected)])


def chat(row: dict[str, Any], mapping: str | None = None) -> Conversation:
    record = to_record(row, parse_mapping(mapping) if mapping else detect([row], "x"))
    assert isinstance(record, Conversation)
    return record


def reason(row: dict[str, Any], mapping: str) -> str:
    with pytest.raises(RowError) as caught:
        to_record(row, parse_mapping(mapping))
    return str(caught.value)


@pytest.mark.parametrize(("row", "name", "expected"), FORMATS, ids=[f"{i}-{f[1]}" for i, f in enumerate(FORMATS)])
def test_formats(row: dict[str, Any], name: str, expected: str) -> None:
    mapping = detect([row] * 3, "x")
    assert mapping.name == name
    assert said(to_record(row, mapping)) == expected


@pytest.mark.parametrize(("row", "name", "question"), WITH_SYSTEM, ids=[name for _, name, _ in WITH_SYSTEM])
def test_task_formats_bring_their_system_prompt(row: dict[str, Any], name: str, question: str) -> None:
    assert detect([row], "x").name == name
    messages = chat(row).messages
    assert messages[0].role == "system"
    assert len(messages[0].content) > 20
    assert messages[1].content == question
    assert chat({**row, "context": "some text"}).messages[0].role == "user" if name == "sql" else True


def test_every_detectable_mapping_is_tested() -> None:
    tested = {name for _, name, _ in [*FORMATS, *WITH_SYSTEM]}
    assert tested == {mapping.name for mapping in load_mappings() if mapping.detect}


def test_the_rows_of_one_format_never_become_another() -> None:
    """Neither order nor a minority of other rows changes what a file is."""
    for row, name, _ in FORMATS:
        if name not in ("llava", "msagent_react", "messages", "sharegpt", "text"):
            assert detect([{"text": "words"}, row, row, row], "x").name == name


def test_a_refinement_takes_the_rows_of_what_it_refines() -> None:
    image = {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nq"}, REPLY]}
    assert detect([image, {"conversations": [SAID, REPLY]}, {"conversations": [SAID, REPLY]}], "x").name == "llava"
    assert detect([{"text": "a"}, {"text": "b"}, {"messages": [USER, ANSWER]}], "x").name == "messages"
    assert detect([{"text": "a"}] * 30 + [{"messages": [USER, ANSWER]}], "x").name == "text"
    assert said(to_record({"text": "a"}, parse_mapping("messages"))) == "text: a"


def test_guanaco_needs_more_than_a_mention(tmp_path: Path) -> None:
    rows = [{"text": "words"}] * 8 + [{"text": "### Human: q ### Assistant: a"}]
    assert detect(rows, "x").name == "text"


def test_capital_headings_are_found_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Question , ANSWER\nq,a\nr,b\n", encoding="utf-8")
    result = read_file(path)
    assert result.format == "question_answer"
    assert [said(record) for record in result.conversations] == ["user: q | assistant: a", "user: r | assistant: b"]


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("sharegpt.json", "sharegpt", 3),
        ("guanaco.jsonl", "guanaco", 3),
        ("preference.jsonl", "preference", 3),
        ("tools.jsonl", "messages", 3),
        ("text.txt", "text", 1),
        ("table.csv", "question_answer", 4),
    ],
)
def test_the_examples(name: str, kind: str, rows: int) -> None:
    result = read_file(DATA / "examples" / name)
    assert (result.format, len(result.conversations), result.skipped, result.warnings) == (kind, rows, [], [])


def test_openai_tools_in_all_spellings() -> None:
    calling = [
        {"content": None, "tool_calls": [{"id": "c1", **WEATHER}]},
        {"content": "", "tool_calls": json.dumps([{"id": "c1", **WEATHER}])},
        {"tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
    ]
    tool = {"name": "weather", "parameters": {}}
    for call in calling:
        for tools in ({"tools": [{"type": "function", "function": tool}]}, {"functions": [tool]},
                      {"tools": json.dumps([tool])}):  # fmt: skip
            rows = [USER, {"role": "assistant", **call}, {"role": "tool", "tool_call_id": "c1", "content": "rain"}]
            found = chat({"messages": [*rows, ANSWER], **tools})
            assert found.messages[1].tool_calls == ({"id": "c1", **WEATHER},)
            assert found.messages[2].tool_call_id == "c1"
            assert found.tools == ({"type": "function", "function": tool},)
            assert found.trained == (False, True, False, True)


def test_function_calls_of_the_old_api_and_of_sharegpt() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    result = {"role": "function", "name": "weather", "content": "rain"}
    old = chat({"messages": [USER, call, result, ANSWER]})
    assert (old.messages[1].tool_calls, old.messages[2].role, old.messages[2].name) == ((WEATHER,), "tool", "weather")
    turns = [
        SAID,
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "rain"},
        REPLY,
    ]
    sharegpt = chat({"conversations": turns, "tools": '[{"name": "weather"}]'})
    assert sharegpt.messages[1].tool_calls == (WEATHER,)
    assert sharegpt.tools == ({"type": "function", "function": {"name": "weather"}},)
    assert "not an object with 'name'" in reason(
        {"conversations": [SAID, {"from": "function_call", "value": "weather please"}, REPLY]}, "sharegpt"
    )


def test_moss_plugins_carry_no_loss() -> None:
    turns = {
        "turn_2": moss_turn("r", "b"),
        "turn_1": moss_turn("q", "a", "look it up", 'Search("tea, green"), Calculate("2+3")', "1. tea 2. 5"),
        "turn_10": moss_turn("s", "c", "no need"),
    }
    found = chat({"chat": turns})
    assert [m.content for m in found.messages] == ["q", "look it up", "1. tea 2. 5", "a", "r", "b", "s", "c"]
    calls = [call["function"] for call in found.messages[1].tool_calls]
    assert calls == [
        {"name": "Search", "arguments": {"input": "tea, green"}},
        {"name": "Calculate", "arguments": {"input": "2+3"}},
    ]
    assert found.trained[:4] == (False, True, False, True)


def test_parts_and_images() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "What "},
        {"type": "text", "text": "is it?"},
    ]
    found = chat({"messages": [{"role": "user", "content": parts}, ANSWER]})
    assert found.messages[0].content == "<image>\n<image>\nWhat is it?"
    assert found.images == ("a.png", "b.png")
    listed = chat({"messages": [USER, ANSWER], "images": ["a.png", {"path": "b.png"}]})
    assert listed.images == ("a.png", "b.png")
    sound = [{"type": "input_audio", "input_audio": {}}]
    assert "only text and image" in reason({"messages": [{"role": "user", "content": sound}, ANSWER]}, "messages")
    assert "no path" in reason({"messages": [USER, ANSWER], "images": [{"bytes": "x"}]}, "messages")


def test_llava_image_only() -> None:
    row = {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nTell me."}, REPLY]}
    assert said(chat(row, "llava_image_only")) == "user: <image> | assistant: a"
    assert chat(row, "llava_image_only").images == ("a.jpg",)


def test_weight_and_loss() -> None:
    for off in ({"weight": 0}, {"weight": 0.0}, {"loss": False}, {"loss": "False"}, {"loss": 0}):
        found = chat({"messages": [USER, {**ANSWER, **off}, USER, {**ANSWER, "weight": 1}]})
        assert found.trained == (False, False, False, True)
    assert "not true or false" in reason({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "messages")


def test_a_prompt_of_messages_carries_no_loss() -> None:
    found = chat({"prompt": [USER, ANSWER, USER], "completion": [{"role": "assistant", "content": "b"}]})
    assert found.trained == (False, False, False, True)


def test_bad_answers_are_left_out() -> None:
    assert "marks it as a bad answer" in reason({"prompt": "q", "completion": "a", "label": False}, "prompt_label")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "'chosen' is null"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "'chosen' is a number (3), not text; put it in quotes"),
        ({"chosen": [USER, ANSWER], "rejected": [{"role": "user", "content": "other"}, ANSWER]}, "the same question"),
        ({"prompt": "q", "chosen": "a", "rejected": [USER]}, "the same question"),
        ({"prompt": "q", "chosen": "a", "rejected": ["x"]}, "message 1 is text, not an object"),
    ],
)
def test_faults_of_preference_pairs(row: dict[str, Any], expected: str) -> None:
    assert expected in reason(row, "preference")


@pytest.mark.parametrize(
    ("row", "mapping", "expected"),
    [
        ({"question": "q", "answer": None}, "question_answer", "'answer' is null; write the text or delete the row"),
        ({"question": "q", "answer": " "}, "question_answer", "'answer' is empty; write the answer or delete the row"),
        ({"question": "", "answer": "a"}, "question_answer", "'question' is empty; write the question or delete"),
        ({"question": "q", "answer": 42}, "question_answer", "'answer' is a number (42), not text; put it in quotes"),
        ({"question": "q", "answer": True}, "question_answer", "'answer' is true, not text; put it in quotes"),
        ({"question": "q", "answer": ["a"]}, "question_answer", "'answer' is a list, not text"),
        ({"question": "q"}, "question_answer", "the column 'answer' is missing; it has 'question'"),
        ({"messages": {"role": "user"}}, "messages", "'messages' is an object, not a list"),
        ({"messages": [[USER, ANSWER]]}, "messages", "message 1 is a list, not an object"),
        ({"messages": [ANSWER, USER]}, "messages", "message 1 should be from the user but is from the assistant"),
        ({"messages": [USER, USER, ANSWER]}, "messages", "message 2 should be from the assistant"),
        ({"messages": [USER, {"role": "assistant", "content": 4.5}]}, "messages", "'content' of message 2 is a number"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": 1}]}]}, "messages", "the tool call of mess"),
        ({"messages": [USER, ANSWER], "tools": [{"x": 1}]}, "messages", "tool 1 of 'tools' has no 'name'"),
        ({"messages": [USER, ANSWER], "tools": [{"name": "\ud800"}]}, "messages", "surrogate"),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f", "x": float("nan")}]}, "messages", "JSON does not know"),
        ({"messages": [USER, ANSWER] * 5001}, "messages", "more than 10,000 messages"),
        ({"conversation": [{"input": "q", "output": 7}]}, "conversation", "'output' of turn 1 is a number (7)"),
        ({"conversation": [{"input": "q"}]}, "conversation", "turn 1 has no 'output'"),
        ({"conversation": [{"input": "", "output": "a"}]}, "conversation", "message 1 (user) is empty"),
        ({"conversations": [SAID]}, "sharegpt", "it has no question with an answer"),
        ({"conversations": [SAID, SAID, REPLY]}, "sharegpt", "message 2 should be from the assistant"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "sharegpt", "role 'narrator'"),
        ({"text": "no marks"}, "guanaco", "no speaker is marked"),
        ({"text": "### Human: q ### Assistant: "}, "guanaco", "no question with an answer"),
        ({"text": " \n"}, "text", "the text is empty"),
        ({"text": "a\x00b"}, "text", "NUL"),
        ({"chat": [1]}, "moss", "'chat' is a list, not an object of turns"),
        ({"chat": {"turn_1": {"Human": "x"}}}, "moss", "turn 1 has no 'MOSS'"),
        ({"conversations": [SAID, {"from": "gpt", "value": "<|startofthink|>x<|endofthink|>"}]}, "msagent_react",
         "not a JSON object with 'api_name'"),
    ],
)  # fmt: skip
def test_faults_are_reasons(row: dict[str, Any], mapping: str, expected: str) -> None:
    assert expected in reason(row, mapping)


def test_unknown_columns_are_handed_over() -> None:
    with pytest.raises(UnknownColumns) as caught:
        detect([{"frage": "q", "antwort": "a"}], "x.csv")
    assert caught.value.columns == ("frage", "antwort")
    assert "x.csv has the columns 'frage', 'antwort'" in caught.value.message
    assert caught.value.message.endswith((".", "?"))
    assert len(caught.value.message) < 1500


def test_rows_that_are_no_objects() -> None:
    with pytest.raises(DataError, match="no JSON objects, but a number"):
        detect([1, 2], "x")


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        (["问题", "答案", "来源"], [], {"instruction": "问题", "output": "答案"}),
        (["指令", "输入", "输出"], [], {"instruction": "指令", "input": "输入", "output": "输出"}),
        (["System Prompt", "User", "Reply"], [], {"system": "System Prompt", "instruction": "User", "output": "Reply"}),
        (["内容", "日期"], [], {"text": "内容"}),
        (["frage", "n", "antwort"], [{"frage": "short", "n": "12", "antwort": "a much longer text"}],
         {"instruction": "frage", "output": "antwort"}),
        (["n", "words"], [{"n": "1,200", "words": "some words"}, {"n": "7", "words": "more"}], {"text": "words"}),
        (["x"], [{"x": None}], {}),
        ([], [], {}),
    ],
)  # fmt: skip
def test_suggestions(columns: list[str], rows: list[dict[str, Any]], expected: dict[str, str]) -> None:
    assert suggest(columns, rows) == expected


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a row."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


HARM: list[Any] = [
    None, "", " ", 0, 1.5, True, [], {}, [[]], [None], {"": None}, "[", "[[", "{'a': 1}", "[]", '[{"role": 1}]', "\x00",
    "\ud800", "user", "system", "tool", "assistant", "call", [{"type": "text"}], {"function": {}}, b"x",
    10**30, "(" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({name for _, name, _ in FORMATS}))
def test_damaged_rows_are_records_or_reasons(name: str) -> None:
    outcomes = set()
    for row in [row for row, found, _ in FORMATS if found == name]:
        for number, harm in itertools.product(range(len(list(places(row)))), HARM):
            damaged = copy.deepcopy(row)
            place, key = list(places(damaged))[number]
            place[key] = harm
            with contextlib.suppress(DataError):
                detect([damaged], "x")
            outcomes.add(outcome(damaged, name))
    assert outcomes <= {"reason", "record"}
    assert "reason" in outcomes


def outcome(row: dict[str, Any], name: str) -> str:
    try:
        record = to_record(row, parse_mapping(name))
    except RowError as error:
        said_why = str(error)
        said_why.encode()
        return "reason" if "\n" not in said_why else "more than a clause"
    json.dumps(to_row(record), ensure_ascii=False).encode()
    return "record"


def test_empty_objects_are_not_what_a_file_is_judged_by() -> None:
    with pytest.raises(UnknownColumns, match="a.json holds an empty object"):
        detect([{}], "a.json")
    with pytest.raises(UnknownColumns, match="has the columns 'frage', 'antwort'"):
        detect([{}, {"frage": "a", "antwort": "b"}], "a.json")
