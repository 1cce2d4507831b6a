"""What is written in a format reads back as the same records, or is refused with a reason."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from studio.records.conversation import Conversation, Message, PlainText, Record
from studio.records.convert import TARGETS, convert, to_row
from studio.records.formats import ReadOptions, RowError, read_file
from studio.records.places import DATA

ODD = [
    "x", " leading", "trailing ", "\n\n\nlines\n", "\t", "a\r\nb", "\u2028\x85", "＃", "{{ user }}", "{% for %}",
    "<|im_end|>", "### Human: x ### Assistant: y", "\n\nHuman: x", "[Human]: x<eoh>", "<image>", "<nooutput>",
    '{"role": "user"}', "[]", '[{"role": "user", "content": "x"}]', "null", "42", "true", "\\", '"', "'",
    "\\n", "\x01\x7f", "\u202e",
    "👩‍👩‍👧", "你是谁？", "x" * 5000, "None", "NaN", "\ufeffx", "a,b;c", "=1+1", "<script>", "system",
    "\U0010ffff", "e\u0301",
]  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, None, {"b": "\n"}]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def say(role: str, content: str, **more: Any) -> Message:
    return Message(role=role, content=content, **more)  # type: ignore[arg-type]


def talk(*texts: str, system: str | None = None, **more: Any) -> Conversation:
    turns = [say(role, text) for role, text in zip(itertools.cycle(("user", "assistant")), texts, strict=False)]
    return Conversation(messages=tuple([say("system", system)] if system is not None else []) + tuple(turns), **more)


def spoken() -> list[Conversation]:
    """Conversations with every odd text in every place."""
    found = []
    for text in ODD:
        if not text.strip():
            continue
        found += [talk(text, "a"), talk("q", text), talk(text, text, text, text), talk("q", "a", system=text)]
    return found


def again(records: Sequence[Record], to: Any, folder: Path, mapping: str | None = None) -> list[Record]:
    path = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in convert(records, to)]
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    result = read_file(path, ReadOptions(mapping=mapping, allow_placeholders=True))
    assert result.skipped == []
    return result.conversations


@pytest.mark.parametrize("to", TARGETS)
def test_conversations_come_back_as_they_were(to: Any, tmp_path: Path) -> None:
    records = [record for record in spoken() if to != "alpaca" or record.messages[-1].content != "<nooutput>"]
    assert again(records, to, tmp_path) == records


def test_every_kind_of_record_comes_back_from_messages(tmp_path: Path) -> None:
    calling = (
        say("user", "q"),
        say("assistant", "", tool_calls=(CALL,)),
        say("tool", "", name="f", tool_call_id="c1"),
        say("tool", "r"),
        say("assistant", "a"),
    )
    records: list[Record] = [
        Conversation(messages=calling, tools=(TOOL,)),
        Conversation(messages=calling, train=(False, True, False, False, False)),
        Conversation(messages=calling[:2], tools=(TOOL,)),
        talk("<image>\nq", "a", images=("a.png", "b.png")),
        talk("q", "a", rejected=(say("assistant", "b"),)),
        talk("q", "a", "r", "b", system="s", train=(False, False, False, False, True)),
        talk("q", "a", system=""),
        *(PlainText(text=text) for text in ODD if text.strip()),
    ]
    assert again(records, "messages", tmp_path, "messages") == records


def test_plain_texts_come_back(tmp_path: Path) -> None:
    records: list[Record] = [PlainText(text=text) for text in ODD if text.strip()]
    assert again(records, "messages", tmp_path) == records
    assert again(records, "conversation", tmp_path) == records


def test_loss_flags_come_back_from_conversation(tmp_path: Path) -> None:
    records = [talk("q", "a", "r", "b", system="s", train=(False, False, False, False, True)), talk("q", "a")]
    assert again(records, "conversation", tmp_path) == records


@pytest.mark.parametrize(
    ("record", "targets", "reason"),
    [
        (
            Conversation(messages=(say("user", "q"), say("assistant", "", tool_calls=(CALL,)))),
            TARGETS[1:],
            "it has tools",
        ),
        (talk("q", "a", tools=(TOOL,)), TARGETS[1:], "it has tools"),
        (talk("q", "a", images=("a.png",)), TARGETS[1:], "it has images"),
        (talk("q", "a", rejected=(say("assistant", "b"),)), TARGETS[1:], "a rejected answer"),
        (talk("q", "a", "r", "b", train=(False, False, False, True)), ("alpaca",), "kept out of the loss"),
        (talk("q", "<nooutput>"), ("alpaca",), "as no answer"),
        (PlainText(text="x"), ("alpaca",), "no question"),
    ],
)
def test_what_a_format_cannot_say_is_refused(record: Record, targets: Sequence[Any], reason: str) -> None:
    for to in TARGETS:
        if to not in targets:
            assert next(convert([record], to))
            continue
        with pytest.raises(RowError, match=reason):
            next(convert([record], to))


def test_a_blank_system_prompt_is_left_out_where_it_cannot_be_said() -> None:
    record = talk("q", "a", system="")
    assert next(convert([record], "alpaca")) == {"instruction": "q", "input": "", "output": "a"}
    assert next(convert([record], "conversation")) == {"conversation": [{"input": "q", "output": "a"}]}
    assert to_row(record)["messages"][0] == {"role": "system", "content": ""}


def test_conversion_is_a_stream() -> None:
    endless = convert((talk("q", str(number)) for number in itertools.count()), "alpaca")
    assert [next(endless)["output"] for _ in range(3)] == ["0", "1", "2"]


def test_the_examples_convert(tmp_path: Path) -> None:
    for name in ("messages.jsonl", "conversation.json", "alpaca.json", "sharegpt.json", "guanaco.jsonl"):
        records = read_file(DATA / "examples" / name).conversations
        assert again(records, "messages", tmp_path) == records
        assert again(records, "conversation", tmp_path) == records
