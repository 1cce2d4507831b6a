"""Calls of tools in a model's own words: how each family of chat templates writes them, read from an answer's text.

A style is how a template has calls written. What is no well-formed call stays text, so that a person sees it.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ID_LENGTH = 9  # Mistral's templates accept no other
LONGEST = 100_000  # characters of an answer that is searched for calls
_ALPHABET = string.ascii_letters + string.digits


def new_id() -> str:
    """A name for a call that every template accepts."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_LENGTH))


@dataclass(frozen=True)
class Call:
    """A tool the model wants used; `arguments` is a JSON object as text."""

    name: str
    arguments: str
    id: str = field(default_factory=new_id)

    def as_dict(self) -> dict[str, Any]:
        """As the OpenAI protocol writes it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


Found = tuple[str, list[Call]]


@dataclass(frozen=True)
class _Style:
    """`marks` begin a call (of those a tokenizer knows as special tokens some are never shown), `read` finds calls."""

    marks: tuple[str, ...]
    read: Callable[[str], Found]
    bare: bool = False
    """Whether a call may also stand alone as plain JSON, without any mark."""


def style_of(template_source: str) -> str:
    """The style a chat template has calls written in; "" for a template that writes none."""
    for name, words in _SIGNS:
        if any(word in template_source for word in words):
            return name
    return ""


def parse(text: str, style: str) -> Found:
    """An answer as (what is said, the calls in it). `style` "" finds calls that say themselves what they are."""
    if len(text) > LONGEST:
        return text, []
    chosen = _STYLES.get(style)
    if chosen:
        said, calls = chosen.read(text)
        if calls:
            return said, calls
    for name in _SELF_EVIDENT:
        if name != style and any(mark in text for mark in _STYLES[name].marks):
            said, calls = _STYLES[name].read(text)
            if calls:
                return said, calls
    return text, []


def marks(style: str) -> tuple[str, ...]:
    """Texts that begin a call, which must not be left out of an answer when it is decoded."""
    return _STYLES[style].marks if style in _STYLES else ()


class CallReader:
    """Reads an answer in pieces: what is certainly text is shown at once, what may be a call is held until the end."""

    def __init__(self, style: str) -> None:
        self.style = style
        self._marks = tuple(dict.fromkeys([*marks(style), *(m for name in _SELF_EVIDENT for m in marks(name))]))
        self._bare = style in _STYLES and _STYLES[style].bare
        self._held = ""
        self._calling = False
        self._begun = False

    def push(self, piece: str) -> str:
        """The text that may be shown after one more piece."""
        self._held += piece
        if self._calling:
            return ""
        if self._bare and not self._begun and self._held.lstrip()[:1] in ("{", "["):
            self._calling = True
            return ""
        places = [at for mark in self._marks if (at := self._held.find(mark)) >= 0]
        self._calling = bool(places)
        return self._release(min(places) if places else len(self._held) - self._beginning())

    def finish(self) -> Found:
        """The rest of the text, and the calls."""
        rest, self._held = self._held, ""
        return parse(rest, self.style)

    def _release(self, count: int) -> str:
        ready = self._held[:count]
        if not ready.strip() and not self._begun:  # white space before a call is no answer
            return ""
        self._held, self._begun = self._held[count:], True
        return ready

    def _beginning(self) -> int:
        """How many characters at the end may be the beginning of a mark."""
        longest = min(max(map(len, self._marks), default=1) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._starts_mark(self._held[-n:])), 0)

    def _starts_mark(self, end: str) -> bool:
        return any(mark.startswith(end) for mark in self._marks)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _json(text: str) -> Any:
    """A JSON value, with the line breaks in strings that models write; None when it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _call(value: Any) -> Call | None:
    """{"name": …, "arguments": {…}} in the spellings there are."""
    if not isinstance(value, dict):
        return None
    inner = value.get("function", value)
    if not isinstance(inner, dict):
        inner = {**value, "name": inner}
    name = inner.get("name", inner.get("tool_name", inner.get("api_name")))
    given = inner.get("arguments", inner.get("parameters", {}))
    if isinstance(given, str):
        given = _json(given) if given.strip() else {}
    if not isinstance(name, str) or not name.strip() or not isinstance(given, dict | None):
        return None
    return Call(name.strip(), json.dumps(given or {}, ensure_ascii=False))


