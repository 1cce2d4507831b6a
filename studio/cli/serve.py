"""serve: a chat server (OpenAI protocol) in the foreground."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from studio.chat_server import free_port
from studio.cli.target import add_target, find_target
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.events import ExitCode
from studio.runner import engine_environment


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("serve", help="serve a model or a run over the OpenAI protocol")
    add_target(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port; the next free one is used if it is taken")
    parser.add_argument("--api-key-env", metavar="VAR", help="environment variable with the key clients must send")
    parser.add_argument(
        "--idle-minutes",
        type=float,
        default=0.0,
        metavar="N",
        help="let go of the weights N minutes after the last answer; the next question loads them (default: never)",
    )
    parser.add_argument(
        "--no-system", action="store_true", help="do not add the run's system prompt to conversations without one"
    )
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    target = find_target(workspace, arguments.model, arguments.adapter)
    port = free_port(arguments.port, arguments.host)
    bits = arguments.bits or target.bits
    argv = [sys.executable, "-m", "studio.engine", "serve", "--base", target.base, "--bits", str(bits)]
    argv += ["--host", arguments.host, "--port", str(port), "--workspace", str(workspace.path)]
    argv += ["--idle-minutes", str(arguments.idle_minutes), *([] if arguments.no_system else ["--with-system"])]
    if target.system and not target.adapters:
        argv += [f"--base-system={target.system}"]
    for name, path in target.adapters.items():
        argv += ["--adapter", f"{name}={path}"]
    if arguments.api_key_env:
        argv += ["--api-key-env", arguments.api_key_env]
    names = ", ".join(["base", *target.adapters])
    print(f"serving {names} at http://{arguments.host}:{port}/v1 (ready when /health says so; Ctrl-C ends it)")
    sys.stdout.flush()
    # A session of its own: Ctrl-C reaches the child through us, as a plain request to end.
    child = subprocess.Popen(
        [*argv, "--exit-with-stdin"], stdin=subprocess.PIPE, env=engine_environment(), start_new_session=True
    )
    # Both set here: a shell starts background jobs with SIGINT ignored, and Python leaves it at that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: child.terminate())
    return _exit_code(child.wait())


def _exit_code(code: int) -> int:
    """Being told to end is a good end, also before the child could say so itself; any other signal is not."""
    if code == -signal.SIGTERM:
        return ExitCode.FINISHED
    return code if code >= 0 else ExitCode.INTERNAL
