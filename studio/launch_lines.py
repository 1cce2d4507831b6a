"""What starts each machine's part of a run by hand, and what the environment of the course notes says about it.

Pure: from configurations and texts to command lines and overrides; nothing is started and no file is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.config import RunConfig
from studio.reproduce import command_line
from studio.schema import ConfigError, FieldError

VARIABLES = {
    "NPROC_PER_NODE": (1, 1024),
    "NNODES": (1, 1024),
    "NODE_RANK": (0, 1023),
    "PORT": (1, 65535),
}
"""Numbers the course notes' launcher reads from the environment, and the least and the most each can be; ADDR is a
name."""
_HOST = re.compile(r"(?:[\w.-]+@)?[A-Za-z0-9_](?:[\w.:-]*[\w])?", re.ASCII)
_SLOTS = re.compile(r"slots=(\d{1,4})", re.ASCII)
MOST_MACHINES = 1024


def for_machine(config: RunConfig, rank: int) -> RunConfig:
    """The configuration as machine `rank` runs it."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"machine_rank": rank})})


def machine_argv(config: RunConfig, rank: int, program: Sequence[str] = ("studio",)) -> list[str]:
    """The arguments that start machine `rank`'s part of the run."""
    return command_line(for_machine(config, rank), program)


def machine_lines(config: RunConfig, program: Sequence[str] = ("studio",)) -> list[str]:
    """For every machine, in their order, the line that starts its part of the run when pasted into a shell there."""
    return [shlex.join(machine_argv(config, rank, program)) for rank in range(config.parallel.num_machines)]


# ---- the environment of the notes ------------------------------------------------------------------------------------


def spread_of(environment: Mapping[str, str], file: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields, by dotted path, that NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT set.

    `file` and `options` are what the configuration file and the command line say, by dotted path; options win.
    Without NPROC_PER_NODE and NNODES nobody means a training: PORT and ADDR then belong to some other program.

    Raises:
        ConfigError: a value that is no number in its range; the sentence names the variable.
    """
    if not any(environment.get(name, "").strip() for name in ("NPROC_PER_NODE", "NNODES")):
        return {}
    given = {name: number for name in VARIABLES if (number := _number(environment, name)) is not None}
    known = {**file, **options}
    before = _count(file.get("parallel.num_machines"))
    machines = _count(options.get("parallel.num_machines") or given.get("NNODES") or before)
    each = given.get("NPROC_PER_NODE") or max(1, _count(known.get("parallel.num_processes")) // before)
    found: dict[str, Any] = {"parallel.num_machines": machines, "parallel.num_processes": each * machines}
    if machines > 1:
        address = environment.get("ADDR", "").strip()
        found |= {"parallel.machine_rank": given["NODE_RANK"]} if "NODE_RANK" in given else {}
        found |= {"parallel.main_process_port": given["PORT"]} if "PORT" in given else {}
        found |= {"parallel.main_process_ip": address} if address else {}
    return {path: value for path, value in found.items() if path not in options}


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text, (least, most) = environment.get(name, "").strip(), VARIABLES[name]
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most:
        message = f"must be a whole number from {least} to {most}, not {text[:40]!r}; correct the environment variable"
        raise ConfigError([FieldError(name, message)])
    return int(text)


def _count(value: Any) -> int:
    """A number of machines or processes as far as it is one; what is none is refused with the configuration."""
    text = str(value or 1)
    return max(1, int(text[:9])) if text.isascii() and text.isdecimal() else 1


# ---- hostfiles -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """One machine of a hostfile: its name as ssh knows it, and how many processes it takes."""

    name: str
    slots: int


def parse_hostfile(text: str) -> list[Host]:
    """The machines of a hostfile in DeepSpeed's form, one `host slots=N` a line; # begins a comment.

    Raises:
        ConfigError: a line that is none, a host named twice, machines of different size, or no machine.
    """
    found: list[Host] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            found.append(_host(words, number, found))
    if not found:
        raise _wrong("names no machine; write one a line, like: worker-1 slots=8")
    if len(found) > MOST_MACHINES:
        raise _wrong(f"names {len(found)} machines; there can be {MOST_MACHINES} at most")
    other = next((host for host in found if host.slots != found[0].slots), None)
    if other:
        raise _wrong(
            f"{found[0].name} has slots={found[0].slots} and {other.name} has slots={other.slots}; every machine must "
            f"have as many processes, so give all of them slots={min(host.slots for host in found)}"
        )
    return found


def _host(words: list[str], number: int, before: list[Host]) -> Host:
    slots = _SLOTS.fullmatch(words[1]) if len(words) == 2 else None
    if not slots or not _HOST.fullmatch(words[0]):
        shown = " ".join(words)[:60]
        raise _wrong(f"line {number}: {shown!r} names no machine; write its name and its processes: worker-1 slots=8")
    if int(slots[1]) < 1:
        raise _wrong(f"line {number}: {words[0]} has no slots; leave the line out, or give it at least 1")
    if words[0] in {host.name for host in before}:
        raise _wrong(f"line {number}: {words[0]} is named twice; put its slots together in one line")
    return Host(words[0], int(slots[1]))


def _wrong(message: str) -> ConfigError:
    return ConfigError([FieldError("hostfile", message)])
