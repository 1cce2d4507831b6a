"""Answers to questions that many pages ask at once: worked out by one of them, the same bytes for all."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

ANSWERS_KEPT = 256
BYTES_KEPT = 24 * 1024 * 1024


def json_answer(body: bytes) -> Response:
    """A response that no cache on the way keeps."""
    return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


@dataclass(frozen=True, slots=True)
class _Kept:
    stamp: Hashable
    body: bytes


class Answers:
    """Bodies by question, good for as long as the stamp of what they were made from stays the same."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._size = 0
        self._asked: dict[Hashable, asyncio.Future[bytes]] = {}

    async def get(self, question: Hashable, stamp: Hashable, make: Callable[[], Any]) -> Response:
        """The answer of ``make`` as JSON; NaN becomes null. What ``make`` raises reaches everybody who asked."""
        kept = self._kept.get(question)
        if kept is not None and kept.stamp == stamp:
            self._kept.move_to_end(question)
            return json_answer(kept.body)
        return json_answer(await self._shared((question, stamp), make))

    async def _shared(self, asked: tuple[Hashable, Hashable], make: Callable[[], Any]) -> bytes:
        waiting = self._asked.get(asked)
        if waiting is not None and waiting.get_loop() is asyncio.get_running_loop():
            return await asyncio.shield(waiting)
        task = asyncio.ensure_future(run_in_threadpool(lambda: orjson.dumps(make())))
        self._asked[asked] = task
        try:
            body = await asyncio.shield(task)
        finally:
            if self._asked.get(asked) is task:
                del self._asked[asked]
        self._keep(asked[0], _Kept(asked[1], body))
        return body

    def _keep(self, question: Hashable, kept: _Kept) -> None:
        before = self._kept.pop(question, None)
        self._size += len(kept.body) - (len(before.body) if before else 0)
        self._kept[question] = kept
        while self._kept and (len(self._kept) > ANSWERS_KEPT or self._size > BYTES_KEPT):
            self._size -= len(self._kept.popitem(last=False)[1].body)
