"""Two conversations side by side that are asked the same thing: histories, flushing, what one side looks like.

Gradio inserts a message as HTML, even with Markdown switched off, and would fetch a picture an answer names. So a
chatbot's value holds escaped text; `plain` gives back what was really said.
"""

import html
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from studio.ui.i18n import T

Message = dict[str, Any]
FLUSH_S = 0.05


def chatbot(side: str) -> gr.Chatbot:
    """One side. Its value comes from `shown`; no copy button, as that would copy the escaped text."""
    return gr.Chatbot(
        label=T(f"chat.{side}"),
        elem_id=f"chat-{side}",
        height="100%",
        render_markdown=False,
        sanitize_html=True,
        buttons=[],
        group_consecutive_messages=False,
        layout="bubble",
        placeholder=T(f"chat.{side}.empty"),
    )


def plain(history: list[Message] | None) -> list[Message]:
    """What was really said, from a chatbot's value; Gradio may hand the text over in parts."""
    return [{"role": item["role"], "content": html.unescape(_text(item["content"]))} for item in history or []]


def shown(messages: list[Message]) -> list[Message]:
    """Messages as a chatbot's value: every character is shown, none is markup."""
    return [{"role": item["role"], "content": html.escape(item["content"])} for item in messages]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    if isinstance(content, dict):
        return str(content.get("text", ""))
    return str(content)


def prompt(history: list[Message], system: str) -> list[Message]:
    """What a model is sent: the system prompt, if any, and this side's own conversation without empty answers."""
    kept = [message for message in plain(history) if message["content"].strip()]
    head = [{"role": "system", "content": system.strip()}] if system.strip() else []
    return head + _alternating(kept)


def _alternating(messages: list[Message]) -> list[Message]:
    """Without questions that never got an answer (stopped before the first word), which a template would refuse."""
    kept: list[Message] = []
    for message in messages:
        if kept and kept[-1]["role"] == message["role"]:
            kept.pop()
        kept.append(message)
    return kept


async def flushed(history: list[Message], pieces: AsyncIterator[str]) -> AsyncIterator[list[Message]]:
    """The history with the growing answer, at most every 50 ms: a browser cannot draw every token."""
    answer, last = "", 0.0
    before = shown(plain(history))
    async for piece in pieces:
        answer += piece
        if time.monotonic() - last >= FLUSH_S:
            last = time.monotonic()
            yield [*before, *shown([{"role": "assistant", "content": answer}])]
    yield [*before, *shown([{"role": "assistant", "content": answer}])]
