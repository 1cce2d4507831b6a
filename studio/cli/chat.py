"""chat: talk to a model or a run in the terminal; works in pipes too, one question per line."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from studio import chat_server
from studio.cli.talk import Manner, Talk, released
from studio.cli.target import Target, add_target, find_target
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.events import ExitCode
from studio.presets import MODEL_FIELD
from studio.records.mappings import system_prompts
from studio.records.template_names import named_template
from studio.schema import ConfigError, FieldError, nearest
from studio.tool_calls import style_of
from studio.tool_loop import tool_style_at
from studio.tool_protocols import Protocol, protocol_of_style
from studio.tools import Tool, listed
from studio.workspace import Workspace

READY_POLL_S = 0.2
EVERY_TOOL = "all"


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("chat", help="talk to a model or a run in the terminal")
    add_target(parser)
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system", default=None, help="system prompt (default: the one the run was trained with)")
    system.add_argument("--system-template", metavar="NAME", help="system prompt by name: alpaca, coder, moss_sft …")
    parser.add_argument("--prompt-template", metavar="NAME", help="chat template by name (default: the model's own)")
    _add_sampling(parser)
    parser.add_argument("--bot-name", metavar="NAME", help="what the model is called before its answers")
    parser.add_argument("--no-streamer", action="store_true", help="show an answer when it is complete")
    parser.add_argument(
        "--with-plugins",
        nargs="*",
        metavar="TOOL",
        help="tools the model may use: calculate, solve, clock, search or your own (no name: all that can be used)",
    )
    parser.add_argument(
        "--tool-style",
        choices=("native", "react", "moss"),
        help="how the model speaks of tools (default: as its chat template does, else react)",
    )
    parser.add_argument("--compare", action="store_true", help="ask the base model too and show both answers")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_chat)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest word (default: 0.7)")
    parser.add_argument("--top-k", type=int, default=None, help="only so many of the likeliest words")
    parser.add_argument("--top-p", type=float, default=None, help="only the likeliest words that make up this share")
    parser.add_argument(
        "--min-p", type=float, default=None, help="no words less likely than this share of the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=None, help="above 1: fewer repetitions (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=None, help="same seed, same answer")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    parser.add_argument("--stop-words", nargs="+", default=[], metavar="TEXT", help="texts that end an answer")
    # As older versions of the notes' tool call them.
    for name in ("--answer-stop-word", "--command-stop-word"):
        parser.add_argument(name, dest="stop_words", action="append", help=argparse.SUPPRESS)
    parser.add_argument(
        "--torch-dtype",
        choices=("fp16", "bf16", "fp32", "auto"),
        help="fp32: the same as --bits 32; else as --bits says",
    )


def _chat(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    target = find_target(workspace, arguments.model, arguments.adapter)
    system = _system(arguments, target)
    style = style_of(named_template(arguments.prompt_template).source) if arguments.prompt_template else None
    tools = chosen_tools(workspace, arguments.with_plugins)
    bits = arguments.bits or (32 if arguments.torch_dtype == "fp32" else target.bits)
    server = chat_server.start_chat_server(workspace, target.base, target.adapters, bits)
    try:
        fault = _wait_until_ready(server)
        if fault is not None:
            return fault
        names = ["base", target.asked] if arguments.compare and target.adapters else [target.asked]
        protocol = _protocol(arguments, server, target, style) if tools else "native"
        manner = Manner(
            _options(arguments), tools, protocol, arguments.bot_name or "", streams=not arguments.no_streamer
        )
        return Talk(server, names, system, manner, workspace.path / "chat" / "history.txt").hold()
    finally:
        server.stop()


def _protocol(
    arguments: argparse.Namespace, server: chat_server.ChatServer, target: Target, style: str | None
) -> Protocol:
    if arguments.tool_style:
        chosen: Protocol = arguments.tool_style
        return chosen
    return protocol_of_style(tool_style_at(server.base_url, target.asked) if style is None else style)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the requests say beside the messages; what is not given is the server's default."""
    return {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed,
        "max_tokens": arguments.max_new_tokens,
        "stop": arguments.stop_words or None,
        "chat_template": arguments.prompt_template,
        "truncation": "auto",
    }


def _system(arguments: argparse.Namespace, target: Target) -> str:
    if arguments.system_template is None:
        return (arguments.system if arguments.system is not None else target.system) or ""
    known = system_prompts()
    if arguments.system_template in known:
        return known[arguments.system_template]
    near = nearest(arguments.system_template, tuple(known))
    hint = f"did you mean {near}?" if near else f"there are {', '.join(sorted(known))}"
    raise ConfigError(
        [FieldError("system_template", f"there is no system prompt {arguments.system_template!r}; {hint}")]
    )


def chosen_tools(workspace: Workspace, names: list[str] | None) -> list[Tool]:
    """The tools of those names, all that can be used for no name, none for None. Raises ConfigError."""
    if names is None:
        return []
    known = {tool.name: tool for tool in listed(workspace)}
    if not names or names == [EVERY_TOOL]:
        return [tool for tool in known.values() if tool.obstacle is None]
    for name in names:
        if name not in known:
            raise ConfigError([FieldError("with_plugins", f"there is no tool {name!r}; there are {', '.join(known)}")])
        if known[name].obstacle:
            raise ConfigError([FieldError("with_plugins", str(known[name].obstacle))])
    return [known[name] for name in dict.fromkeys(names)]


def _said(message: str, hint: str) -> str:
    """A message and what to do, with a stop between them, and without the field of a form nobody filled in."""
    message = message.removeprefix(f"{MODEL_FIELD}: ")
    between = "" if not hint or message.endswith((".", "!", "?")) else ";"
    return f"{message}{between} {hint}".strip()


def _wait_until_ready(server: chat_server.ChatServer) -> int | None:
    """None when the server can be asked, else the exit code, after saying what went wrong."""
    print("loading the model …", file=sys.stderr, flush=True)
    while True:
        health = server.health()
        if health["state"] == "ready":
            return None
        if health["state"] == "failed":
            error: Any = health.get("error") or {}
            print(f"error: {_said(str(error.get('message')), str(error.get('hint') or ''))}", file=sys.stderr)
            return ExitCode.OUT_OF_MEMORY if error.get("kind") == "memory" else ExitCode.BAD_INPUT
        if health["state"] == "released":
            print(released(str(health["run"])), file=sys.stderr)
            return ExitCode.OUT_OF_MEMORY
        if health["state"] == "dead":
            print(f"error: the chat server ended; its log: {server.log_file}", file=sys.stderr)
            return int(str(health.get("exit_code") or 0)) or ExitCode.INTERNAL
        time.sleep(READY_POLL_S)
