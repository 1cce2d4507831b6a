"""What the tests of the browser side share."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio import run_queue, runner
from studio.workspace import Workspace

FAKE = Path(__file__).resolve().parents[1] / "fake_engine.py"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Iterator[None]:
    """The runner starts a stand-in that speaks the run-directory contract."""
    monkeypatch.setattr(runner, "ENGINE", (sys.executable, str(FAKE)))
    monkeypatch.setenv("CRUCIBLE_FAKE", json.dumps({"steps": 2000, "pace": 0.02}))
    yield
    for run, _ in run_queue.entries(workspace):
        run_queue.remove(run)
    for run in workspace.list_runs():
        runner.stop(run, stop_grace=10)
