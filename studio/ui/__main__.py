"""``python -m studio.ui``: the process that serves the browser side (``studio ui`` starts it)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studio.locales import start_in_utf8


def parser() -> argparse.ArgumentParser:
    """Options of the server process."""
    found = argparse.ArgumentParser(prog="studio ui", description="Serve the studio to a browser.")
    found.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other than this machine needs a token"
    )
    found.add_argument("--port", type=int, default=7860, help="first port to try; the next free one is used")
    found.add_argument("--workspace", type=Path, required=True, help="folder of runs, datasets and exports")
    found.add_argument("--token", help="secret that the link carries (made up when --host is not this machine)")
    found.add_argument("--open", action="store_true", help="open the browser")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted; the exit code."""
    args = parser().parse_args(argv)
    if not 0 <= args.port <= 65535:
        sys.stderr.write(f"--port: {args.port} is not a port; use a number from 0 to 65535.\n")
        return 4
    from studio.ui.server import ServerOptions, serve

    workspace = args.workspace.expanduser().absolute()
    return serve(ServerOptions(workspace, args.host, args.port, args.token or None, args.open))


if __name__ == "__main__":
    start_in_utf8()
    sys.exit(main())