def _calls(text: str) -> list[Call]:
    """The calls of a JSON text: one, a list of them, or several in a row. Empty when any part is no call."""
    decoder = json.JSONDecoder(strict=False)
    values: list[Any] = []
    place = 0
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        values += value if isinstance(value, list) else [value]
        while place < len(text) and text[place] in " \t\r\n,;":
            place += 1
    found = [_call(value) for value in values]
    return [call for call in found if call] if all(found) else []


def _between(opening: str, closing: str, body: Callable[[str], list[Call]]) -> Callable[[str], Found]:
    """Calls between two texts; the last closing one may be missing, where a stop word was cut off."""
    pattern = re.compile(f"{opening}(.*?)(?:{closing}|\\Z)", re.DOTALL)

    def read(text: str) -> Found:
        calls: list[Call] = []

        def take(match: re.Match[str]) -> str:
            found = body(match[1])
            calls.extend(found)
            return "" if found else match[0]

        said = pattern.sub(take, text)
        return (said.strip(), calls) if calls else (text, [])

    return read


_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?((?:(?!<parameter=).)*?)\n?</parameter>", re.DOTALL)
_KEY = re.compile(r"<arg_key>([^<]*)</arg_key>\s*<arg_value>((?:(?!<arg_key>).)*?)</arg_value>", re.DOTALL)


def _tagged(body: str) -> list[Call]:
    """What stands between <tool_call> tags: JSON, or names and values in tags of their own."""
    functions = _FUNCTION.findall(body)
    if functions:
        return [_of_values(name, _PARAMETER.findall(inner)) for name, inner in functions]
    if "<arg_key>" in body:
        return [_of_values(body.partition("<arg_key>")[0].strip(), _KEY.findall(body))]
    return _calls(body)


def _of_values(name: str, pairs: Iterable[tuple[str, str]]) -> Call:
    """Values written as plain text are what they are as JSON, else text."""
    values = {key.strip(): _value(text) for key, text in pairs}
    return Call(name, json.dumps(values, ensure_ascii=False))


def _value(text: str) -> Any:
    found = _json(text.strip())
    return text if found is None and text.strip() != "null" else found


def _bare_json(text: str) -> Found:
    """A whole answer that is nothing but calls."""
    calls = _calls(text)
    return ("", calls) if calls else (text, [])


def _llama(text: str) -> Found:
    return _bare_json(text.replace("<|python_tag|>", "").replace("<|eom_id|>", ""))


_ARGS = re.compile(r"(?<![\w.-])([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?\[ARGS\]\s*")


def _mistral(text: str) -> Found:
    said, mark, rest = text.rpartition("[TOOL_CALLS]") if text.count("[TOOL_CALLS]") == 1 else ("", "", text)
    named = _ARGS.search(rest)
    if named:
        pairs = [part.strip() for part in _ARGS.split(rest.replace("[TOOL_CALLS]", ""))]
        calls = [Call(name, _object(given)) for name, given in zip(pairs[1::2], pairs[2::2], strict=True)]
        return (said or pairs[0]).strip(), calls
    if mark:
        calls = _calls(rest)
        return (said.strip(), calls) if calls else (text, [])
    return _bare_json(text)


def _object(text: str) -> str:
    """A JSON object as text; what is none becomes one with the text in it."""
    found = _json(text)
    return json.dumps(found if isinstance(found, dict) else {"input": text}, ensure_ascii=False)


def _internlm(text: str) -> Found:
    for mark in ("<|action_start|>", "<|plugin|>", "<|interpreter|>"):
        said, found, rest = text.partition(mark)
        if found:
            calls = _calls(re.sub(r"<\|(?:plugin|interpreter|action_end)\|>", "", rest))
            return (said.strip(), calls) if calls else (text, [])
    at = text.rfind("\n{")  # its special tokens may be gone from the text: then the JSON is its last line
    calls = _calls(text[at + 1 :])
    return (text[: at + 1].strip(), calls) if calls else _bare_json(text)


_FENCE = re.compile(r"\A```\w*\n?|\n?```\Z")
_SEPARATOR = "<｜tool▁sep｜>"


def _deepseek(text: str) -> Found:
    said, mark, rest = text.partition("<｜tool▁calls▁begin｜>")
    parts = rest.partition("<｜tool▁calls▁end｜>")[0].split("<｜tool▁call▁begin｜>")[1:] if mark else []
    calls = [_deepseek_call(part.partition("<｜tool▁call▁end｜>")[0]) for part in parts]
    return (said.strip(), [call for call in calls if call]) if calls and all(calls) else (text, [])


