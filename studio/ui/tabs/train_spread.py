"""What each way to divide a run costs in the numbers of the form, and the line that starts it on each machine."""

from typing import Any

from studio.bounds import UNKNOWN
from studio.config import RunConfig
from studio.estimate import Plan
from studio.launch_lines import machine_lines
from studio.memory import facts_of, shape_of
from studio.spread import rows
from studio.ui.sentences import translated
from studio.ui.tabs.train_fit import device_of

LINES_SHOWN = 64


def spread_json(config: RunConfig, found: Plan | None, card: str) -> dict[str, Any]:
    """What the group shows: every way to divide in the numbers of this configuration, and the line of each machine."""
    shape, device = shape_of(config), device_of(card)
    facts = facts_of(found.prepared, found.counts) if found else UNKNOWN
    section = config.parallel
    lines = machine_lines(config) if section.num_machines > 1 else []
    return {
        "processes": section.num_processes,
        "machines": section.num_machines,
        "machine": section.machine_rank,
        "own": section.deepspeed_config is not None,
        "gpu": device.kind == "cuda",
        "rows": [
            {
                "name": row.name,
                "now": row.chosen,
                "set": row.overrides,
                "bytes": row.expected,
                "host": row.host_bytes,
                "saves": row.saves,
                "sent": row.sent_bytes,
                "speed": row.tokens_per_second,
                "verdict": row.verdict,
                "problem": _problem(row.problem),
            }
            for row in (rows(config, shape, device, facts) if shape else ())
        ],
        "lines": lines[:LINES_SHOWN],
    }


def _problem(sentence: str) -> str:
    """Why a way cannot be chosen, without the name of the field."""
    told = translated(sentence)
    field, colon, rest = told.partition(": ")
    told = rest if colon and "." in field and " " not in field else told
    first = told.split(" ", 1)[0]
    return told if any(sign.isdigit() for sign in first) else told[:1].upper() + told[1:]  # fsdp2 is a name
