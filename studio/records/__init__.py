"""Records: files of conversations, identity sets, datasets, chat templates and counts. No torch, no browser."""

from __future__ import annotations

from studio.records.conversation import Conversation, Message
from studio.records.errors import DataError
from studio.records.formats import ReadResult, Skipped, read_file
from studio.records.identity import IdentitySet, IdentitySpec, build_identity, parse_spec
from studio.records.store import Dataset, DatasetInfo, DatasetStore

__all__ = [
    "Conversation",
    "DataError",
    "Dataset",
    "DatasetInfo",
    "DatasetStore",
    "IdentitySet",
    "IdentitySpec",
    "Message",
    "ReadResult",
    "Skipped",
    "build_identity",
    "parse_spec",
    "read_file",
]
