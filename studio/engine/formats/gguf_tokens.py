"""The vocabulary of a GGUF file: tokens with their kinds, merges or scores, special ids, and the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from studio.engine.failure import model_failure
from studio.engine.loading import load_tokenizer
from studio.engine.stopping import Endings, saved_endings, turn_end
from studio.gguf_vocabulary import Unsupported, Vocabulary, merge_ranks, vocabulary
from studio.layouts import read_layout
from studio.records.original_tokenizer import read_original

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_FROM_BACKEND: Any = PreTrainedTokenizerFast
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Words:
    """A model's tokenizer, ready to be written: its JSON, how llama.cpp reads it, and what ends an answer."""

    tokenizer: PreTrainedTokenizerBase
    content: Mapping[str, Any]
    kind: Vocabulary
    endings: Endings

    @property
    def template(self) -> str | None:
        """The chat template without its `generation` marks, which only transformers knows; same text otherwise.

        Tokens the model has not are empty texts: llama.cpp would take some token of its own for them.
        """
        own = self.tokenizer.chat_template
        if not isinstance(own, str):
            return None
        missing = [name for name in ("bos_token", "eos_token") if name in own and not getattr(self.tokenizer, name)]
        empty = "".join(f"{{%- set {name} = '' %}}" for name in missing)
        guard = "{{- '' }}" if empty and own.startswith("\n") else ""  # a line end after a tag is not written
        marks = _GENERATION.sub(lambda found: f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}", own)
        return f"{empty}{guard}{marks}"

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer: those saved with the model, and what the template puts behind one."""
        own = self.tokenizer.eos_token_id
        return self.endings.tokens | turn_end(self.tokenizer) | ({own} if own is not None else set())

    @property
    def adds_bos(self) -> bool:
        """Whether the begin token is put before a text.

        Where the chat template writes none, nothing may be put before a conversation either.
        """
        bos = self.tokenizer.bos_token_id
        if bos is None or self.tokenizer("a")["input_ids"][:1] != [bos]:
            return False
        return self._opening is None or self._opening == bos

    @property
    def space_prefix(self) -> bool:
        """Whether a space is put before a text and after each special token.

        A tokenizer that does so at the very beginning only never does it in a conversation that begins with a token.
        """
        return self.kind.prefix == "always" or (self.kind.prefix == "first" and self._opening is None)

    @property
    def _opening(self) -> int | None:
        """The special token a conversation begins with."""
        if not self.tokenizer.chat_template:
            return None
        try:
            talk = [{"role": "user", "content": "A"}]
            text = str(self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
        except Exception:  # a template that wants other roles
            return None
        first = self.tokenizer(text, add_special_tokens=False)["input_ids"][:1]
        return next((token for token in first if token in self.tokenizer.added_tokens_decoder), None)


def read_words(source: Path) -> Words:
    """The tokenizer of a model folder. Raises EngineError of kind model for one that llama.cpp cannot have."""
    tokenizer, endings = _tokenizer(source)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    try:
        return Words(tokenizer, content, vocabulary(content), endings)
    except Unsupported as error:
        raise unsupported(error) from error


def unsupported(error: Exception) -> Exception:
    """The EngineError for a reason that is a part of a sentence."""
    return model_failure(f"model: it cannot be written as GGUF: {error}.", "Choose another format.", "model")


def _tokenizer(source: Path) -> tuple[PreTrainedTokenizerBase, Endings]:
    if read_layout(source) is None:
        return load_tokenizer(str(source), field="model"), saved_endings(source)
    original = read_original(source)
    if original is None:
        raise model_failure("model: it has no tokenizer.", "Copy the model again, with all its files.", "model")
    names = {name: text for name, text in original.config.items() if name.endswith("_token")}
    tokenizer = _FROM_BACKEND(tokenizer_object=Tokenizer.from_str(original.backend), **names)
    tokenizer.chat_template = original.template
    ends = {tokenizer.convert_tokens_to_ids(word) for word in original.stop_words}
    return tokenizer, saved_endings(source) | Endings(frozenset(number for number in ends if isinstance(number, int)))


def write_words(writer: GGUFWriter, words: Words, size: int) -> None:
    """Write the vocabulary of `size` tokens, as many as the model has rows. Raises EngineError of kind model."""
    writer.add_tokenizer_model(words.kind.model)
    writer.add_tokenizer_pre(words.kind.pre)
    texts, kinds = _tokens(words, size)
    writer.add_token_list(texts)
    model = words.content["model"]
    if words.kind.model == "llama":
        try:
            ranks = merge_ranks(model)
        except Unsupported as error:
            raise unsupported(error) from error
        # Whatever is not made by a merge is found as a character, a byte or a special token; its score plays no part.
        writer.add_token_scores([float(-ranks[text]) if text in ranks else -1e6 for text in texts])
        writer.add_add_space_prefix(words.space_prefix)
    else:
        writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_token_types(kinds)
    _special(writer, words)
    if words.template is not None:
        writer.add_chat_template(words.template)


def token_texts(words: Words, size: int) -> list[str]:
    """The text of each of the `size` tokens of the file."""
    return _tokens(words, size)[0]


def _tokens(words: Words, size: int) -> tuple[list[str], list[TokenType]]:
    """Text and kind of every id; ids that only fill the rows up are said to be unused."""
    texts = [f"[PAD{number}]" for number in range(size)]
    kinds = [TokenType.UNUSED] * size
    pieces = words.kind.model == "llama"
    for text, number in words.content["model"]["vocab"].items():
        if number < size:
            texts[number] = text
            kinds[number] = TokenType.BYTE if pieces and _BYTE.fullmatch(text) else TokenType.NORMAL
    for added in words.content["added_tokens"]:
        number = added["id"]
        if number < size:
            texts[number] = added["content"]
            kinds[number] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    unknown = words.tokenizer.unk_token_id
    if pieces and unknown is not None and unknown < size:
        kinds[unknown] = TokenType.UNKNOWN
    return texts, kinds


def _special(writer: GGUFWriter, words: Words) -> None:
    tokenizer = words.tokenizer
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    others = sorted(words.ends - {tokenizer.eos_token_id})
    for number, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)
    writer.add_add_bos_token(words.adds_bos)
    writer.add_add_eos_token(False)
