"""While a studio serves, the queue of its workspace has a dispatcher whenever a run waits, and stops are seen to."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from studio import runner
from studio.run_queue import StartRefused
from studio.workspace import Workspace

LOOK_S = 2.0
log = logging.getLogger("studio.ui")


def lifespan(workspace: Workspace) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """For FastAPI: looks after the queue from the first request to the last."""

    @contextlib.asynccontextmanager
    async def looking(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_look(workspace))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return looking


async def _look(workspace: Workspace) -> None:
    while True:
        try:
            await asyncio.to_thread(runner.look_after, workspace)
            await asyncio.to_thread(runner.take_over_stops, workspace)
        except (OSError, StartRefused) as error:  # a full disk, a workspace that is being moved: later it may be well
            log.info("the queue could not be looked at: %s", error)
        except Exception:  # whatever it was, those who wait must not wait for ever
            log.exception("the queue could not be looked at")
        await asyncio.sleep(LOOK_S)
