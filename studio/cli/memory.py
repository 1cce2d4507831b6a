"""What would make a run fit that ran out of memory, as commands to copy."""

from __future__ import annotations

import json
import shlex
from typing import Any

from studio.memory_doctor import Remedy, diagnose
from studio.rundir import RunDir

_VERDICTS = {"fits": "fits", "tight": "may just fit", "no": "may not be enough"}


def remedies_text(run: RunDir) -> list[str]:
    """Lines for a terminal, the best first; none for a run that did not run out of memory."""
    found = diagnose(run)
    if found is None or not found.remedies:
        return []
    lines = ["what would make it fit:"]
    for remedy in found.remedies:
        lines += [f"  {_command(run, remedy)}", f"      {_explained(remedy)}"]
    return lines


def remedies_json(run: RunDir) -> list[dict[str, Any]]:
    """The same for programs."""
    found = diagnose(run)
    return [
        {
            "set": one.changes,
            "needed_bytes": one.needed,
            "usable_bytes": one.usable,
            "verdict": one.verdict,
            "slowdown": one.slowdown,
            "continues": one.continues,
            "from_step": one.from_step,
            "command": _command(run, one),
        }
        for one in (found.remedies if found else ())
    ]


def _command(run: RunDir, remedy: Remedy) -> str:
    changes = [f"--set {shlex.quote(f'{path}={_value(value)}')}" for path, value in remedy.changes.items()]
    if remedy.continues:
        return " ".join(["runs resume", run.id, *changes])
    return " ".join(["runs clone", run.id, "smaller.yaml", *changes, "&& train smaller.yaml"])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _explained(remedy: Remedy) -> str:
    needs = f"about {_size(remedy.needed)} of {_size(remedy.usable)}" if remedy.needed else ""
    if not remedy.continues:
        begins = "begins again"
    elif remedy.from_step:
        begins = f"goes on from step {remedy.from_step}"
    else:
        begins = "begins at the first step"
    cut = f"{remedy.cut:.0%} of the rows lose their end" if remedy.cut else ""
    parts = [remedy.message, needs, _VERDICTS[remedy.verdict], begins, cut]
    return "; ".join(part for part in parts if part)


def _size(amount: int) -> str:
    return f"{amount / 2**30:.2f} GB" if amount < 10 * 2**30 else f"{amount / 2**30:.1f} GB"
