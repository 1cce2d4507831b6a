"""The messages of a request: text, pictures, calls of tools and their results, checked for their order."""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from studio.engine.dialogue import PromptError, ToolCall, Turn

LONGEST_TEXT = 1_000_000
MOST_IMAGES = 16
LARGEST_IMAGE = 20_000_000
MOST_PIXELS = 50_000_000
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class Content:
    """What one message says and shows."""

    text: str = ""
    images: tuple[bytes, ...] = ()


class Function(BaseModel):
    """A tool by name, and the JSON object it is given, as text."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: Annotated[str, Field(max_length=LONGEST_TEXT)] = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def as_text(cls, value: Any) -> Any:
        """Some clients send the object itself."""
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class Call(BaseModel):
    """A call the model made earlier in the conversation."""

    id: Annotated[str, Field(max_length=200)] = ""
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One message of a request; the content may be text or a list of parts: text, and pictures as data: URLs."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[Call], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=200)] | None = None
    content: Annotated[Content, Field(validate_default=True)] = None  # type: ignore[assignment]

    @field_validator("content", mode="before")
    @classmethod
    def read_content(cls, value: Any, info: ValidationInfo) -> Content:
        """Text or parts become one text and the pictures of it."""
        if value is None:
            if info.data.get("role") != "assistant" or not info.data.get("tool_calls"):
                raise ValueError("it is missing; write the text of the message")
            return Content()
        content = _of_parts(value) if isinstance(value, list) else Content(_text(value))
        if info.data.get("role") == "user" and not content.images and not content.text.strip():
            raise ValueError("the message is empty; write something")
        if content.images and info.data.get("role") != "user":
            raise ValueError("pictures belong into a message of the user")
        return content

    def turn(self) -> Turn:
        """The message as the model's side knows it."""
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())
        role = "system" if self.role == "developer" else self.role
        return Turn(role, self.content.text, calls, self.tool_call_id or "", self.content.images)


Messages = Annotated[list[Message], Field(min_length=1, max_length=2000)]


def check_order(messages: Sequence[Message]) -> None:
    """Raises ValueError with a sentence: nobody asked anything, or results stand where no tool was called."""
    called: set[str] | None = None
    for number, message in enumerate(messages):
        if message.role == "tool":
            if called is None:
                raise ValueError(f"message {number} is the result of a tool, but no call of a tool stands before it")
            if message.tool_call_id and called and message.tool_call_id not in called:
                raise ValueError(f"message {number} answers the call {message.tool_call_id!r}, which nobody made")
        elif message.role == "assistant":
            called = {call.id for call in message.tool_calls} - {""} if message.tool_calls else None
        else:
            called = None
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"the last message is the {messages[-1].role}'s; end with a question of the user")
    images = sum(len(message.content.images) for message in messages)
    if images > MOST_IMAGES:
        raise ValueError(f"there are {images} pictures, and one request may have {MOST_IMAGES}; leave some out")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it has to be text, or a list of parts of type text and image_url")
    if len(value) > LONGEST_TEXT:
        raise ValueError(f"the text has {len(value)} characters, and at most {LONGEST_TEXT} are read; shorten it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character, so it is no valid Unicode") from None
    return value


def _of_parts(parts: Sequence[Any]) -> Content:
    texts, images = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_text(part.get("text")))
        elif kind == "image_url":
            images.append(part.get("image_url"))
        else:
            raise ValueError("only text parts and image_url parts are understood")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"it has {len(images)} pictures, and one request may have {MOST_IMAGES}; leave some out")
    return Content(_text("".join(texts)), tuple(_image(image) for image in images))


def _image(given: Any) -> bytes:
    """The file in a data: URL, which `check_pictures` looks into; nothing is ever fetched."""
    url = given.get("url") if isinstance(given, Mapping) else given
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise ValueError("a picture has to come as data:image/png;base64,… ; addresses and paths are not opened")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the picture's data is no base64") from None
    if len(content) > LARGEST_IMAGE:
        raise ValueError(f"the picture is larger than {LARGEST_IMAGE // 1_000_000} MB; make it smaller")
    return content


def check_pictures(messages: Sequence[Message]) -> None:
    """Unpack every picture once. Takes seconds, so not for a thread that others wait for. Raises PromptError."""
    for number, message in enumerate(messages):
        for image in message.content.images:
            try:
                _check_picture(image)
            except ValueError as error:
                raise PromptError(str(error), f"messages.{number}.content") from None


def _check_picture(content: bytes) -> None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=KINDS) as picture:
                small = picture.width * picture.height <= MOST_PIXELS
                if small:
                    picture.load()
    except Image.DecompressionBombError:
        small = False
    except Exception:  # whatever a decoder says of a damaged file
        raise ValueError(f"the picture cannot be read; send one of {', '.join(KINDS)}") from None
    if not small:
        raise ValueError(f"the picture has more than {MOST_PIXELS // 10**6} million pixels; make it smaller")
