"""What ends an answer: tokens, and texts that no single token stands for.

A chat template may bring stop words. They are kept in the generation settings that are saved with an adapter or a
model, so that samples, chat and an exported model all end their answers as the training had it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

SETTINGS = "generation_config.json"


@dataclass(frozen=True)
class Endings:
    """The tokens and the texts after which an answer is over."""

    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()

    def __or__(self, other: Endings) -> Endings:
        return Endings(self.tokens | other.tokens, tuple(dict.fromkeys((*self.texts, *other.texts))))


def endings(tokenizer: PreTrainedTokenizerBase, model: Any, stop_words: Sequence[str] = ()) -> Endings:
    """What model and tokenizer say, the stop words, and what the chat template really puts behind an answer.

    Many a model's eos token ends a document, while its turns end with another one.
    """
    settings = _from_settings(vars(model.generation_config) if model.generation_config else {})
    own = _ids([model.config.get_text_config().eos_token_id, tokenizer.eos_token_id])
    return settings | Endings(own | turn_end(tokenizer)) | _of_words(tokenizer, stop_words)


def saved_endings(folder: Path) -> Endings:
    """What the generation settings in a folder say; nothing when there are none to be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return _from_settings(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    return Endings()


def remember(model: Any, tokenizer: PreTrainedTokenizerBase, stop_words: Sequence[str]) -> None:
    """Put stop words into the model's generation settings, with which they are saved.

    A word that is one token becomes an end token, as every program understands; only other words become stop strings,
    for which `generate` wants to be given the tokenizer.
    """
    if not stop_words:
        return
    settings = model.generation_config
    found = _from_settings(vars(settings)) | _of_words(tokenizer, stop_words)
    tokens = found.tokens | _ids([tokenizer.eos_token_id])
    settings.eos_token_id = sorted(tokens) or None
    settings.stop_strings = list(found.texts) or None


def add_to_saved(folder: Path, found: Endings) -> None:
    """Add endings to the generation settings in a folder; a file that cannot be read is left alone."""
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = _from_settings(settings)
    except (OSError, ValueError, RecursionError):
        return
    both = known | found
    if both == known or not isinstance(settings, dict):
        return
    if both.tokens != known.tokens:
        settings["eos_token_id"] = sorted(both.tokens)
    if both.texts != known.texts:
        settings["stop_strings"] = list(both.texts)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cut(text: str, stops: Iterable[str]) -> str:
    """The text before the first of the stop strings."""
    hits = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return text[: min(hits)] if hits else text


def _from_settings(settings: Any) -> Endings:
    if not isinstance(settings, dict):
        return Endings()
    texts = settings.get("stop_strings")
    texts = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    named = tuple(text for text in texts if isinstance(text, str) and text)
    return Endings(_ids([settings.get("eos_token_id")]), named)


def _of_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Endings:
    tokens: set[int] = set()
    texts = []
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder:
            tokens.add(ids[0])
        else:
            texts.append(word)
    return Endings(frozenset(tokens), tuple(texts))


def _ids(named: Iterable[Any]) -> frozenset[int]:
    """Token ids given as numbers, lists of numbers, or None."""
    flat = [number for item in named for number in (item if isinstance(item, list) else [item])]
    return frozenset(number for number in flat if isinstance(number, int) and not isinstance(number, bool))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token a chat template puts behind an answer; none where that is no token of its own."""
    if not tokenizer.chat_template:
        return frozenset()
    talk = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "Zebra"}]
    try:
        text = str(tokenizer.apply_chat_template(talk, tokenize=False))
    except Exception:  # a template that wants other roles; eos has to do
        return frozenset()
    tail = tokenizer(text.rpartition("Zebra")[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return frozenset(tail[:1]) & special
