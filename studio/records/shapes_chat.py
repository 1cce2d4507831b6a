"""Lists of messages in the spellings people have: roles, parts of a content, images, tools and calls."""

from __future__ import annotations

import json
import re
from typing import Any

from studio.records.cells import RowError, flag, kind_of, listed, storable, text, unpacked
from studio.records.conversation import Conversation, Message, broken_text
from studio.records.draft import IMAGE, Draft
from studio.records.errors import shown
from studio.records.mappings import Mapping

CALL = "call"  # the role, in a mapping, of a turn whose whole content is a call as JSON
_PLUGIN = re.compile(
    r"<\|startofthink\|>(?P<call>.*?)<\|endofthink\|>(?:\s*<\|startofexec\|>(?P<result>.*?)<\|endofexec\|>)?", re.DOTALL
)
_FENCE = re.compile(r"\A\s*```\w*|```\s*\Z")


def from_messages(row: dict[str, Any], mapping: Mapping) -> Conversation:
    """A row whose column `messages` is the conversation."""
    draft = Draft(mapping)
    draft.tools = _tools(row, mapping.column("tools")) or _tools(row, mapping.column("functions"))
    for key in ("image", "images"):
        draft.images += _images(row.get(mapping.column(key)), mapping.column(key))
    add_messages(draft, listed(row, mapping.column("messages")))
    draft.add_system(text(row, mapping.column("system"), optional=True))
    if row.get(mapping.columns.get("rejected", "")) is not None:
        draft.rejected = read_messages(listed(row, mapping.column("rejected")), mapping)
    return draft.finish()


def message_list(value: Any, mapping: Mapping) -> list[Any] | None:
    """The messages in a cell that is a list of them, or one, maybe written as text; None for any other cell.

    A text that merely happens to be JSON stays a text.
    """
    found = unpacked(value)
    items = [found] if isinstance(found, dict) else found
    if not isinstance(items, list) or (isinstance(value, str) and not items):
        return None
    keys = {mapping.column("role"), mapping.column("content")}
    is_chat = all(isinstance(item, dict) and keys <= item.keys() for item in items)
    return items if is_chat or not isinstance(value, str) else None


def read_messages(items: list[Any], mapping: Mapping) -> tuple[Message, ...]:
    """The messages of a list. Raises RowError."""
    draft = Draft(mapping)
    add_messages(draft, items)
    return tuple(draft.messages)


