"""Where the answers stand in a rendered conversation: what the model has to write itself, end token included.

A template with `{% generation %}` marks says it. For any other one the same conversation is rendered once more with a
placeholder for every content: that skeleton depends on the roles alone, so one serves all conversations of the same
shape, and filling it gives the places of the contents. Where a template changes a content (it drops the thinking of
earlier turns, say), only that content is replaced in the full text, and the difference shows its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from studio.records.conversation import Conversation
from studio.records.errors import DataError
from studio.records.template import ChatTemplate, Rendered, no_system_prompt
from studio.records.template_names import FIELD

Span = tuple[int, int]
Messages = list[dict[str, Any]]
_PLACE = re.compile("\ufdd2([0-9]+)\ufdd3")  # noncharacters: no text and no template has them
_MOST_SKELETONS = 512


@dataclass(frozen=True)
class Frame:
    """What a template writes around one answer.

    `header` comes before it and is no part of it. What the model writes is `opening`, the content, `closing`; an answer
    without a content of its own in the text (it only calls tools) is all `opening`. `after` is the number of the
    content, in the order of the text, behind which the header follows (-1: the text begins with it); the answer's own
    content is the next one.
    """

    header: str
    opening: str
    closing: str
    after: int
    has_content: bool


@dataclass(frozen=True)
class Outline:
    """A conversation's text without its contents: `pieces[k]`, then the content of message `order[k]`, and so on."""

    pieces: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Skeleton:
    """The outline of all conversations of one shape, and the frame of each answer by its message number."""

    outline: Outline
    frames: Mapping[int, Frame]