def _deepseek_call(text: str) -> Call | None:
    """name, separator, JSON; older ones write `function` and a separator first, and the JSON in a fence."""
    head, _, given = text.removeprefix(f"function{_SEPARATOR}").partition(_SEPARATOR)
    if not given:
        head, _, given = head.partition("\n")
    name, given = head.strip(), _FENCE.sub("", given.strip())
    return Call(name, _object(given)) if name and given else None


def _listed(text: str) -> Found:
    """<|tool_call|>[…] of Granite and Phi."""
    said, mark, rest = text.partition("<|tool_call|>")
    calls = _calls(rest.replace("<|/tool_call|>", "")) if mark else _calls(text)
    return ((said if mark else "").strip(), calls) if calls else (text, [])


_ACTION = re.compile(
    r"^[ \t]*Action[ \t]*[:：][ \t]*(?P<name>[^\s][^\n]*)\n"
    r"[ \t]*Action[ _]?Input[ \t]*[:：](?P<input>.*?)"
    r"(?=^[ \t]*(?:Observation|Response|Thought|Final Answer)[ \t]*[:：]|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


def _react(text: str) -> Found:
    """Thought, Action, Action Input; the first action counts, for what a model writes after it is invented."""
    match = _ACTION.search(text)
    if not match:
        return text, []
    name = match["name"].strip("`\"'[]* \t\r")
    given = _FENCE.sub("", match["input"].strip()).strip()
    return text[: match.start()].strip(), [Call(name, _object(given))]


_COMMANDS = re.compile(r"<\|Commands\|>[:：]?(.*?)(?:<eoc>|<\|Results\|>|<\|MOSS\|>|\Z)", re.DOTALL)
_NAME = re.compile(r"\b([^\W\d]\w*)\(\s*")
_CLOSED = re.compile(r"\s*\)")


def _moss(text: str) -> Found:
    """<|Commands|>: Search("tea"), Calculate("2+3"); the one argument of each is called input."""
    match = _COMMANDS.search(text)
    if not match:
        return text, []
    calls = [Call(name, json.dumps({"input": given}, ensure_ascii=False)) for name, given in _commands(match[1])]
    return (text[: match.start()].strip(), calls) if calls else (text, [])


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Names and arguments, up to the first that is not closed."""
    place = 0
    while match := _NAME.search(text, place):
        quoted = text[match.end() : match.end() + 1] in ("'", '"')
        end = (_end_of_quote if quoted else _end_of_bracket)(text, match.end())
        if end is None:
            return
        given = text[match.end() + quoted : end - quoted]
        yield match[1], (re.sub(r"""\\(["'\\])""", r"\1", given) if quoted else given).strip()
        place = end


def _end_of_quote(text: str, start: int) -> int | None:
    """Behind the quote that ends the argument, which a bracket follows."""
    place = start + 1
    while place < len(text):
        if text[place] == "\\":
            place += 1
        elif text[place] == text[start] and _CLOSED.match(text, place + 1):
            return place + 1
        place += 1
    return None


def _end_of_bracket(text: str, start: int) -> int | None:
    """Where the bracket is that closes the one before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return None


_STYLES: dict[str, _Style] = {
    "hermes": _Style(("<tool_call>",), _between("<tool_call>", "</tool_call>", _tagged)),
    "mistral": _Style(("[TOOL_CALLS]", "[ARGS]"), _mistral, bare=True),
    "internlm": _Style(("<|action_start|>", "<|plugin|>", "<|interpreter|>"), _internlm, bare=True),
    "deepseek": _Style(
        ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"), _deepseek
    ),
    "listed": _Style(("<|tool_call|>", "<|/tool_call|>"), _listed, bare=True),
    "llama3": _Style(("<|python_tag|>",), _llama, bare=True),
    "moss": _Style(("<|Commands|>",), _moss),
    "react": _Style(("Action:", "Action："), _react),
}
_SELF_EVIDENT = ("hermes", "moss", "react")
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hermes", ("<tool_call>",)),
    ("mistral", ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]")),
    ("internlm", ("<|action_start|>", "<|plugin|>")),
    ("deepseek", ("<｜tool▁calls▁begin｜>",)),
    ("listed", ("<|tool_call|>",)),
    ("llama3", ("<|python_tag|>", "Environment: ipython", '"parameters": ')),
    ("moss", ("<|Human|>",)),
)
"""What in a template tells its style."""
