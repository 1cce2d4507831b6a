"""The --workspace option, the same for every verb."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from studio.presets import ROOT
from studio.remote_code import OPTION
from studio.workspace import Workspace


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """Add --workspace."""
    parser.add_argument(
        "--workspace",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder for runs, datasets and exports (default: workspace/ beside launch.py, or CRUCIBLE_WORKSPACE)",
    )


def add_remote_code(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets models run their own code; `studio.cli.main` obeys it for every verb that has it."""
    parser.add_argument(
        OPTION, action="store_true", dest="trust_remote_code",
        help="let models that need Python code of their own run it: only for models whose makers you trust",
    )  # fmt: skip


def workspace_path(arguments: argparse.Namespace) -> Path:
    """The folder the options name; nothing is looked up or made."""
    return Path(arguments.workspace or os.environ.get("CRUCIBLE_WORKSPACE") or ROOT / "workspace")


def open_workspace(arguments: argparse.Namespace) -> Workspace:
    """The workspace the options name. Raises WorkspaceError when it cannot be written."""
    return Workspace(workspace_path(arguments))
