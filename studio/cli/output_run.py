"""Starts a run that makes something, shows it until it ends, and tells what it made."""

from __future__ import annotations

import sys
from collections.abc import Callable

from studio import runner
from studio.cli.follow import follow
from studio.config import AnswersConfig, ConvertConfig, ExportConfig, MergeConfig
from studio.events import RunState
from studio.rundir import RunDir
from studio.workspace import Workspace

INTERRUPTED = 130


def carry_out(
    workspace: Workspace,
    config: MergeConfig | ConvertConfig | ExportConfig | AnswersConfig,
    report: Callable[[RunDir], None],
    *,
    stopping: str,
    as_json: bool,
) -> int:
    """Submit a run and follow it; returns its exit code. Ctrl-C stops it and says `stopping` ({run}: its id).

    `report` tells what it made, once it has finished. Raises StartRefused, WorkspaceError.
    """
    run = runner.submit(workspace, config)
    try:
        code = follow(run, as_json=as_json)
    except KeyboardInterrupt:
        print(f"\n{stopping.format(run=run.id)}", file=sys.stderr)
        runner.stop(run)
        return INTERRUPTED
    if run.state() is RunState.FINISHED and not as_json:
        report(run)
    return code
