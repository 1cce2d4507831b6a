"""Starts, queues, resumes and stops engine processes.

A started run belongs to nobody: the child gets its own session and writes to files, so it outlives the tab, the
browser, the studio and the SSH line. Everything this module knows about a run it reads back from the run directory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from studio import dispatching, hardware, processes, remote_code, resources, run_environment, run_queue, turns
from studio.at_work import live_run as live_run
from studio.at_work import live_runs as live_runs
from studio.at_work import wait_for_ending
from studio.checkpoints import last_checkpoint, step_of
from studio.config import AnswersConfig, AnyConfig, RunConfig
from studio.events import Launch, RunState
from studio.presets import ROOT
from studio.run_queue import StartRefused as StartRefused
from studio.rundir import RunDir, write_atomic
from studio.schema import ConfigError, dump_yaml
from studio.stopping import stop as stop
from studio.stopping import stop_in_background as stop_in_background
from studio.stopping import take_over_stops as take_over_stops
from studio.turns import decisions as decisions
from studio.turns import needs_chat_memory as needs_chat_memory
from studio.workspace import Workspace

VERSIONED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
ENGINE: tuple[str, ...] = (sys.executable, "-m", "studio.engine")
ENDING_WAIT_S = 3.0
LOOK_AT_LOAD_S = 0.2
# Who this process is among those of the launcher that started it (torchrun, DeepSpeed, MPI, a cluster's operator); a
# run's own processes get their places from its own launcher.
_PLACES = frozenset({
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR", "MASTER_PORT", "ROLE_RANK", "ROLE_WORLD_SIZE",
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM",
})  # fmt: skip
_PLACES_BEGIN = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "PMI_", "MPI_LOCAL")


def engine_environment() -> dict[str, str]:
    """The environment of an engine: offline libraries stay quiet, threads fit this machine, output is unbuffered."""
    env = child_environment()
    env.setdefault("OMP_NUM_THREADS", str(_idle_threads()))
    # Spinning OpenMP barriers slow a shared CPU down by an order of magnitude.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    env.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return env | {"TOKENIZERS_PARALLELISM": "false"}


def child_environment() -> dict[str, str]:
    """What every Python child gets: it never imports what lies in its working directory."""
    own = {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return {name: value for name, value in os.environ.items() if not _is_place(name)} | own


def _is_place(name: str) -> bool:
    return name in _PLACES or name.startswith(_PLACES_BEGIN)


def _idle_threads() -> int:
    """Threads for a run that starts now: of the last minute's load, what ended with the run before it is no load."""
    load = hardware.system_load()
    if load >= 1:
        load = min(load, psutil.cpu_percent(LOOK_AT_LOAD_S) / 100 * (psutil.cpu_count() or 1))
    return hardware.recommended_threads(load=load)


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def submit(
    workspace: Workspace, config: AnyConfig, *, gpus: list[int] | None = None, gpu_count: int | None = None
) -> RunDir:
    """A new run with its configuration frozen: at work if there is room for it now, else waiting in the queue.

    `gpus`: the cards it shall have; else any `gpu_count` of them (0: none), None for one for each of its processes
    here. Nothing is left behind when it is refused.

    Raises:
        StartRefused: the cards do not exist, or the engine cannot be started.
        WorkspaceError: the run directory cannot be written.
    """
    needed = _processes(config)
    gpu_count = (needed if resources.cards() else 1) if gpu_count is None else gpu_count
    _check_cards(gpus, gpu_count, needed)
    if not isinstance(config, RunConfig | AnswersConfig):
        gpus, gpu_count = None, 0  # a merge or an export computes in main memory
    elif gpus:  # a resume takes any cards, but as many
        gpus = sorted(set(gpus))
        gpu_count = len(gpus)
    with run_queue.locked(workspace):
        entry = run_queue.next_entry(workspace).model_copy(update={"gpus": gpus, "gpu_count": gpu_count})
        run = workspace.create_run(config, queue=entry.model_dump_json(indent=1))
        try:
            start_waiting(workspace, mine=run)
        except StartRefused:
            shutil.rmtree(run.path, ignore_errors=True)
            raise
    look_after(workspace)
    return run


