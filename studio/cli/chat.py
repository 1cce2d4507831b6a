"""chat: talk to a model or a run in the terminal; works in pipes too, one question per line."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from studio import chat_server
from studio.chat_client import ChatError, stream_chat
from studio.cli.target import Target, add_target, find_target
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.events import ExitCode

READY_POLL_S = 0.2
HELP = "Ask away; /clear starts over, Ctrl-C stops an answer, Ctrl-D ends."


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("chat", help="talk to a model or a run in the terminal")
    add_target(parser)
    parser.add_argument("--system", default=None, help="system prompt (default: the one the run was trained with)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest word (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=None, help="only the likeliest words that make up this share")
    parser.add_argument("--seed", type=int, default=None, help="same seed, same answer")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    parser.add_argument("--compare", action="store_true", help="ask the base model too and show both answers")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    target = find_target(workspace, arguments.model, arguments.adapter)
    server = chat_server.start_chat_server(workspace, target.base, target.adapters, arguments.bits or target.bits)
    try:
        fault = _wait_until_ready(server)
        if fault is not None:
            return fault
        return _Talk(server, target, arguments).hold()
    finally:
        server.stop()


def _wait_until_ready(server: chat_server.ChatServer) -> int | None:
    """None when the server can be asked, else the exit code, after saying what went wrong."""
    print("loading the model …", file=sys.stderr, flush=True)
    while True:
        health = server.health()
        if health["state"] == "ready":
            return None
        if health["state"] == "failed":
            error: Any = health.get("error") or {}
            print(f"error: {error.get('message')} {error.get('hint')}", file=sys.stderr)
            return ExitCode.OUT_OF_MEMORY if error.get("kind") == "memory" else ExitCode.BAD_INPUT
        if health["state"] == "released":
            print(_released(str(health["run"])), file=sys.stderr)
            return ExitCode.OUT_OF_MEMORY
        if health["state"] == "dead":
            print(f"error: the chat server ended; its log: {server.log_file}", file=sys.stderr)
            return int(str(health.get("exit_code") or 0)) or ExitCode.INTERNAL
        time.sleep(READY_POLL_S)


def _released(run_id: str) -> str:
    return (
        f"error: the chat was ended: run {run_id or 'that was started'} needed its memory; chat again when it is done"
    )


class _Talk:
    """One conversation per model, held line by line."""

    def __init__(self, server: chat_server.ChatServer, target: Target, arguments: argparse.Namespace) -> None:
        self.server = server
        compare = arguments.compare and bool(target.adapters)
        names = ["base", target.asked] if compare else [target.asked]
        system = arguments.system if arguments.system is not None else target.system
        self.start = [{"role": "system", "content": system}] if system else []
        self.histories = {name: list(self.start) for name in names}
        self.sampling = {
            "temperature": arguments.temperature,
            "top_p": arguments.top_p,
            "seed": arguments.seed,
            "max_tokens": arguments.max_new_tokens,
        }

    def hold(self) -> int:
        """Read questions until there are no more; returns the exit code."""
        if sys.stdin.isatty():
            print(HELP, file=sys.stderr)
        code = ExitCode.FINISHED
        for question in _questions():
            if question == "/clear":
                self.histories = {name: list(self.start) for name in self.histories}
                continue
            try:
                for name in self.histories:
                    self._answer(name, question)
            except ChatError as error:
                health = self.server.health()
                if health["state"] == "released":
                    print(f"\n{_released(str(health['run']))}", file=sys.stderr)
                    return ExitCode.OUT_OF_MEMORY
                print(f"\nerror: {error}", file=sys.stderr)
                if not self.server.alive:
                    return ExitCode.INTERNAL
                if not sys.stdin.isatty():  # nobody is there to read it and ask again
                    code = ExitCode.BAD_INPUT
        return code

    def _answer(self, name: str, question: str) -> None:
        history = self.histories[name]
        asked = [*history, {"role": "user", "content": question}]
        if len(self.histories) > 1:
            print(f"{name}: ", end="", flush=True)
        text = ""
        pieces = stream_chat(self.server.base_url, name, asked, **self.sampling)
        try:
            for piece in pieces:
                text += piece
                print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:  # the answer, not the program
            pieces.close()  # type: ignore[attr-defined]
            print(" [stopped]", flush=True)
        self.histories[name] = [*asked, {"role": "assistant", "content": text}]


def _questions() -> Iterator[str]:
    """Non-empty lines from standard input; a prompt only where a person types."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)", file=sys.stderr)
            continue
        if line.strip():
            yield line.strip()
