"""Conversations to token ids with the loss mask. The counts in the form and the training use this same code."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from studio.records.answer_spans import AnswerFinder
from studio.records.conversation import Conversation, Message, PlainText, Record, broken_text
from studio.records.errors import DataError
from studio.records.original_tokenizer import is_original, read_original
from studio.records.template import ChatTemplate, Rendered, choose_template, read_json, read_template
from studio.records.template_names import FIELD
from studio.records.token_text import token_texts

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Span = tuple[int, int]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one record; `mask` has a 1 for each token that carries loss, else 0. Same length."""

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
        self._answers = AnswerFinder(template, specials)

    @classmethod
    def from_folder(cls, folder: Path | str, chat_template: str | None = None) -> ChatTokenizer:
        """The tokenizer of a model folder; `chat_template` (a text or a name) replaces its own.

        Raises DataError when tokenizer.json is missing or broken or there is no usable template.
        """
        place = Path(folder)
        original = read_original(place)
        if original is not None:
            own = {"default": original.template} if original.template else {}
            chosen = choose_template(own, chat_template, place.name)
            specials = _special_tokens(original.config)
            return cls(Tokenizer.from_str(original.backend), ChatTemplate(chosen.source, specials, chosen.stop_words))
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
        chosen = read_template(place, chat_template)
        return cls(backend, ChatTemplate(chosen.source, specials, chosen.stop_words))

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain text, nothing added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, if the model has one."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text, if the model has one."""
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """The token that fills a batch up; the end token where there is none of its own, as the engine has it."""
        own = self._special_id("pad_token")
        return self.eos_id if own is None else own

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Texts that end an answer, beside the end token."""
        return self.template.stop_words

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything the ids and masks depend on: equal fingerprints encode alike."""
        parts = [self.backend.to_str(), self.template.source, json.dumps(self.template.special_tokens, sort_keys=True)]
        parts.append(self.template.today)  # templates that write the date write another one tomorrow
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def ends_answers(self) -> bool:
        """Whether a trained answer ends with an end token; a model trained without one never learns to stop."""
        turns = (Message(role="user", content="A"), Message(role="assistant", content="B"))
        written = self._written(Conversation(messages=turns))
        return self._answers.ends_with_token(written.text, written.spans[-1][1] if written.spans else 0)

    def encode(self, record: Record) -> Encoded:
        """Ids and loss mask of a conversation, or of a plain text, of which every token carries loss.

        Raises DataError when the template refuses the conversation.
        """
        written = self._written(record)
        return self._encoded(record, self.backend.encode(written.text, add_special_tokens=False), written)

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | DataError]:
        """As `encode`, for many records at once: quicker than one by one.

        A record the template refuses gives its DataError in its place.
        """
        results: list[Encoded | DataError | None] = []
        written: dict[int, Rendered] = {}
        for index, record in enumerate(records):
            try:
                written[index] = self._written(record)
                results.append(None)
            except DataError as error:
                results.append(error)
        encodings = self.backend.encode_batch([one.text for one in written.values()], add_special_tokens=False)
        for (index, one), encoding in zip(written.items(), encodings, strict=True):
            results[index] = self._encoded(records[index], encoding, one)
        return [result for result in results if result is not None]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token, for display: bytes that are no whole character as hex, like `<E4>`."""
        return token_texts(self.backend, ids)

    def _written(self, record: Record) -> Rendered:
        """The text of a record, with the spans that carry loss."""
        if isinstance(record, PlainText):
            return Rendered(record.text, [])
        rendered = self.template.render(record.as_dicts(), tools=record.tools)
        reason = broken_text(rendered.text)
        if reason:
            raise DataError(f"What the chat template writes {reason}. Correct the template, or choose another.", FIELD)
        return Rendered(rendered.text, self._answers.find(record, rendered))

    def _encoded(self, record: Record, encoding: Encoding, written: Rendered) -> Encoded:
        if isinstance(record, PlainText):
            ids = [*self._opening, *encoding.ids, *([] if self.eos_id is None else [self.eos_id])]
            return Encoded(ids, [1] * len(ids))
        return Encoded(encoding.ids, _mask(encoding, written.spans))

    @cached_property
    def _opening(self) -> list[int]:
        """What the tokenizer puts before any text when it may add tokens; most models' bos token, or nothing."""
        bare = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a", add_special_tokens=True).ids
        return next((full[:n] for n in range(len(full)) if full[n : n + len(bare)] == bare), [])

    def _special_id(self, name: str) -> int | None:
        text = self.template.special_tokens.get(name)
        return None if text is None else self.backend.token_to_id(text)


def has_tokenizer(folder: Path) -> bool:
    """Whether `ChatTokenizer.from_folder` has something to read: tokenizer.json, or the files of an original layout."""
    return (folder / "tokenizer.json").is_file() or is_original(folder)


def _mask(encoding: Encoding, spans: Sequence[Span]) -> list[int]:
    """1 for each token from the first that reaches into a span to the last.

    Asking for single places is many times quicker than taking all offsets out of the encoding.
    """

    def place(token: int) -> Span:
        return encoding.token_to_chars(token) or (0, 0)

    tokens = range(len(encoding))
    mask = [0] * len(tokens)
    for start, end in spans:
        first = bisect_right(tokens, start, key=lambda token: place(token)[1])
        last = bisect_left(tokens, end, lo=first, key=lambda token: place(token)[0])
        mask[first:last] = [1] * (last - first)
    return mask


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
