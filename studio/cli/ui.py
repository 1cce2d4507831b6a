"""``studio ui``: hand over to the process that serves the browser side."""

import argparse
import os
import subprocess
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb; ``--workspace`` is common to all verbs and added by the command line."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other than this machine needs a token"
    )
    parser.add_argument("--port", type=int, default=7860, help="first port to try; the next free one is used")
    parser.add_argument("--token", help="secret that the link carries (made up when --host is not this machine)")
    parser.add_argument("--open", action="store_true", help="open the browser")


def command(args: argparse.Namespace) -> list[str]:
    """The argument list of the server process."""
    argv = [sys.executable, "-m", "studio.ui", f"--host={args.host}", f"--port={args.port}"]
    argv.append(f"--workspace={args.workspace}")
    if args.token:
        argv.append(f"--token={args.token}")
    return [*argv, "--open"] if args.open else argv


def run(args: argparse.Namespace) -> int:
    """Become the server process (Windows: start it and wait); the exit code."""
    argv = command(args)
    if os.name == "nt":
        return subprocess.call(argv)
    os.execv(argv[0], argv)
