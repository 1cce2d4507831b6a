"""The equation solver: sympy in a process of its own, ended when it takes too long."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from studio.presets import ROOT
from studio.processes import bare_environment
from studio.tools.expression import LONGEST
from studio.tools.tool import Tool, ToolError

COMPUTING_S = 5
"""Seconds the processor may work on it."""
PATIENCE_S = 60.0
"""Longest wait, whatever else it is that takes so long."""
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "equations": {
            "type": "string",
            "description": "one equation, or several separated by semicolons: x + y = 3; x - y = 1",
        },
        "unknown": {"type": "string", "description": "what to solve for, such as x; empty: all"},
    },
    "required": ["equations"],
}


def solver() -> Tool:
    """The tool."""
    return Tool("solve", "Solves equations and systems of equations exactly.", _PARAMETERS, _solve)


def _solve(arguments: dict[str, Any]) -> str:
    if len(str(arguments["equations"])) > LONGEST:
        raise ToolError(f"solve: it is longer than {LONGEST} characters")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studio.tools.solving"],
            input=json.dumps({**arguments, "seconds": COMPUTING_S}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
            check=False,
            env=bare_environment() | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ToolError("solve: it takes too long; make it simpler") from None
    except OSError as error:
        raise ToolError(f"solve: the solver cannot be started ({error.strerror or error})") from None
    if done.returncode < 0:
        raise ToolError("solve: it takes too long or too much memory; make it simpler")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise ToolError("solve: the solver broke off; is sympy installed (pip install sympy)?") from None
    if "fault" in found:
        raise ToolError(f"solve: {found['fault']}")
    return str(found["answer"])
