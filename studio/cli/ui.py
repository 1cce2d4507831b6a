"""ui: hand over to the process that serves the studio to a browser."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from studio.cli.workspace import add_remote_code, add_workspace, open_workspace


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("ui", help="open the studio in a browser")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other than this machine needs a token"
    )
    parser.add_argument("--port", type=int, default=7860, help="first port to try; the next free one is used")
    parser.add_argument("--token", help="secret that the link carries (made up when --host is not this machine)")
    parser.add_argument("--open", action="store_true", help="open the browser")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_ui)


def command(arguments: argparse.Namespace) -> list[str]:
    """The argument list of the server process. Raises WorkspaceError."""
    argv = [sys.executable, "-m", "studio.ui", f"--host={arguments.host}", f"--port={arguments.port}"]
    argv.append(f"--workspace={open_workspace(arguments).path}")
    if arguments.token:
        argv.append(f"--token={arguments.token}")
    return [*argv, "--open"] if arguments.open else argv


def _ui(arguments: argparse.Namespace) -> int:
    argv = command(arguments)
    if os.name == "nt":
        return subprocess.call(argv)
    os.execv(argv[0], argv)
