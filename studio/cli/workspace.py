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


def workspace_path(arguments: argparse.Namespace) -> Path:
    """The folder the options name; nothing is looked up or made."""
    return Path(arguments.workspace or os.environ.get("CRUCIBLE_WORKSPACE") or ROOT / "workspace")


def open_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace the options name. Raises WorkspaceError when it cannot be written."""
    return Workspace(workspace_path(arguments))
