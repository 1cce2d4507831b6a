"""A GPU, or a core, for each process of this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studio import hardware, resources, runner
from studio.config import RunConfig
from studio.hardware import Gpu
from studio.preflight_parallel import about_processes
from studio.schema import build, merge
from studio.workspace import Workspace

CARD = Gpu(0, "NVIDIA H200", 140 << 30, 139 << 30, "580")
CARDS = (CARD, replace(CARD, index=1))
MACHINE = replace(hardware.detect(), cores=2)


def config(processes: int, machines: int = 1) -> RunConfig:
    """A run spread so."""
    layer = {"parallel.num_processes": processes, "parallel.num_machines": machines, "model.model_name_or_path": "m"}
    return build(RunConfig, merge(RunConfig, layer | {"parallel.main_process_ip": "10.0.0.1", "data.dataset": "d"}))


def test_more_processes_than_gpus_are_refused() -> None:
    assert about_processes(config(2), MACHINE, CARDS) == []
    [advice] = about_processes(config(3), MACHINE, CARDS)
    assert (advice.level, advice.field, advice.fix) == ("error", "parallel.num_processes", "choose at most 2")
    [advice] = about_processes(config(6, 2), MACHINE, CARDS)
    assert "3 processes on each machine" in advice.message
    assert advice.fix == "choose at most 4"


def test_more_processes_than_cores_only_take_turns() -> None:
    assert about_processes(config(2), MACHINE, ()) == []
    [advice] = about_processes(config(4), MACHINE, ())
    assert advice.level == "warning"
    assert "share 2 cores" in advice.message


def test_a_run_gets_a_card_for_each_process(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "cards", lambda: CARDS)
    monkeypatch.setattr(runner, "start_waiting", lambda *_, **__: [])
    monkeypatch.setattr(runner, "look_after", lambda *_: False)
    monkeypatch.setattr(Workspace, "freeze", lambda _, config: config)
    assert runner.run_queue.read(runner.submit(workspace, config(2))).gpu_count == 2  # type: ignore[union-attr]
    with pytest.raises(runner.StartRefused, match="gpus: 2 processes need a card each, and 1 was chosen"):
        runner.submit(workspace, config(2), gpus=[1])
    with pytest.raises(runner.StartRefused, match="gpu_count: 3 cards cannot be had; this machine has 0, 1"):
        runner.submit(workspace, config(3))
