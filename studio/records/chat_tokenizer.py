"""Conversations to token ids with the loss mask. The counts in the form and the training use this same code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from studio.records.conversation import Conversation
from studio.records.errors import DataError
from studio.records.template import FIELD, ChatTemplate, Rendered, read_json, read_template

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one conversation; `mask` has a 1 for each token that carries loss, else 0. Same length."""

    ids: list[int]
    mask: list[int]


class ChatTokenizer:
    """A tokenizer with a chat template.

    `backend` is copied, without padding and truncation, so nobody else's settings leak in.
    """

    def __init__(self, backend: Tokenizer, template: ChatTemplate) -> None:
        self.backend = Tokenizer.from_str(backend.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.template = template
        specials = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        self._end = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")

    @classmethod
    def from_folder(cls, folder: Path | str, chat_template: str | None = None) -> ChatTokenizer:
        """The tokenizer of a model folder; `chat_template` (a text or a name) replaces its own.

        Raises DataError when tokenizer.json is missing or broken or there is no usable template.
        """
        place = Path(folder)
        path = place / "tokenizer.json"
        if not path.is_file():
            raise DataError(
                f"The model folder {place.name} has no tokenizer.json. Choose a complete model folder.",
                field="model.model_name_or_path",
            )
        config = read_json(place / "tokenizer_config.json")
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise DataError(
                f"tokenizer.json in {place.name} cannot be read ({str(error)[:80]}). Copy the model again.",
                field="model.model_name_or_path",
            ) from None
        _add_missing_tokens(backend, config)
        specials = _special_tokens({**read_json(place / "special_tokens_map.json"), **config})
        return cls(backend, ChatTemplate(read_template(place, chat_template), specials))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain text, nothing added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode(self, conversation: Conversation) -> Encoded:
        """Ids and loss mask of a conversation. Raises DataError when the template refuses it."""
        rendered = self.template.render(conversation.as_dicts())
        spans = self.answer_spans(conversation, rendered)
        encoding = self.backend.encode(rendered.text, add_special_tokens=False)
        return Encoded(list(encoding.ids), _mask(encoding.offsets, spans))

    def answer_spans(self, conversation: Conversation, rendered: Rendered) -> list[Span]:
        """The (start, end) characters of the trained answers in the rendered text, end tokens included."""
        answers = [index for index, m in enumerate(conversation.messages) if m.role == "assistant"]
        trained = [conversation.trained[index] for index in answers]
        if self.template.marks_answers and (all(trained) or len(rendered.spans) == len(answers)):
            flags = trained if len(rendered.spans) == len(answers) else [True] * len(rendered.spans)
            return [span for span, flag in zip(rendered.spans, flags, strict=True) if flag]
        return [self._find(conversation, rendered.text, i) for i, flag in zip(answers, trained, strict=True) if flag]

    def _find(self, conversation: Conversation, full: str, index: int) -> Span:
        """Where answer number `index` stands: rendered with and without it, the difference is the answer."""
        messages = conversation.as_dicts()
        content = messages[index]["content"].strip()
        before = self.template.render(messages[:index], add_generation_prompt=True).text
        after = self.template.render(messages[: index + 1]).text
        if full.startswith(before):
            start = len(before)
        else:
            # The template rewrites earlier turns: look for the text itself, behind the turns before it.
            common = _common_prefix(self.template.render(messages[:index]).text, full)
            start = full.find(content, common)
        if start >= 0 and full.startswith(after) and len(after) > start:
            return start, self._trim(after, start)
        place = full.find(content, max(start, 0))
        if start < 0 or place < 0:
            raise DataError(
                "The answers cannot be found in the text this chat template writes. Use a template with "
                "{% generation %} marks.",
                field=FIELD,
            )
        return start, self._through_end_token(full, place + len(content))

    def _trim(self, text: str, start: int) -> int:
        """The end of an answer: right behind its end token, without the line break that follows it."""
        stripped = text.rstrip()
        ends = [match.end() for match in self._end.finditer(stripped, start)]
        return len(stripped) if ends and ends[-1] == len(stripped) else len(text)

    def _through_end_token(self, text: str, end: int) -> int:
        gap = len(text[end:]) - len(text[end:].lstrip())
        token = self._end.match(text, end + gap)
        return token.end() if token else end


def _mask(offsets: list[Span], spans: list[Span]) -> list[int]:
    """1 for each token whose characters overlap a span; both lists are in ascending order."""
    mask = [0] * len(offsets)
    position = 0
    for index, (start, end) in enumerate(offsets):
        while position < len(spans) and spans[position][1] <= start:
            position += 1
        if position < len(spans) and start < end and end > spans[position][0]:
            mask[index] = 1
    return mask


def _common_prefix(one: str, other: str) -> int:
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like as texts; older files store them as objects with a `content`."""
    found = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _add_missing_tokens(backend: Tokenizer, config: Mapping[str, Any]) -> None:
    """Tokens that only tokenizer_config.json knows; transformers adds them when it loads the tokenizer."""
    listed = config.get("added_tokens_decoder")
    for token in listed.values() if isinstance(listed, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and backend.token_to_id(content) is None:
            added = AddedToken(content, special=bool(token.get("special")), normalized=bool(token.get("normalized")))
            backend.add_special_tokens([added]) if token.get("special") else backend.add_tokens([added])