class AnswerFinder:
    """Finds the answers of conversations in what one template writes; `specials` are the tokenizer's special tokens."""

    def __init__(self, template: ChatTemplate, specials: Sequence[str]) -> None:
        self.template = template
        known = "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)"
        self._special = re.compile(f"({known})")
        self._close = re.compile(rf"\s*(?:{known})+")
        self._skeletons: dict[tuple[tuple[str, bool], ...], Skeleton] = {}
        self._system_seen = False

    def find(self, conversation: Conversation, rendered: Rendered) -> list[Span]:
        """The (start, end) characters of the answers that carry loss, in order.

        Raises DataError when the template leaves a message out or the answers cannot be found.
        """
        trained = conversation.trained
        flags = [trained[index] for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        if self.template.marks_answers and (all(flags) or len(rendered.spans) == len(flags)):
            self._keeps_system(conversation)
            return (
                rendered.spans if all(flags) else [span for span, own in zip(rendered.spans, flags, strict=True) if own]
            )
        return self._search(conversation, rendered.text)

    def ends_with_token(self, text: str, end: int) -> bool:
        """Whether a special token ends at this character."""
        return any(match.end() == end for match in self._special.finditer(text, 0, end))

    def _keeps_system(self, conversation: Conversation) -> None:
        """Raises DataError when the template silently leaves the system prompt out."""
        system = conversation.messages[0]
        if system.role != "system" or not system.content.strip() or self._system_seen:
            return
        messages = [{"role": m.role, "content": m.content} for m in conversation.messages[:3]]
        messages[0]["content"] = "\ufdd20\ufdd3"
        try:
            text = self.template.render(messages).text
        except DataError:  # it refuses this beginning of a conversation, but it has written the whole
            return
        if not _PLACE.search(text):
            raise no_system_prompt()
        self._system_seen = True

    def _skeleton(self, conversation: Conversation) -> Skeleton:
        """The skeleton for this shape of conversation, remembered unless calls of tools are part of it."""
        messages = conversation.as_dicts()
        simple = not conversation.tools and all(len(message) == 2 for message in messages)
        key = tuple((message["role"], bool(message["content"])) for message in messages)
        if not simple or key not in self._skeletons:
            made = self._build(messages, conversation.tools)
            if not simple:
                return made
            if len(self._skeletons) >= _MOST_SKELETONS:
                self._skeletons.clear()
            self._skeletons[key] = made
        return self._skeletons[key]

    def _build(self, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> Skeleton:
        blank = [m | {"content": f"\ufdd2{i}\ufdd3" if m["content"] else ""} for i, m in enumerate(messages)]

        def write(count: int, prompt: bool = False) -> Outline:
            try:
                text = self.template.render(blank[:count], tools=tools, add_generation_prompt=prompt).text
            except DataError:
                raise _not_found() from None
            parts = _PLACE.split(text)
            return Outline(tuple(parts[::2]), tuple(int(number) for number in parts[1::2]))

        full = write(len(blank))
        _refuse_losses(messages, full.order)
        if len(set(full.order)) < len(full.order):  # a content that stands there twice has no one place
            raise _not_found()
        places = {index: place for place, index in enumerate(full.order)}
        frames: dict[int, Frame] = {}
        seen: dict[tuple[Any, ...], Frame] = {}
        for index in (index for index, message in enumerate(messages) if message["role"] == "assistant"):
            calls = "tool_calls" in messages[index]
            if index not in places:
                frames[index] = self._frame_of_call(write(index, True), write(index + 1), full)
                continue
            place = places[index]
            # The same surroundings mean the same frame, so a long talk takes no more renderings than a short one.
            key = (full.pieces[place], full.pieces[place + 1], messages[index - 1]["role"], calls)
            if key not in seen:
                seen[key] = self._frame(write(index, True), write(index + 1), full, calls=calls)
            frames[index] = replace(seen[key], after=place - 1)
        return Skeleton(full, frames)

    def _frame(self, asked: Outline, answered: Outline, full: Outline, *, calls: bool) -> Frame:
        """The frame of the last answer in `answered`: the generation prompt before it is not its own, and it ends
        where a conversation ends that stops with it. `asked`: up to that prompt."""
        if not answered.order or answered.order[-1] not in full.order:
            raise _not_found()
        place = full.order.index(answered.order[-1])
        header = commonprefix([asked.pieces[-1], full.pieces[place]])
        closing = self._closing(answered.pieces[-1], full.pieces[place + 1], calls=calls)
        return Frame(header, full.pieces[place][len(header) :], closing, place - 1, has_content=True)

    def _frame_of_call(self, asked: Outline, answered: Outline, full: Outline) -> Frame:
        """The frame of an answer that is nothing but calls of tools."""
        after = full.order.index(asked.order[-1]) if asked.order and asked.order[-1] in full.order else -1
        header = commonprefix([asked.pieces[-1], full.pieces[after + 1]])
        cut = len(header)
        opening = self._closing(answered.pieces[-1][cut:], full.pieces[after + 1][cut:], calls=True)
        return Frame(header, opening, "", after, has_content=False)

    def _closing(self, alone: str, followed: str, *, calls: bool) -> str:
        """What belongs to an answer behind its content, given the text there when nothing follows, and in place."""
        shared = self._shared(alone, followed)
        token = self._close.match(shared)
        if token and not calls:
            return shared[: token.end()]
        if self.ends_with_token(shared, len(shared.rstrip())):
            return shared.rstrip()
        token = self._close.match(followed, len(shared))  # a template whose answers end with the mark of the next turn
        return followed[: token.end()] if token and self._opener not in token.group() else shared

    @property
    def _opener(self) -> str:
        return self.template.special_tokens.get("bos_token") or "\0"

    def _shared(self, one: str, other: str) -> str:
        """The common beginning of two texts; a special token is common as a whole or not at all."""
        found = ""
        for left, right in zip(self._special.split(one), self._special.split(other), strict=False):
            if left == right:
                found += left
                continue
            special = self._special.fullmatch(left) or self._special.fullmatch(right)
            return found if special else found + commonprefix([left, right])
        return found

    def _search(self, conversation: Conversation, text: str) -> list[Span]:
        """The spans of the trained answers: from the skeleton as far as the text fits it, from there by difference."""
        trained = conversation.trained
        skeleton = self._skeleton(conversation)
        places = _fill(skeleton.outline, [message.content for message in conversation.messages], text)
        spans: dict[int, Span] = {}
        lowest = 0
        for index, frame in skeleton.frames.items():
            if frame.after + frame.has_content < len(places):
                spans[index] = _framed(frame, places)
            elif not frame.has_content:
                spans[index] = _next_call(frame, text, lowest)
            elif trained[index]:
                spans[index] = self._around(text, self._differing(conversation, text, index), frame, lowest)
            lowest = spans.get(index, (0, lowest))[1]
        return [span for index, span in spans.items() if trained[index]]

    def _differing(self, conversation: Conversation, text: str, index: int) -> Span:
        """The characters of `text` that change with the content of message `index`."""
        messages = conversation.as_dicts()
        messages[index]["content"] = f"\ufdd2{index}\ufdd3"
        other = self.template.render(messages, tools=conversation.tools).text
        if not _PLACE.search(other):
            raise _not_found()
        first = len(commonprefix([text, other]))
        return first, max(first, len(text) - len(commonprefix([text[::-1], other[::-1]])))

    def _around(self, text: str, content: Span, frame: Frame, lowest: int) -> Span:
        """The span of an answer whose content, or what was left of it, stands at `content`."""
        first, last = content
        header = text.rfind(frame.header, lowest, first) if frame.header else -1
        start = first if header < 0 else header + len(frame.header)
        if text.startswith(frame.closing, last):
            return start, last + len(frame.closing)
        token = self._close.match(text, last)
        return start, token.end() if token else last


def _refuse_losses(messages: Messages, order: Sequence[int]) -> None:
    """Raises DataError when the template leaves a message out; the text beside a call of tools may be."""
    written = set(order)
    for index, message in enumerate(messages):
        if message["content"] and index not in written and not message.get("tool_calls"):
            if message["role"] == "system":
                raise no_system_prompt()
            raise DataError(
                f"The chat template leaves out message {index + 1} ({message['role']}). "
                "Change the conversation, or choose another chat template.",
                field=FIELD,
            )


def _fill(outline: Outline, contents: Sequence[str], text: str) -> list[Span]:
    """The places of the contents in the text, as far as it is the outline filled with them."""
    places: list[Span] = []
    if not text.startswith(outline.pieces[0]):
        return places
    position = len(outline.pieces[0])
    for index, piece in zip(outline.order, outline.pieces[1:], strict=True):
        fitting = next((form for form in _forms(contents[index]) if text.startswith(form + piece, position)), None)
        if fitting is None:
            return places
        places.append((position, position + len(fitting)))
        position += len(fitting) + len(piece)
    return places if position == len(text) else places[:-1]


def _forms(content: str) -> Iterator[str]:
    """How templates write a content: as it is, trimmed, without its thinking, or inside JSON."""
    yield content
    yield content.strip()
    yield content.rstrip()
    yield content.lstrip()
    said = content.rpartition("</think>")[2]
    yield said.lstrip("\n")
    yield said.strip()
    yield json.dumps(content, ensure_ascii=False)[1:-1]


def _framed(frame: Frame, places: Sequence[Span]) -> Span:
    start = (places[frame.after][1] if frame.after >= 0 else 0) + len(frame.header)
    if not frame.has_content:
        return start, start + len(frame.opening)
    return start, places[frame.after + 1][1] + len(frame.closing)


def _next_call(frame: Frame, text: str, lowest: int) -> Span:
    found = text.find(frame.header + frame.opening, lowest)
    if found < 0:
        raise _not_found()
    start = found + len(frame.header)
    return start, start + len(frame.opening)


def _not_found() -> DataError:
    return DataError(
        "The answers cannot be found in the text this chat template writes. Use a template with "
        "{% generation %} marks.",
        field=FIELD,
    )
