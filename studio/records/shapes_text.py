"""Conversations written into texts: marks of speakers inside one text (guanaco, MOSS) and MOSS with plugins."""

from __future__ import annotations

import re
from typing import Any

from studio.records.cells import RowError, kind_of, text
from studio.records.conversation import Conversation
from studio.records.draft import Draft
from studio.records.mappings import Mapping
from studio.records.shapes_chat import call_of

_HEAD = re.compile(r"\A\s*<\|[^|]{1,40}\|>:?")
_END = re.compile(r"\s*<eo\w>\s*\Z")
_COMMAND = re.compile(r"(\w+)\((.*?)\)\s*(?:,(?=\s*\w+\()|\Z)", re.DOTALL)


def from_tagged(row: dict[str, Any], mapping: Mapping) -> Conversation:
    """Column text with the speakers' marks in it; maybe system."""
    draft = Draft(mapping)
    add_tagged(draft, text(row, mapping.column("text")))
    draft.add_system(text(row, mapping.column("system"), optional=True))
    return draft.finish()


def add_tagged(draft: Draft, content: str) -> None:
    """Adds the turns of a text; what stands before the first mark is the system prompt. Raises RowError."""
    mapping = draft.mapping
    roles = {tag.strip(): role for tag, role in mapping.tags.items()}
    before, *rest = mapping.tag_pattern.split(content)
    if not rest:
        raise RowError(f"no speaker is marked in it; expected {' or '.join(roles)}")
    draft.add_system(before.strip())
    for tag, said in zip(rest[::2], rest[1::2], strict=True):
        draft.add(roles[tag.strip()], _without_end(said, mapping.ends))


def _without_end(said: str, ends: tuple[str, ...]) -> str:
    found = said.strip()
    for end in ends:
        found = found.removesuffix(end).rstrip()
    return found


def from_moss(row: dict[str, Any], mapping: Mapping) -> Conversation:
    """Column chat: {"turn_1": {"Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS"}, ...}; maybe system.

    A thought is what the assistant says while it calls; a thought without a command is left out.
    """
    chat = row[mapping.column("chat")]
    if not isinstance(chat, dict):
        raise RowError(f"'{mapping.column('chat')}' is {kind_of(chat)}, not an object of turns")
    draft = Draft(mapping)
    draft.add_system(text(row, mapping.column("system"), optional=True).strip())
    for number, key in enumerate(sorted(chat, key=_turn_number), 1):
        turn, where = chat[key], f"turn {number}"
        if not isinstance(turn, dict):
            raise RowError(f"{where} is {kind_of(turn)}, not an object")
        draft.add("user", _said(turn, "Human", where))
        command = _said(turn, "Commands", where, optional=True)
        if command:
            thought = _said(turn, "Inner Thoughts", where, optional=True)
            draft.add("assistant", thought, tool_calls=_commands(command))
            draft.add("tool", _said(turn, "Tool Responses", where, optional=True))
        draft.add("assistant", _said(turn, "MOSS", where))
    return draft.finish()


def _said(turn: dict[str, Any], key: str, where: str, *, optional: bool = False) -> str:
    found = _END.sub("", _HEAD.sub("", text(turn, key, where, optional=optional))).strip()
    return "" if optional and found == "None" else found


def _turn_number(key: str) -> tuple[int, str]:
    digits = re.search(r"\d{1,9}\Z", key)
    return (int(digits.group()) if digits else 0, key)


def _commands(command: str) -> tuple[dict[str, Any], ...]:
    """`Search("tea"), Calculate("2+3")` as calls, each with its one argument called input."""
    found = [call_of(name, {"input": given.strip().strip("\"'")}) for name, given in _COMMAND.findall(command)]
    return tuple(found) or (call_of("command", {"input": command}),)
