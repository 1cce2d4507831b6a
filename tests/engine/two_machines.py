"""Two machines on one: each has a network card, processes, a name and a disk of its own, by namespaces of the kernel.

Whatever runs on a machine ends with it, so that no test leaves a process behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from studio.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 400  # against hanging; a busy machine takes its time
BOOT = """
set -e
hostname {name}
mount --bind {own} {shared}
echo up
while :; do sleep 3600 & wait $! || true; done
"""
# Stands for `pdsh` with ssh: -w a,b and a command in which %n is the number of the host.
PDSH = """#!/bin/bash
while [[ $1 == -* ]]; do case $1 in -w) hosts=$2; shift 2;; -f) shift 2;; *) shift;; esac; done
number=0; started=(); code=0
for host in ${{hosts//,/ }}; do
  command=${{*//[%]n/$number}}
  nsenter --target "$(cat {folder}/$host.pid)" --mount --pid --net --uts -- sh -c "$command" &
  started+=($!); number=$((number + 1))
done
for one in "${{started[@]}}"; do wait "$one" || code=$?; done
exit $code
"""
SSH = """#!/bin/bash
case "$*" in *"hostname -I") echo "{address} ";; *) echo "$2";; esac
"""


def why_not() -> str:
    """Why there can be no such machines here; empty when there can."""
    if sys.platform != "linux" or not all(shutil.which(name) for name in ("ip", "unshare", "nsenter", "mount")):
        return "needs Linux with ip, unshare and nsenter"
    name = f"cruc{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"network namespaces are not permitted here: {made.stderr.strip()}" if made.returncode else ""


class Machine:
    """One of the two; `workspace` is where its disk is seen from outside."""

    def __init__(self, number: int, folder: Path, shared: Path) -> None:
        self.name, self.space = f"machine-{number}", f"cruc{os.getpid()}n{number}"
        self.address, self.workspace = f"10.93.0.{number + 1}", folder / f"disk-{number}"
        self.workspace.mkdir()
        self._folder, self._shared = folder, shared

    def boot(self) -> None:
        """Start its first process, which lasts as long as the machine."""
        script = BOOT.format(name=self.name, own=self.workspace, shared=self._shared)
        enter = ["ip", "netns", "exec", self.space, "unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        self._kernel = subprocess.Popen(
            [*enter, "--mount-proc", "bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._kernel.stdout
        assert self._kernel.stdout.readline() == "up\n"
        [self.first] = psutil.Process(self._kernel.pid).children()
        (self._folder / f"{self.name}.pid").write_text(str(self.first.pid), encoding="utf-8")

    def run(self, *argv: str) -> subprocess.Popen[bytes]:
        """Start `studio` on it."""
        enter = ["nsenter", "--target", str(self.first.pid), "--mount", "--pid", "--net", "--uts", "--"]
        return subprocess.Popen([*enter, sys.executable, "-m", "studio.cli", *argv], cwd=ROOT)

    def at_work(self) -> list[psutil.Process]:
        """Processes of the studio on it."""
        found = []
        for process in self.first.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and "studio" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def rank(self) -> psutil.Process:
        """The process that trains on it."""
        [found] = [process for process in self.at_work() if "rank" in process.cmdline()]
        return found

    def only_run(self) -> RunDir:
        """Its run, once there is one."""
        wait(lambda: any((self.workspace / "runs").glob("*/config.yaml")))
        [path] = (self.workspace / "runs").iterdir()
        return RunDir(path)

    def end(self) -> None:
        """Switch it off."""
        if hasattr(self, "_kernel"):
            self._kernel.kill()
            self._kernel.wait()
            assert self._kernel.stdout
            self._kernel.stdout.close()


def wait(condition: Callable[[], object]) -> None:
    """Until it holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)


@contextlib.contextmanager
def two_machines(folder: Path, shared: Path) -> Iterator[tuple[Machine, Machine]]:
    """Both, joined by a cable; what is at `shared` is another disk on each. `folder/bin` has their `pdsh` and `ssh`."""
    machines = Machine(0, folder, shared), Machine(1, folder, shared)
    try:
        for machine in machines:
            _do("ip", "netns", "add", machine.space)
        first, second = (machine.space for machine in machines)
        _do("ip", "link", "add", "wire0", "netns", first, "type", "veth", "peer", "name", "wire1", "netns", second)
        for number, machine in enumerate(machines):
            inside = ("ip", "-n", machine.space)
            _do(*inside, "addr", "add", f"{machine.address}/24", "dev", f"wire{number}")
            for card in (f"wire{number}", "lo"):
                _do(*inside, "link", "set", card, "up")
            machine.boot()
        _programs(folder, machines[0].address)
        yield machines
    finally:
        for machine in machines:
            machine.end()
            subprocess.run(["ip", "netns", "del", machine.space], capture_output=True, check=False)


def _programs(folder: Path, address: str) -> None:
    (folder / "bin").mkdir()
    for name, text in (("pdsh", PDSH.format(folder=folder)), ("ssh", SSH.format(address=address))):
        (folder / "bin" / name).write_text(text, encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)
