"""A conversation in the terminal: questions, commands, answers as they come, tools in between."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.chat_client import ChatError
from studio.chat_server import ChatServer
from studio.cli.questions import questions
from studio.events import ExitCode
from studio.tool_loop import Asked, Step, run
from studio.tool_protocols import Protocol
from studio.tools import Tool

HELP = """\
Ask away; a line that ends with \\ goes on in the next. Ctrl-C stops an answer, Ctrl-D or EXIT ends.
/clear or RESET   start over                   /undo             take back the last question
/retry            answer the last one again    /system TEXT      another system prompt, and start over
/set NAME VALUE   temperature, top_p, top_k, min_p, repetition_penalty, seed, max_tokens (no value: the default)
/tools            the tools in use             /save FILE        write the conversation, .json or .md
"""
_NUMBERS: dict[str, Callable[[str], float]] = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float, "seed": int,
    "max_tokens": int,
}  # fmt: skip
_SHOWN_RESULT = 500
Message = dict[str, Any]


@dataclass(frozen=True)
class Manner:
    """How answers are asked for and shown; `options` are further keys of the requests."""

    options: dict[str, Any]
    tools: Sequence[Tool] = ()
    protocol: Protocol = "native"
    bot_name: str = ""
    streams: bool = True


class Talk:
    """One conversation per model, held line by line."""

    def __init__(self, server: ChatServer, names: list[str], system: str, manner: Manner, past: Path) -> None:
        self.server, self.manner, self.past = server, manner, past
        self.options = dict(manner.options)
        self.typed = sys.stdin.isatty()
        self.start: list[Message] = []
        self.histories: dict[str, list[Message]] = dict.fromkeys(names, [])
        self._begin(system)

    def _begin(self, system: str) -> None:
        self.start = [{"role": "system", "content": system}] if system else []
        self._clear()

    def _clear(self) -> None:
        self.histories = {name: list(self.start) for name in self.histories}

    def hold(self) -> int:
        """Read questions until there are no more; returns the exit code."""
        if self.typed:
            print(HELP, file=sys.stderr)
        code = ExitCode.FINISHED
        for line in questions(self.past):
            if line in ("EXIT", "/exit", "/quit"):
                break
            question = self._obeyed(line)
            if question is None:
                continue
            try:
                for name in self.histories:
                    self._answer(name, question)
            except ChatError as error:
                fault = self._fault(error)
                if fault is not None:
                    return fault
                if not self.typed:  # nobody is there to read it and ask again
                    code = ExitCode.BAD_INPUT
        return code

    def _fault(self, error: ChatError) -> ExitCode | None:
        """Says why there is no answer; the exit code when there will be none any more."""
        health = self.server.health()
        if health["state"] == "released":
            print(f"\n{released(str(health['run']))}", file=sys.stderr)
            return ExitCode.OUT_OF_MEMORY
        print(f"\nerror: {error}", file=sys.stderr)
        return None if self.server.alive else ExitCode.INTERNAL

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _obeyed(self, line: str) -> str | None:
        """The question to ask now; None when the line was a command that is done."""
        if line.startswith("//"):
            return line[1:]
        if line != "RESET" and not line.startswith("/"):
            return line
        word, _, rest = line.partition(" ")
        if word == "/retry":
            question = self._taken_back()
            self._say("" if question else "there is no question yet")
            return question
        command = self._commands().get(word)
        unknown = f"there is no command {word[:40]}; /help lists them, and // begins a question with /"
        self._say(command(rest.strip()) if command else unknown)
        return None

    def _commands(self) -> dict[str, Callable[[str], str]]:
        """Each does something and gives the sentence that says so."""
        return {
            "RESET": self._cleared,
            "/clear": self._cleared,
            "/reset": self._cleared,
            "/undo": lambda _: "taken back" if self._taken_back() else "there is no question yet",
            "/system": self._other_system,
            "/set": self._set,
            "/tools": lambda _: "\n".join(f"{tool.name}: {tool.description}" for tool in self.manner.tools) or "none",
            "/save": self._save,
            "/help": lambda _: HELP,
        }

    def _say(self, text: str) -> None:
        if text:
            print(text, file=sys.stderr)

    def _cleared(self, _: str) -> str:
        self._clear()
        return "started over" if self.typed else ""

    def _other_system(self, text: str) -> str:
        self._begin(text)
        return "started over with another system prompt" if text else "started over without a system prompt"

    def _taken_back(self) -> str | None:
        """Removes the last question and its answers; the question, if there was one."""
        question = None
        for name, history in self.histories.items():
            last = max((at for at, message in enumerate(history) if message["role"] == "user"), default=None)
            if last is not None:
                question = str(history[last]["content"])
                self.histories[name] = history[:last]
        return question

    def _set(self, text: str) -> str:
        name, _, value = text.replace("=", " ").partition(" ")
        name = {"max_new_tokens": "max_tokens"}.get(name.replace("-", "_"), name.replace("-", "_"))
        if name not in _NUMBERS:
            return f"there is no setting {name[:40]!r}; there are {', '.join(_NUMBERS)}"
        try:
            self.options[name] = _NUMBERS[name](value) if value.strip() else None
        except ValueError:
            return f"{value.strip()[:40]!r} is no number for {name}"
        return f"{name}: {value.strip() or 'default'}"

    def _save(self, text: str) -> str:
        path = Path(text).expanduser()
        if path.suffix.lower() not in (".json", ".md"):
            return "write /save FILE with a name that ends with .json or .md"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_as_json(self.histories) if path.suffix.lower() == ".json" else _as_markdown(self.histories))
        except OSError as error:
            return f"{path} cannot be written ({error.strerror})"
        return f"written to {path}"

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, name: str, question: str) -> None:
        asked: list[Message] = [*self.histories[name], {"role": "user", "content": question}]
        label = name if len(self.histories) > 1 else self.manner.bot_name or (name if self.typed else "")
        shown = _Shown(self.manner, label, typed=self.typed)
        try:
            asyncio.run(self._ask(name, asked, shown))
        except KeyboardInterrupt:  # the answer, not the program
            print(" [stopped]", flush=True)
            shown.added = [{"role": "assistant", "content": shown.text}]
        self.histories[name] = [*asked, *shown.added]

    async def _ask(self, name: str, messages: list[Message], shown: _Shown) -> None:
        asked = Asked(self.server.base_url, name, self.options)
        async with aclosing(run(asked, messages, self.manner.tools, self.manner.protocol)) as steps:
            async for step in steps:
                shown.show(step)
        shown.finish()


class _Shown:
    """One answer on the screen."""

    def __init__(self, manner: Manner, label: str, *, typed: bool) -> None:
        self.streams, self.typed = manner.streams, typed
        self.text = ""
        self.added: list[Message] = []
        self._facts = ""
        if label:
            print(f"{label}: ", end="", flush=True)

    def show(self, step: Step) -> None:
        """One step, on the answer's line; calls and results on lines of their own, beside the answer."""
        if step.delta.dropped:
            self._aside(f"[the oldest {step.delta.dropped} messages did not fit and were left out]")
        if step.delta.usage and step.delta.timings:
            self._facts = _speed(step.delta.usage, step.delta.timings)
        if step.kind == "text":
            self.text += step.text
            if self.streams:
                print(step.text, end="", flush=True)
        elif step.kind == "call" and step.call:
            if self.streams and self.text and not self.text.endswith("\n"):
                print(flush=True)
                self.text += "\n"
            self._aside(f"[{step.call.name} {step.call.arguments}]")
        elif step.kind == "result":
            self._aside(f"[{'it refuses: ' if step.failed else '→ '}{_cut(step.text)}]")
            self.text = ""
        else:
            self.added = list(step.messages)

    def finish(self) -> None:
        """The end of the answer."""
        print("" if self.streams else self.text, flush=True)
        if self.typed and self._facts:
            print(self._facts, file=sys.stderr)

    def _aside(self, line: str) -> None:
        """On the terminal in between; in a pipe apart, for there the answer is all that is wanted."""
        print(line, file=sys.stderr, flush=True)