def _check_cards(gpus: list[int] | None, gpu_count: int, needed: int) -> None:
    known = [card.index for card in resources.cards()]
    there = f"this machine has {', '.join(map(str, known))}" if known else "this machine has none that can be used"
    wrong = [card for card in gpus or [] if card not in known]
    if wrong:
        raise StartRefused(f"gpus: there is no card {wrong[0]}; {there}")
    if gpus is not None and not gpus:
        raise StartRefused("gpus: name at least one card, or none at all with gpu_count 0")
    if gpu_count < 0 or (gpu_count > 1 and gpu_count > len(known)):
        raise StartRefused(f"gpu_count: {gpu_count} cards cannot be had; {there}")
    named = len(set(gpus)) if gpus else gpu_count
    if 0 < named < needed and known:
        field = "gpus" if gpus else "gpu_count"
        raise StartRefused(f"{field}: {needed} processes need a card each, and {named} was chosen; {there}")


def start(run: RunDir) -> None:
    """Start the engine on a queued run now, ahead of its turn. Raises StartRefused when there is no room for it."""
    workspace = Workspace(run.path.parent.parent)
    with run_queue.locked(workspace):
        if run.state() is not RunState.QUEUED:
            raise StartRefused(f"run {run.id} has been started already ({_held(run)})", run.id)
        entry = run_queue.read(run) or run_queue.next_entry(workspace, run)
        [decision] = turns.decisions_for(workspace, [(run, entry.model_copy(update={"paused": False}))])
        if not decision.start:
            blocking = decision.blocking
            raise StartRefused(f"run {run.id} cannot be started: it {decision.reason}", blocking)
        run_queue.write(run, entry)
        _begin(run, entry, decision)


def resume(run: RunDir, changes: Mapping[str, Any] | None = None) -> None:
    """Continue a stopped, failed or lost run from its last complete checkpoint, or queue that if there is no room.

    `changes`: fields that shall hold from now on, in any accepted spelling.

    Raises:
        ConfigError: the changes are wrong, or cannot be made in the middle of a run.
        StartRefused: the run cannot be resumed, or the engine cannot be started; then nothing is changed.
    """
    workspace = Workspace(run.path.parent.parent)
    with run_queue.locked(workspace):
        state = run.state()
        if not state.resumable:
            raise StartRefused(
                f"run {run.id} is {_held(run)}; only a stopped, failed or lost run can be resumed", run.id
            )
        before = run.changes_file.read_bytes() if run.changes_file.exists() else None
        if changes:
            last = last_checkpoint(run.checkpoints)
            step = step_of(last) if last else 0
            run.change(changes, step)
        entry = run_queue.next_entry(workspace, run)
        try:
            run_queue.write(run, entry.model_copy(update={"gpu_count": _cards_again(run)}))
            start_waiting(workspace, mine=run)
        except (StartRefused, ConfigError):
            run_queue.drop(run)
            _restore(run.changes_file, before)
            raise
    look_after(workspace)


def _cards_again(run: RunDir) -> int:
    """How many cards a resume takes: as many as before, or one for each process if those were changed."""
    launch, config = run.read_launch(), run.config()
    had = launch.gpu_count if launch else 1
    needed = _processes(config)
    return needed if had and resources.cards() and needed > 1 else had


def _processes(config: AnyConfig) -> int:
    """Those of a run on this machine."""
    return config.parallel.processes_per_machine if isinstance(config, RunConfig) else 1


def _restore(file: Path, content: bytes | None) -> None:
    file.unlink(missing_ok=True) if content is None else file.write_bytes(content)


def _held(run: RunDir) -> str:
    """What a run is doing, and which process has it since when."""
    state, launch = run.state(), run.read_launch()
    if launch is None or not state.live:
        return str(state)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(launch.started_at))
    return f"{state}: process {launch.pid} on {launch.host} since {since}"


# ---- whose turn it is ------------------------------------------------------------------------------------------------


