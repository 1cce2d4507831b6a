"""What tools mean for one request: how calls are written, and how an answer is made to be one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from studio.engine.chat_api_errors import ApiError
from studio.engine.chat_api_requests import ChatRequest
from studio.engine.dialogue import ModelFacts, Request
from studio.records.template_names import named_template, template_names
from studio.tool_calls import marks, style_of

HERMES = "hermes"


@dataclass(frozen=True)
class Calling:
    """How the model writes calls; `opening` is what its answer begins with when it has to make one."""

    style: str
    opening: str = ""

    def added_to(self, asked: Request) -> Request:
        """The request with the beginning of the answer, and with what calls are recognised by left in it."""
        return replace(asked, opening=self.opening, shown=marks(self.style))


def calling(body: ChatRequest, facts: ModelFacts) -> Calling | None:
    """What the tools of a request ask for; None without any. Raises ApiError when the template cannot do it."""
    offered = [tool.function.name for tool in body.tools or ()]
    if body.must_call:
        _check_choice(body, offered)
    if not body.offered():
        return None
    style = style_of(_template(body, facts))
    if not style:
        sentence = "tools: the chat template of this model has no place for them; choose another with chat_template"
        raise ApiError(400, sentence, "no_tools", "tools")
    return Calling(style, _opening(style, body) if body.must_call else "")


def _check_choice(body: ChatRequest, offered: list[str]) -> None:
    if not offered:
        raise ApiError(400, "tool_choice: there are no tools to choose from; send tools too", None, "tool_choice")
    if body.tool_name is not None and body.tool_name not in offered:
        known = ", ".join(offered)
        raise ApiError(
            400, f"tool_choice: there is no tool {body.tool_name!r}; there are: {known}", None, "tool_choice"
        )


def _template(body: ChatRequest, facts: ModelFacts) -> str:
    if body.chat_template in template_names():
        return named_template(body.chat_template).source
    return facts.template or ""


def _opening(style: str, body: ChatRequest) -> str:
    """The beginning of a call, which leaves the model nothing but to finish it."""
    if style != HERMES:
        sentence = "tool_choice: this model's template cannot be made to call a tool; use auto"
        raise ApiError(400, sentence, "no_forced_call", "tool_choice")
    if body.tool_name is None:
        return '<tool_call>\n{"name": "'
    return f'<tool_call>\n{{"name": {json.dumps(body.tool_name)}, "arguments": '
