"""Read-only JSON for the Chat tab: the blind votes of a pair, which other pages may be casting at the same time."""

from fastapi import APIRouter, Query

from studio.votes import tally
from studio.workspace import Workspace


def build(workspace: Workspace) -> APIRouter:
    """The routes over one workspace."""
    router = APIRouter(prefix="/api")

    @router.get("/votes")
    def read_votes(left: str = Query(max_length=4096), right: str = Query(max_length=4096)) -> dict[str, int]:
        return tally(workspace, left, right)

    return router
