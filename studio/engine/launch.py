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
import sys
import tempfile
from typing import Any

from studio import processes
from studio.checkpoints import last_checkpoint, step_of
from studio.config import RunConfig
from studio.engine.inputs import read_inputs
from studio.engine.journal import Journal
from studio.events import RunState
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
    journal.begin(resumed_from=step_of(checkpoint) if checkpoint else None)
    journal.phase("load")
    config = read_inputs(run, journal, checkpoint).config
    shutil.rmtree(run.ranks, ignore_errors=True)  # what an earlier start of the run said
    run.ranks.mkdir()
    with journal.handed_over():
        return _ranks(run, journal, config, resume)


def _ranks(run: RunDir, journal: Journal, config: RunConfig, resume: bool) -> RunState:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    attempt = journal.status.attempt
    os.environ |= processes.marks(run.path, attempt or 0)
    arguments = ["-m", "studio.engine", "rank", str(run.path)] + (["--resume"] if resume else [])
    with tempfile.TemporaryDirectory(prefix="crucible-") as folder:
        try:
            elastic_launch(_agent(config, attempt or 0, folder), sys.executable)(*arguments)
        except ChildFailedError as problem:
            raise RuntimeError(str(problem)) from None
    first = next(one for one in run.read_ranks() if one.rank == 0)
    return first.state


def _agent(config: RunConfig, attempt: int, folder: str) -> Any:
    """The settings of torch's agent on this machine."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    section = config.parallel
    if section.port:
        address = section.main_process_ip or "127.0.0.1"
        meeting: dict[str, Any] = {
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{address}:{section.port}",
            "rdzv_configs": {"rank": section.machine_rank, "timeout": section.ddp_timeout},
        }
    else:
        meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    return LaunchConfig(
        min_nodes=section.num_machines,
        max_nodes=section.num_machines,
        nproc_per_node=section.processes_per_machine,
        run_id=f"crucible-{attempt}",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        signals_to_handle=_UNUSED_SIGNAL,  # the usual ones would end the ranks at once; the journal has them
        **meeting,
    )
