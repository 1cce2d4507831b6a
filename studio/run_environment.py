"""The machine a run works on, in a few plain facts: for its record and its card."""

from __future__ import annotations

import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio import hardware

CPU_FACTS = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """Python, system, processor, cores, memory in bytes and the GPUs with their driver; looked up once per process."""
    memory, _ = hardware.memory_bytes()
    gpus = [{"index": gpu.index, "name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in hardware.find_gpus()]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
        "processor": processor(),
        "cores": hardware.cpu_cores(),
        "memory_bytes": memory,
        "gpus": gpus,
        "driver": next((gpu.driver for gpu in hardware.find_gpus()), ""),
    }


def processor(facts: Path = CPU_FACTS) -> str:
    """The name of the processor; its architecture where the system does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", facts.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return " ".join(found.group(1).split()) if found else platform.processor() or platform.machine()