def start_waiting(workspace: Workspace, mine: RunDir | None = None) -> list[RunDir]:
    """Start every waiting run there is room for; returns them. The caller holds the lock (`run_queue.locked`).

    A run that cannot be started is paused with the reason, so that it does not block those behind it; if it is `mine`
    the refusal is raised instead.
    """
    run_queue.forget_started(workspace)
    if run_queue.settings(workspace).paused:
        return []
    waiting = run_queue.entries(workspace)
    if mine:  # whoever starts again right after a stop finds the room empty
        wait_for_ending(workspace, ENDING_WAIT_S)
    by_id = {run.id: (run, entry) for run, entry in waiting}
    started = []
    for decision in turns.decisions_for(workspace, waiting):
        if not decision.start:
            continue
        run, entry = by_id[decision.run_id]
        try:
            if mine is None or run.id != mine.id:  # whoever starts by hand has been asked
                turns.make_room(workspace, run, decision.cards)
            _begin(run, entry, decision)
            started.append(run)
        except (StartRefused, ConfigError) as refused:
            if mine is not None and run.id == mine.id:
                raise
            with contextlib.suppress(StartRefused):
                run_queue.write(run, entry.model_copy(update={"paused": True, "problem": str(refused)}))
    return started


def look_after(workspace: Workspace) -> bool:
    """Have the queue's dispatcher at work if a run waits; True when it was started now."""
    if run_queue.started(workspace):
        with run_queue.locked(workspace):
            run_queue.forget_started(workspace)
    return run_queue.has_work(workspace) and dispatching.start(workspace, ENGINE, child_environment())


def _begin(run: RunDir, entry: run_queue.Entry, decision: resources.Decision) -> None:
    """Start the engine on a waiting run and take it out of the queue. Raises StartRefused or ConfigError."""
    if entry.trust_remote_code and not remote_code.allowed():
        raise StartRefused(
            f"it was queued with {remote_code.OPTION}, and this queue's runs are started without; "
            "let it go on from a studio that was started with it"
        )
    _spawn(run, entry, list(decision.cards))
    run_queue.drop(run)


def _spawn(run: RunDir, entry: run_queue.Entry, gpus: list[int]) -> None:
    kind = run.config().kind
    argv = [*ENGINE, kind, str(run.path)] + (["--resume"] if entry.resume else [])
    before = run.read_launch()
    attempt = before.attempt + 1 if before else 1
    # Everything slow is found out first: between the child's birth and its record a killed studio would lose it.
    facts: dict[str, Any] = {"argv": argv, "attempt": attempt, "gpus": gpus, "gpu_count": entry.gpu_count}
    facts |= {"versions": _versions(), "git_commit": _git_commit(), "machine": run_environment.machine()}
    environment = engine_environment() | processes.marks(run.path, attempt)
    if not entry.trust_remote_code:  # whoever starts it may trust more than whoever queued it
        environment.pop(remote_code.VARIABLE, None)
    if resources.cards():
        environment |= resources.card_environment(gpus)
    # Of a killed engine some child may be left, or an engine whose starter was killed before it could record it.
    processes.end_remains(run.path)
    try:
        run.stop_file.unlink(missing_ok=True)
        with run.log_file.open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                cwd=run.path,
            )
    except OSError as error:
        raise StartRefused(f"the engine cannot be started ({error.strerror or error})") from None
    _reap(child)
    try:
        run.write_launch(Launch(**facts, **processes.record(child.pid)))
    except OSError as error:  # a run nobody can find again must not go on
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        raise StartRefused(f"the run directory cannot be written ({error.strerror}); free some disk space") from None


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Collect the child's exit status when it ends, so that it never stays a zombie of a long-lived studio."""
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()


def start_counting(workspace: Workspace, config: RunConfig) -> subprocess.Popen[bytes]:
    """Have a large dataset tokenised by a process of its own, which is returned; `estimate.plan` finds the result.

    What it says goes to `counting_log`; SIGINT ends it and leaves nothing behind. Harmless to call twice: the second
    process waits for the first and finds its work done. Raises StartRefused.
    """
    file = workspace.path / "cache" / "counting.yaml"
    argv = [sys.executable, "-m", "studio.cli", "data", "preview", str(file), "--batches", "0", "--json"]
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, dump_yaml(config, full=True))
        with counting_log(workspace).open("wb") as log:
            child = subprocess.Popen(
                [*argv, "--workspace", str(workspace.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                env=engine_environment(),
            )
    except OSError as error:
        raise StartRefused(f"the dataset cannot be counted ({error.strerror or error})") from None
    _reap(child)
    return child


def counting_log(workspace: Workspace) -> Path:
    """What the last counting process said; its last line is the reason when it failed."""
    return workspace.path / "cache" / "counting.log"
