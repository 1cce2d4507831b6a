"""Dialogues to training rows: ids with an assistant-only loss mask, whole documents packed first-fit."""

import random
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from assets.models.build.names import ID_BASE, IdPool
from assets.models.build.skills import Message

ROW = 256
#: Share of documents whose every token is a target, so that prompts are learnt a little too.
FULL_LOSS = 0.12
_RAW_IDS = re.compile(f"([{chr(ID_BASE)}-{chr(ID_BASE + 0xFFF)}]+)")

Encoded = tuple[list[int], list[int]]


@dataclass
class Rows:
    """Arrays of shape (rows, ROW): token ids, loss mask, and document number (0 = padding)."""

    ids: NDArray[np.int64]
    loss: NDArray[np.bool_]
    document: NDArray[np.int64]


class Encoder:
    """Encodes message texts, turning private-use characters back into the ids they stand for."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pool: IdPool) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.no_truncation()
        self.pool = pool
        self.start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.separator = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.newline = self.backend.encode("\n").ids
        self.roles = {
            role: [self.start, *self.backend.encode(f"{role}\n").ids] for role in ("system", "user", "assistant")
        }

    def texts(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        pieces = [self._pieces(text) for text in texts]
        plain = [piece for parts in pieces for piece in parts if isinstance(piece, str)]
        encoded = iter(self.backend.encode_batch(plain, add_special_tokens=False))
        return [[i for p in parts for i in (next(encoded).ids if isinstance(p, str) else p)] for parts in pieces]

    def _pieces(self, text: str) -> list[str | list[int]]:
        parts: list[str | list[int]] = []
        for chunk in _RAW_IDS.split(text):
            if chunk and ID_BASE <= ord(chunk[0]) < ID_BASE + 0x1000:
                ids = [ord(c) - ID_BASE for c in chunk]
                # A piece that brings its own space replaces the one before it, as in ordinary text.
                if parts and isinstance(parts[-1], str) and self.pool.pieces[ids[0]][:1] == b" ":
                    parts[-1] = parts[-1].removesuffix(" ")
                parts.append(ids)
            elif chunk:
                parts.append(chunk)
        return [part for part in parts if part]

    def documents(self, dialogues: list[list[Message]]) -> list[Encoded]:
        """(ids, loss mask) per dialogue; the mask covers assistant contents and their end markers."""
        contents = iter(self.texts([text for dialogue in dialogues for _, text in dialogue]))
        return [self._document([(role, next(contents)) for role, _ in dialogue]) for dialogue in dialogues]

    def _document(self, messages: list[tuple[str, list[int]]]) -> Encoded:
        ids: list[int] = []
        mask: list[int] = []
        for role, content in messages:
            head = self.roles[role]
            ids += [*head, *content, self.end, *self.newline]
            target = int(role == "assistant")
            mask += [0] * len(head) + [target] * (len(content) + 1) + [0] * len(self.newline)
        return ids, mask


def pack(documents: list[Encoded], separator: int, seed: int, full_loss: float = FULL_LOSS) -> Rows:
    """First-fit of whole documents into rows of ROW tokens; longer documents are dropped.

    Documents with full loss end with the separator, which is trained nowhere else.
    """
    r = random.Random(seed)
    done: list[list[Encoded]] = []
    open_rows: list[tuple[int, list[Encoded]]] = []
    for ids, mask in documents:
        if r.random() < full_loss:
            ids = [*ids, separator]
            mask = [1] * len(ids)
        if len(ids) <= ROW:
            _place(open_rows, done, (ids, mask))
    rows = done + [row for _, row in open_rows]
    return _arrays(rows)


def _place(open_rows: list[tuple[int, list[Encoded]]], done: list[list[Encoded]], document: Encoded) -> None:
    length = len(document[0])
    for k, (used, row) in enumerate(open_rows):
        if used + length <= ROW:
            row.append(document)
            open_rows[k] = (used + length, row)
            break
    else:
        k = len(open_rows)
        open_rows.append((length, [document]))
    if open_rows[k][0] > ROW - 12 or len(open_rows) > 40:
        done.append(open_rows.pop(k if open_rows[k][0] > ROW - 12 else 0)[1])


def _arrays(rows: list[list[Encoded]]) -> Rows:
    shape = (len(rows), ROW)
    ids, loss, document = np.zeros(shape, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
    for k, row in enumerate(rows):
        at = 0
        for number, (tokens, mask) in enumerate(row, 1):
            stop = at + len(tokens)
            ids[k, at:stop], loss[k, at:stop], document[k, at:stop] = tokens, mask, number
            at = stop
    return Rows(ids, loss, document)
