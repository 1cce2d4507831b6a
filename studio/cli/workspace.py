"""The --workspace option, the same for every verb."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from studio.presets import ROOT
from studio.rundir import Workspace


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add --workspace."""
    parser.add_argument(
        "--workspace",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder for runs, datasets and exports (default: workspace/ beside launch.py, or CRUCIBLE_WORKSPACE)",
    )


def open_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace the options name. Raises WorkspaceError when it cannot be written."""
    return Workspace(arguments.workspace or Path(os.environ.get("CRUCIBLE_WORKSPACE") or ROOT / "workspace"))