def add_messages(draft: Draft, items: list[Any], *, train: bool = True) -> None:
    """Adds the messages of a list; `train=False` keeps all of them out of the loss. Raises RowError."""
    mapping = draft.mapping
    role_key, content_key = mapping.column("role"), mapping.column("content")
    for number, item in enumerate(items, 1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise RowError(f"{where} is {kind_of(item)}, not an object")
        named = text(item, role_key, where)
        role = mapping.roles.get(named) or mapping.roles.get(named.lower()) or named
        trained = train and flag(item, mapping.column("loss"), where) and flag(item, mapping.column("weight"), where)
        if role == CALL:
            draft.add("assistant", "", train=trained, tool_calls=_calls(unpacked(item.get(content_key)), where))
        elif mapping.plugins and role == "assistant":
            _add_plugin_turn(draft, text(item, content_key, where), trained)
        else:
            _add_message(draft, role, item, where, trained)


def _add_message(draft: Draft, role: str, item: dict[str, Any], where: str, trained: bool) -> None:
    more: dict[str, Any] = {}
    if role == "assistant":
        calls = item.get("tool_calls") or item.get("function_call")
        if calls:
            more["tool_calls"] = _calls(unpacked(calls), where)
    for key in ("name", "tool_call_id"):
        value = item.get(key)
        if isinstance(value, str):
            storable(value, f"'{key}' of {where}")
            more[key] = value
    content = _content(draft, item, role, where, has_calls=bool(more.get("tool_calls")))
    draft.add(role, content, train=trained, **more)


def _content(draft: Draft, item: dict[str, Any], role: str, where: str, *, has_calls: bool) -> str:
    key = draft.mapping.column("content")
    value = item.get(key)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return _parts(draft, value, f"'{key}' of {where}")
    if isinstance(value, dict) and role == "tool":
        storable(value, f"'{key}' of {where}")
        return json.dumps(value, ensure_ascii=False)
    return text(item, key, where, optional=has_calls)


def _parts(draft: Draft, parts: list[dict[str, Any]], where: str) -> str:
    """A content in parts: texts follow each other, an image becomes `<image>` on a line of its own."""
    found = ""
    for number, part in enumerate(parts, 1):
        kind, place = part.get("type"), f"part {number} of {where}"
        if kind == "text" or (kind is None and isinstance(part.get("text"), str)):
            found += text(part, "text", place)
        elif kind in ("image", "image_url"):
            source = part.get(str(kind), part.get("url", part.get("path")))
            draft.images += _images(source, place)
            found += f"{IMAGE}\n"
        else:
            raise RowError(f"{place} is of the type {shown(str(kind), 20)}; only text and image are known")
    return found.removesuffix("\n") if parts[-1].get("type") in ("image", "image_url") else found


def _images(value: Any, what: str) -> list[str]:
    """Paths or addresses of pictures: one, or a list, each maybe as an object with `url` or `path`."""
    if value is None or value == "":
        return []
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items:
        place = item.get("url", item.get("path")) if isinstance(item, dict) else item
        if not isinstance(place, str):
            raise RowError(f"{what} is no path of an image but {kind_of(place if isinstance(item, dict) else item)}")
        reason = broken_text(place)
        if reason:
            raise RowError(f"{what} {reason}")
        found.append(place)
    return found


def _tools(row: dict[str, Any], key: str) -> tuple[dict[str, Any], ...]:
    """The functions the assistant may call, each as `{"type": "function", "function": {...}}`."""
    value = unpacked(row.get(key))
    if value is None or value == "" or value == []:
        return ()
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise RowError(f"'{key}' is {kind_of(items)}, not a list of tools")
    found = []
    for number, item in enumerate(items, 1):
        tool = unpacked(item)
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not (isinstance(inner, dict) and isinstance(inner.get("name"), str)):
            raise RowError(f"tool {number} of '{key}' has no 'name'")
        storable(tool, f"tool {number} of '{key}'")
        found.append(tool if inner is not tool else {"type": "function", "function": tool})
    return tuple(found)


def _calls(value: Any, where: str) -> tuple[dict[str, Any], ...]:
    """Calls as the OpenAI API writes them, their arguments as an object where they are valid JSON."""
    items = value if isinstance(value, list) else [value]
    if not items:
        raise RowError(f"{where} calls no tool")
    return tuple(_call(unpacked(item), where) for item in items)


def _call(item: Any, where: str) -> dict[str, Any]:
    inner = item.get("function", item) if isinstance(item, dict) else None
    if not (isinstance(inner, dict) and isinstance(inner.get("name"), str)):
        raise RowError(f"the tool call of {where} is not an object with 'name' and 'arguments'")
    given = inner.get("arguments", inner.get("parameters"))
    arguments = unpacked(given)
    if not isinstance(arguments, dict):
        arguments = {} if given is None or given == "" else given
    if not isinstance(arguments, dict | str):
        raise RowError(f"the arguments of the tool call of {where} are {kind_of(arguments)}, not an object")
    call: dict[str, Any] = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    if isinstance(item.get("id"), str):
        call = {"id": item["id"], **call}
    storable(call, f"the tool call of {where}")
    return call


def call_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call as the OpenAI API writes it."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    storable(call, "a tool call")
    return call


def _add_plugin_turn(draft: Draft, content: str, trained: bool) -> None:
    """MSAgent writes call and result into one answer: they become a calling turn, a tool turn and an answer."""
    place = 0
    for found in _PLUGIN.finditer(content):
        call = unpacked(_FENCE.sub("", found["call"]).strip())
        if not isinstance(call, dict) or not isinstance(call.get("api_name"), str):
            raise RowError("a plugin call in an answer is not a JSON object with 'api_name'")
        given = call.get("parameters")
        arguments = given if isinstance(given, dict) else {}
        words = content[place : found.start()].strip()
        draft.add("assistant", words, train=trained, tool_calls=(call_of(call["api_name"], arguments),))
        draft.add("tool", _FENCE.sub("", found["result"] or "").strip())
        place = found.end()
    rest = content[place:].strip()
    if rest:
        draft.add("assistant", rest, train=trained)
