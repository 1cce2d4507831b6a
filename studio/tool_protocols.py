"""Ways of speaking of tools in plain text: for adapters trained on them, and for models without a place for tools.

ReAct writes Thought, Action, Action Input; MOSS writes <|Commands|> behind <|Inner Thoughts|>. Both are made here from
the messages of the OpenAI protocol, so that a conversation is kept in one form whatever a model speaks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from studio.tool_calls import style_of

Protocol = Literal["native", "react", "moss"]
Message = Mapping[str, Any]

REACT_STOPS = ("\nResponse:", "\nObservation:")
MOSS_CALL_STOPS = ("<eoc>",)
MOSS_ANSWER_STOPS = ("<eom>", "<|Human|>")
MOSS_ANSWER = "<|MOSS|>:"
_MOSS_NAMES = {
    "calculate": ("Calculate", "Calculator"),
    "solve": ("Solve", "Equation solver"),
    "search": ("Search", "Web search"),
}


def protocol_of(template_source: str) -> Protocol:
    """How tools are spoken of with a chat template."""
    return protocol_of_style(style_of(template_source))


def protocol_of_style(style: str) -> Protocol:
    """How tools are spoken of where calls are written in a style of `studio.tool_calls`."""
    return "moss" if style == "moss" else "native" if style else "react"


# ---- ReAct -----------------------------------------------------------------------------------------------------------


def react_messages(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages any chat template can write: the tools in the system prompt, calls as text, results as user turns."""
    found: list[dict[str, str]] = []
    for message in messages:
        content, role = str(message.get("content") or ""), str(message["role"])
        if role == "tool":
            role, content = "user", f"Response: {content}"
        elif message.get("tool_calls"):
            content = "\n".join(filter(None, [content, *map(_react_call, message["tool_calls"])]))
        if role == "user" and found and found[-1]["role"] == "user":  # several results, or one and a question
            found[-1] = {"role": "user", "content": f"{found[-1]['content']}\n{content}"}
        else:
            found.append({"role": role, "content": content})
    if not tools:
        return found
    system = found.pop(0)["content"] if found and found[0]["role"] == "system" else ""
    text = "\n\n".join(filter(None, [system, _react_tools(tools)]))
    return [{"role": "system", "content": text}, *found]


def _react_call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return f"Action: {function['name']}\nAction Input: {function['arguments']}"


def _react_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    described = []
    for tool in tools:
        function = tool["function"]
        properties = json.dumps(function["parameters"].get("properties", {}), ensure_ascii=False)
        described.append(f"{function['name']}: {function['description']} Input: {properties}")
    names = ", ".join(str(tool["function"]["name"]) for tool in tools)
    lines = [
        "You can use tools:",
        *described,
        "To use one, write these lines and stop:",
        "Thought: what has to be found out",
        f"Action: the name of a tool, one of [{names}]",
        "Action Input: its input as a JSON object",
        "The result will be given to you like this:",
        "Response: the result",
        "When no tool is needed any more, write:",
        "Thought: why the answer is known",
        "Final Answer: the answer",
    ]
    return "\n".join(lines)


# ---- MOSS ------------------------------------------------------------------------------------------------------------


def moss_prompt(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    """The whole conversation as one text; behind a user's turn the model thinks, behind results it answers."""
    rest = list(messages)
    system = str(rest.pop(0).get("content") or "") if rest and rest[0]["role"] == "system" else ""
    lines = [*filter(None, [system]), *map(_moss_tool, tools)]
    writer = _MossWriter()
    turns = "".join(map(writer.turn, rest))
    return "".join(f"{line}\n" for line in lines) + turns + (f"<eor>\n{MOSS_ANSWER}" if writer.results else "")


def moss_without_commands(prompt: str, thoughts: str) -> str:
    """The text to go on with where the model has thought and called nothing."""
    return f"{prompt}{thoughts.rstrip()}<eoc>\n<|Results|>: None<eor>\n{MOSS_ANSWER}"


def moss_name(name: str) -> str:
    """A tool as MOSS calls it."""
    return _MOSS_NAMES.get(name, (name, name))[0]


def _moss_tool(tool: Mapping[str, Any]) -> str:
    function = tool["function"]
    called, label = _MOSS_NAMES.get(function["name"], (function["name"], function["name"]))
    takes = ", ".join(function["parameters"].get("required") or function["parameters"].get("properties", {}))
    return f"- {label}: enabled. API: {called}({takes})"


class _MossWriter:
    """Turns in order; `results`: those of tools have been written and the answer to them has not."""

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}
        self.results = False

    def turn(self, message: Message) -> str:
        """One message as MOSS has it."""
        content, role = str(message.get("content") or ""), message["role"]
        if role == "tool":
            opening = "" if self.results else "<|Results|>:\n"
            self.results = True
            return f"{opening}{self.calls.get(str(message.get('tool_call_id')), 'None')} =>\n{content}\n"
        if role == "user":
            return f"<|Human|>: {content}<eoh>\n"
        if message.get("tool_calls"):
            written = ", ".join(self._call(call) for call in message["tool_calls"])
            return f"{_thoughts(content)}<|Commands|>: {written}<eoc>\n"
        nothing = "<|Inner Thoughts|>: None<eot>\n<|Commands|>: None<eoc>\n<|Results|>: None"
        before, self.results = "" if self.results else nothing, False
        return f"{before}<eor>\n{MOSS_ANSWER} {content}<eom>\n"

    def _call(self, call: Mapping[str, Any]) -> str:
        function = call["function"]
        try:
            given = json.loads(function["arguments"])
        except ValueError:
            given = function["arguments"]
        value = next(iter(given.values()), "") if isinstance(given, dict) else given
        text = json.dumps(value if isinstance(value, str) else json.dumps(value), ensure_ascii=False)
        self.calls[str(call.get("id"))] = f"{moss_name(str(function['name']))}({text})"
        return self.calls[str(call.get("id"))]


def moss_thought(text: str) -> str:
    """What MOSS thinks, without the marks around it; nothing for None."""
    found = text.partition("<eot>")[0].replace("<|Inner Thoughts|>:", "").replace("<|Inner Thoughts|>", "").strip()
    return "" if found == "None" else found


def _thoughts(content: str) -> str:
    return f"<|Inner Thoughts|>: {content or 'None'}<eot>\n"