def released(run_id: str) -> str:
    """The sentence for a chat that made room for a run."""
    return (
        f"error: the chat was ended: run {run_id or 'that was started'} needed its memory; chat again when it is done"
    )


def _speed(usage: Mapping[str, int], timings: Mapping[str, float]) -> str:
    count, speed = usage.get("completion_tokens", 0), timings.get("predicted_per_second")
    return f"[{count} tokens, {speed:.0f} tokens/s]" if speed else f"[{count} tokens]"


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_RESULT else f"{text[:_SHOWN_RESULT]}…"


def _as_json(histories: Mapping[str, list[Message]]) -> str:
    """One conversation as a row of a dataset, several by their models' names."""
    rows = {name: {"messages": history} for name, history in histories.items()}
    return json.dumps(rows if len(rows) > 1 else next(iter(rows.values())), ensure_ascii=False, indent=1) + "\n"


def _as_markdown(histories: Mapping[str, list[Message]]) -> str:
    parts = []
    for name, history in histories.items():
        parts.append(f"# {name}")
        for message in history:
            calls = [
                f"`{call['function']['name']} {call['function']['arguments']}`"
                for call in message.get("tool_calls", [])
            ]
            said = "\n\n".join(filter(None, [str(message["content"]), *calls]))
            parts.append(f"**{message['role']}**\n\n{said}")
    return "\n\n".join(parts) + "\n"
