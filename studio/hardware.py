"""What this machine has: processors, memory, disk, GPUs, a compiler, a browser. Changes nothing, loads no torch."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

CGROUP = Path("/sys/fs/cgroup")
WSL_PROGRAMS = "/usr/lib/wsl/lib"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_LIMIT = 1 << 60  # control groups write "no limit" as a number near 2**63


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. Memory in bytes; `capability` is its compute capability, such as (8, 9), if the driver says."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    driver: str
    capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Hardware:
    """What a run can use. Memory and disk in bytes, load in busy cores (mean of the last minute)."""

    cores: int
    load: float
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    compiler: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def detect(path: Path | None = None) -> Hardware:
    """Look at the machine; `path` says on which disk the free space is asked for (default: the current folder)."""
    memory, free = memory_bytes()
    return Hardware(
        cores=cpu_cores(),
        load=system_load(),
        memory_bytes=memory,
        memory_free_bytes=free,
        disk_free_bytes=disk_free_bytes(path or Path.cwd()),
        gpus=find_gpus(),
        compiler=shutil.which("g++"),
    )


def cpu_cores(root: Path = CGROUP) -> int:
    """Cores this process may use: the affinity mask, or fewer if a container's quota says so."""
    if sys.platform == "linux":
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _cpu_quota(root)
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


def _cpu_quota(root: Path) -> float | None:
    """Cores granted by the control group, version 2 (`cpu.max`) or 1; None without a limit."""
    limit = _read(root / "cpu.max").split()
    if len(limit) != 2:
        limit = [_read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")]
    amount, period = limit
    if amount.isdigit() and period.isdigit() and int(period) > 0:
        return int(amount) / int(period)
    return None


def system_load() -> float:
    """Busy cores, mean of the last minute; 0 where the system does not say."""
    try:
        return float(os.getloadavg()[0])
    except (OSError, AttributeError):  # AttributeError: Windows
        return 0.0


def recommended_threads(cores: int | None = None, load: float | None = None) -> int:
    """Threads a run should compute with, at least 1.

    Threads that wait for a core spin, and a run with one thread too many is many times slower than one with a thread
    too few: so only cores that are idle now are counted.
    """
    cores = cpu_cores() if cores is None else cores
    load = system_load() if load is None else load
    physical = psutil.cpu_count(logical=False) or cores
    idle = cores - math.floor(load + 0.5)  # a little background noise is not a busy core
    return max(1, min(idle, physical))


def memory_bytes(root: Path = CGROUP) -> tuple[int, int]:
    """(total, available) memory; a container's limit counts when it is lower than the machine's."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(root / limit_file), _read(root / used_file)
        if limit.isdigit() and int(limit) < min(total, NO_LIMIT):
            total = int(limit)
            free = min(free, max(0, total - int(used)) if used.isdigit() else total)
    return total, free


def disk_free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, or would hold it once it is made; 0 if that cannot be told."""
    for candidate in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(candidate).free
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):  # ValueError: no path at all
            return 0
    return 0


def find_gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs as the driver's own program lists them; none if it is not there or does not answer."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_PROGRAMS)
    if program is None:
        return ()
    for more in (",compute_cap", ""):  # drivers before 2022 refuse the whole question for a word they do not know
        query = f"--query-gpu=index,name,memory.total,memory.free,driver_version{more}"
        try:
            answer = subprocess.run(
                [program, query, "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=20,
                check=True,
            )
        except subprocess.CalledProcessError:
            continue
        except (OSError, subprocess.SubprocessError):
            return ()
        return parse_gpus(answer.stdout)
    return ()


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """GPUs from the comma-separated listing (memory in MiB); lines that are something else are left out."""
    found = []
    for line in listing.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) not in (5, 6) or not cells[0].isdigit():
            continue
        total, free = (int(cell) << 20 if cell.isdigit() else 0 for cell in cells[2:4])
        found.append(Gpu(int(cells[0]), cells[1], total, free, cells[4], _capability(cells[5:])))
    return tuple(found)


def _capability(cells: list[str]) -> tuple[int, int] | None:
    major, _, minor = cells[0].partition(".") if cells else ("", "", "")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def visible_gpus(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those of them an engine may use: CUDA_VISIBLE_DEVICES can hide some and give another order."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    known = {str(gpu.index): gpu for gpu in gpus}
    names = [name.strip() for name in chosen.split(",")]
    if any(name.startswith(("GPU-", "MIG-")) for name in names):  # identifiers, which the listing does not name
        return gpus
    seen = list(takewhile(lambda name: name in known, names))  # CUDA ignores what follows a wrong number
    return tuple(known[name] for name in seen)


def torch_has_cuda() -> bool:
    """Whether the installed build of torch can use a GPU; read from its files, torch is not loaded."""
    found = find_spec("torch")
    text = _read(Path(found.origin).with_name("version.py")) if found and found.origin else ""
    return bool(re.search(r"^cuda\b[^=\n]*=\s*['\"]", text, re.MULTILINE))


def find_chromium() -> str | None:
    """The browser of the tests: the one CHROMIUM names, one on the system, or playwright's own; None without one."""
    named = os.environ.get("CHROMIUM")
    if named and Path(named).exists():
        return named
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    home = Path.home()
    for folder in (Path(sys.prefix) / "browsers", home / ".cache/ms-playwright", home / "Library/Caches/ms-playwright"):
        for pattern in ("chrome-*/chrome", "chrome-*/chrome.exe", "chrome-*/*.app/Contents/MacOS/*"):
            if downloads := sorted(folder.glob(f"chromium-*/{pattern}")):
                return str(downloads[-1])
    return None


def _read(path: Path) -> str:
    """A small system file's text, or nothing."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
