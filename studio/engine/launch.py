"""The launcher of a run with several processes: starts this machine's ranks, waits, and tells how the run ended.

    studio train → runner → python -m studio.engine train RUN_DIR      this process, the launcher
                                └─ python -m studio.engine rank RUN_DIR    × processes of this machine, by torch's agent

The launcher holds the engine's lock, reads and checks what one process would check before torch is loaded (so that bad
input is refused once, and the ranks find tokens and converted weights ready), and then hands the run's files over to
rank 0. torch's elastic agent, the engine of `torchrun`, gives each rank its number and ends all of them when one fails.
A stop asked of the launcher becomes the stop file, which every rank sees; all of them save and stop at the same step.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from studio import hardware, processes
from studio.checkpoints import last_checkpoint, step_of
from studio.config import RunConfig
from studio.engine.failure import EngineError
from studio.engine.gathering import all_together, interface
from studio.engine.inputs import read_inputs
from studio.engine.journal import Journal
from studio.engine.machines import Together
from studio.engine.rank_ends import cause, ends_of, last_line, told
from studio.engine.shepherd import Shepherd
from studio.events import RunError, RunState
from studio.rundir import RunDir
from studio.schema import ConfigError

_UNUSED_SIGNAL = "SIGUSR2"


def wanted(run: RunDir) -> bool:
    """Whether the run trains with several processes. A configuration that cannot be read is left to `train`."""
    try:
        config = run.config()
    except ConfigError:
        return False
    return isinstance(config, RunConfig) and config.parallel.num_processes > 1


def launch(run: RunDir, journal: Journal, resume: bool) -> RunState:
    """Train with all processes of this machine, and return how it ended. Raises EngineError and what checks raise."""
    checkpoint = last_checkpoint(run.checkpoints) if resume else None
    step = step_of(checkpoint) if checkpoint else None
    journal.begin(resumed_from=step)
    journal.phase("load")
    config = run.config()
    assert isinstance(config, RunConfig)
    return all_together(journal, config, step, lambda together: _train(run, journal, checkpoint, together))


def _train(run: RunDir, journal: Journal, checkpoint: Path | None, together: Together | None) -> RunState:
    """This machine's part; on a machine other than 0 the run's files stay with its launcher."""
    config = read_inputs(run, journal, checkpoint).config
    shutil.rmtree(run.ranks, ignore_errors=True)  # what an earlier start of the run said
    run.ranks.mkdir()
    resume = together.meeting.resume_step is not None if together else checkpoint is not None
    with journal.handed_over(files=ranks_write(config)):
        return _ranks(run, journal, config, resume, together)


def ranks_write(config: RunConfig) -> bool:
    """Whether rank 0, which writes the run's files, is one of this machine."""
    return config.parallel.machine_rank == 0


def _ranks(run: RunDir, journal: Journal, config: RunConfig, resume: bool, together: Together | None) -> RunState:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    check_gpus(config)
    attempt = journal.status.attempt
    os.environ |= processes.marks(run.path, attempt or 0)
    prepare_environment(config)
    arguments = ["-m", "studio.engine", "rank", str(run.path)] + (["--resume"] if resume else [])
    shepherd, failed = Shepherd(journal, config.parallel.ddp_timeout), {}
    with shepherd.watching():
        try:
            agent = elastic_launch(_agent(config, attempt or 0, run.ranks, together), sys.executable)
            together.carry_out(partial(agent, *arguments)) if together else agent(*arguments)
        except ChildFailedError as problem:
            failed = {rank: (one.exitcode, float(one.timestamp)) for rank, one in problem.failures.items()}
    return how_it_ended(shepherd, failed, config)


def how_it_ended(shepherd: Shepherd, failed: dict[int, tuple[int, float]], config: RunConfig) -> RunState:
    """From the ends of this machine's ranks. `failed`: exit code and Unix seconds of each that did not end well.

    Raises EngineError: which one failed first, and why.
    """
    statuses, journal = shepherd.statuses(), shepherd.journal
    lines = {rank: last_line(journal.run.rank_log(rank)) for rank in failed}
    end = cause(ends_of(failed, statuses, lines))
    states = {one.rank: one.state for one in statuses}
    if end is None or states.get(0) is RunState.FINISHED:
        return RunState.STOPPED if RunState.STOPPED in states.values() else RunState.FINISHED
    left = end.lost or end.ended_by_us or states.get(end.rank) is RunState.STOPPED
    if left and journal.stop_requested():  # a little before or behind its fellows
        return RunState.STOPPED
    error, code = told(end, config.parallel.num_processes, socket.gethostname(), shepherd.stuck)
    raise EngineError(error, code, told=True)


def check_gpus(config: RunConfig) -> None:
    """Where there are GPUs each process needs one of its own. Raises EngineError."""
    import torch

    here = config.parallel.processes_per_machine
    found = torch.cuda.device_count() if torch.cuda.is_available() else here
    if found < here:
        message = f"parallel.num_processes: {here} processes on this machine, and the run has {found} GPUs."
        hint = f"Give it {here} cards, or start it with {found} processes."
        raise EngineError(RunError(kind="config", message=message, hint=hint, field="parallel.num_processes"))


def prepare_environment(config: RunConfig) -> None:
    """What the libraries of the ranks go by: each has its share of the threads, and a hang ends with an error."""
    section = config.parallel
    threads = int(os.environ.get("OMP_NUM_THREADS") or hardware.recommended_threads())
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // section.processes_per_machine))
    # NCCL's watchdog ends a process whose meeting fails or takes longer than `parallel.ddp_timeout`.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3")
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    if section.num_machines == 1 and sys.platform == "linux":  # whatever the name of this machine stands for
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _agent(config: RunConfig, attempt: int, folder: Path, together: Together | None) -> Any:
    """The settings of torch's agent on this machine. `folder`: for its own notes, which the next start throws away."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    from studio.engine import rendezvous

    section = config.parallel
    waits = {"timeout": section.ddp_timeout}
    if together:
        address, port = together.meeting.address, together.meeting.port
        card = interface(address, port)
        os.environ |= {"GLOO_SOCKET_IFNAME": card} if card and "GLOO_SOCKET_IFNAME" not in os.environ else {}
        backend, configs = "static", {"rank": section.machine_rank, **waits}
    else:
        rendezvous.register()
        backend, configs, address, port = rendezvous.NAME, waits, rendezvous.HERE, section.port
    return LaunchConfig(
        min_nodes=section.num_machines,
        max_nodes=section.num_machines,
        nproc_per_node=section.processes_per_machine,
        run_id=together.meeting.token if together else f"crucible-{attempt}",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        signals_to_handle=_UNUSED_SIGNAL,  # the usual ones would end the ranks at once; the journal has them
        rdzv_backend=backend,
        rdzv_endpoint=f"{address}:{port}",
        rdzv_configs=configs,
    )
