"""The command line: one verb per file, each with `--help` and a real exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from studio import __version__
from studio.events import ExitCode
from studio.locales import speak_utf8, start_in_utf8
from studio.presets import ModelError
from studio.records.errors import DataError
from studio.remote_code import allow
from studio.run_deletion import DeletionRefused
from studio.runner import StartRefused
from studio.schema import ConfigError
from studio.workspace import RunNotFound, WorkspaceError

# Verb modules in the order of the help text; each adds its parsers with `add_parser(subparsers)`.
VERBS = (
    "ui", "demo", "presets", "train", "estimate", "runs", "queue", "data", "models", "convert", "merge", "export",
    "serve", "chat", "answers", "tools", "doctor",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb."""
    parser = argparse.ArgumentParser(
        prog="studio",
        description="Crucible 丹炉: teach a language model a new identity, skill or field, and see whether it worked.",
    )
    parser.add_argument("--version", action="version", version=f"Crucible {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        import_module(f"studio.cli.{name}").add_parser(verbs)
    test = verbs.add_parser("test", help="run the tests (python launch.py test)")
    test.set_defaults(func=_test)
    return parser


def _test(arguments: argparse.Namespace) -> int:
    del arguments
    print("the tests are run by the launcher: python launch.py test", file=sys.stderr)
    return ExitCode.BAD_INPUT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code. An expected error is one sentence on stderr, never a traceback."""
    if argv is None:
        start_in_utf8()
    speak_utf8()
    arguments = build_parser().parse_args(argv)
    if getattr(arguments, "trust_remote_code", False):
        allow()
    try:
        return int(arguments.func(arguments))
    except (ConfigError, DataError, DeletionRefused, ModelError, RunNotFound, StartRefused, WorkspaceError) as error:
        # str() of a LookupError would add quotes
        print(f"error: {error.args[0] if isinstance(error, RunNotFound) else error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `… | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; free some space or choose --workspace", file=sys.stderr)
        return ExitCode.INTERNAL
