"""Tokens become text: never half a character, never a special token, never past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

WINDOW = 48  # tokens decoded together at most, but for text that cannot be cut there
UNFINISHED = "\ufffd"  # what a decoder shows for bytes that are not (yet) a character


class TextStream:
    """Tokens in, text out; never half a character, never a special token but those that are to be `shown`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shown: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        some = any(text in shown for text in special.values())
        self._hidden = {number for number, text in special.items() if text not in shown} if some else None
        self.ids: list[int] = []
        self.sent = 0
        """Characters told so far."""
        self._window: list[int] = []  # the last tokens: all that is decoded again to see what one more adds
        self._known = 0  # characters of the window that were told

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self.ids.append(token)
        self._window.append(token)
        text = self._text(self._window)
        fresh = self._advance(text.rstrip(UNFINISHED))
        if len(self._window) >= WINDOW and len(text) == self._known:
            self._shorten(text)
        return fresh

    def finish(self) -> str:
        """What was held back."""
        return self._advance(self._text(self._window))

    def _shorten(self, text: str) -> None:
        """Forget the older half, if the rest reads the same without it (a first word may lose its space)."""
        rest = self._window[len(self._window) // 2 :]
        alone = self._text(rest)
        if alone and text.endswith(alone):
            self._window, self._known = rest, len(alone)

    def _text(self, ids: Sequence[int]) -> str:
        hidden = self._hidden
        told = list(ids) if hidden is None else [number for number in ids if number not in hidden]
        text = self.tokenizer.decode(told, skip_special_tokens=hidden is None, clean_up_tokenization_spaces=False)
        return str(text)

    def _advance(self, text: str) -> str:
        fresh = text[self._known :]
        self._known += len(fresh)
        self.sent += len(fresh)
        return fresh


class StopStrings:
    """Cuts a stream of text before the first of some strings, also when it comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown, True when a stop string was met)."""
        self.held += text
        hits = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if hits:
            return self.held[: min(hits)], True
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        ready, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return ready, False

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)
