"""What a studio does for its queue as long as it serves."""

import asyncio

import pytest
from fastapi import FastAPI

from studio import runner
from studio.ui import queue_care
from studio.workspace import Workspace


def test_the_queue_is_looked_after_whatever_went_wrong_before(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Workspace] = []
    enough = asyncio.Event()

    def look(space: Workspace) -> bool:
        looks.append(space)
        if len(looks) < 3:
            raise RuntimeError("can't start new thread")
        loop.call_soon_threadsafe(enough.set)
        return False

    async def serve() -> None:
        async with queue_care.lifespan(workspace)(FastAPI()):
            await enough.wait()

    monkeypatch.setattr(queue_care, "LOOK_S", 0.01)
    monkeypatch.setattr(runner, "look_after", look)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(serve(), 60))
    finally:
        loop.close()
    assert len(looks) >= 3
