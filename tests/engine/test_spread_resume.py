"""Going on with as many processes, with more or fewer, under another stage, on machines without a common disk.

With as many the numbers are the same to the last bit, dropout included. With another number they are added up in
another order, in 32 bits: losses to 1e-5. There is no dropout then, for other processes drop other numbers.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from faults import engine, replace
from forked_ranks import said, together
from safetensors.torch import load_file
from tiny import MakeRun, losses

from studio import changes
from studio.checkpoints import FACTS, OPTIMIZER, complete_checkpoints, last_checkpoint, step_of
from studio.engine import resume_point, transport
from studio.engine.failure import EngineError
from studio.engine.trainer import Trainer
from studio.events import RankStatus
from studio.rundir import RunDir

ADAPTER = "adapter/adapter_model.safetensors"
SHORT: dict[str, Any] = {"train.max_steps": 4, "train.save_steps": 2, "lora.r": 4}
TWO = {"parallel.num_processes": 2, "train.per_device_train_batch_size": 2}
STAGE = "parallel.deepspeed"


def trained(run: RunDir, *, resume: bool = False) -> RunDir:
    """After all its processes did what they should."""
    config: Any = run.config()
    codes = [engine(run, resume=resume)] if config.parallel.num_processes == 1 else together(run, resume=resume)
    assert set(codes) == {0}, said(run)
    return run


def back(run: RunDir, to: Path, step: int = 2, **changed: Any) -> RunDir:
    """A copy of a run as it was when its checkpoint of `step` was the last, about to go on with fields changed."""
    found = RunDir(shutil.copytree(run.path, to / run.id))
    shutil.rmtree(found.checkpoints / "checkpoint-4")
    shutil.rmtree(found.adapter)
    found.change(changed, step=step)
    return found


def goes_on(run: RunDir) -> RunDir:
    """Resumed, it computes the steps after its checkpoint only."""
    before = len(run.events_file.read_bytes().splitlines())
    trained(run, resume=True)
    steps = [event.step for event in run.read_events()[0][before:] if event.type == "log"]
    assert steps == [3, 4]
    return run


def test_as_many_go_on_as_if_nothing_had_been(make_run: MakeRun, tmp_path: Path) -> None:
    whole = trained(make_run("lora", **SHORT, **TWO, **{STAGE: "zero3", "lora.lora_dropout": 0.2}))
    again = goes_on(back(whole, tmp_path))
    assert losses(again) == losses(whole)
    assert (again.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()


_known: list[RunDir] = []


@pytest.fixture
def plain(make_run: MakeRun) -> RunDir:
    """One process that divides nothing; trained once. Do not write to it."""
    if not _known:
        _known.append(trained(make_run("lora", **SHORT)))
    return _known[0]


def names(checkpoint: Path) -> set[str]:
    """Files in it that are not only there to go on."""
    found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("optimizer", "state/", "rng_state"))}


def test_fewer_and_more_go_on_with_the_same_updates(plain: RunDir, make_run: MakeRun, tmp_path: Path) -> None:
    more = goes_on(back(plain, tmp_path / "more", **{changes.PROCESSES: 2, STAGE: "zero2_offload"}))
    assert losses(more) == pytest.approx(losses(plain), rel=1e-5)

    two = trained(make_run("lora", **SHORT, **TWO, **{STAGE: "zero2"}))
    divided, alone = (run.checkpoints / "checkpoint-2" for run in (two, plain))
    assert names(divided) == names(alone), "chat, merge and export find what one process would have left"
    adapter, expected = (load_file(folder / "adapter_model.safetensors") for folder in (divided, alone))
    assert adapter.keys() == expected.keys()
    torch.testing.assert_close(adapter, expected, rtol=0, atol=1e-6)
    numbers = sum(value.numel() for value in expected.values())
    assert (divided / OPTIMIZER).stat().st_size < 1.2 * 3 * 4 * numbers, "frozen weights are not saved"

    fewer = goes_on(back(two, tmp_path / "fewer", **{changes.PROCESSES: 1, STAGE: "zero3"}))
    assert losses(fewer) == pytest.approx(losses(plain), rel=1e-5)
    torch.testing.assert_close(load_file(fewer.path / ADAPTER), load_file(plain.path / ADAPTER), rtol=0, atol=1e-6)


def test_processes_begin_and_cease_to_share_conversations(plain: RunDir, make_run: MakeRun, tmp_path: Path) -> None:
    share: dict[str, Any] = {changes.PROCESSES: 2, changes.SHARED: 2, STAGE: "zero2"}
    begun = goes_on(back(plain, tmp_path / "begun", **share))
    assert losses(begun) == pytest.approx(losses(plain), rel=1e-5)

    shared = trained(make_run("lora", **SHORT, **share))
    ceased = goes_on(back(shared, tmp_path / "ceased", **{changes.PROCESSES: 1, changes.SHARED: 1, STAGE: "none"}))
    assert losses(ceased) == pytest.approx(losses(plain), rel=1e-5)


def test_machines_without_a_common_disk(plain: RunDir, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("lora", **SHORT, **TWO)
    other = RunDir(shutil.copytree(run.path, tmp_path / "machine 1" / run.id))

    def full(rank: int) -> None:
        def fails(save: Any, trainer: Any, folder: str) -> None:
            if rank == 1 and trainer.state.global_step == 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(trainer, folder)

        replace(Trainer, "_save_rng_state", fails)

    assert all(together(run, others=[other], prepare=full)), said(run)
    first, second = (place.read_ranks()[0] for place in (run, other))
    assert first.error is not None
    assert first.error.message == "workspace: process 1 of 2: the disk is full; what was saved before is undamaged."
    assert first.error.rank == 1
    assert isinstance(second, RankStatus)
    assert second.error is not None
    assert second.error.kind == "disk"
    assert [step_of(path) for path in complete_checkpoints(run.checkpoints)] == [2]
    assert (run.checkpoints / "checkpoint-2" / "rng_state_1.pth").is_file()
    assert not list(other.checkpoints.glob("*")), "the run is complete on the first machine"

    assert together(run, others=[other], resume=True) == [0, 0], said(run) + said(other)
    last = last_checkpoint(run.checkpoints)
    assert last is not None
    assert step_of(last) == 4
    assert not list(other.checkpoints.glob("*"))
    assert losses(run) == pytest.approx(losses(plain), rel=1e-5)


def test_what_cannot_be_read_is_not_left_out(make_run: MakeRun) -> None:
    run = make_run("lora", **{STAGE: "zero3"})
    folder = run.checkpoints / "checkpoint-2"
    own = folder / "global_step2"
    own.mkdir(parents=True)
    (own / "mp_rank_00_model_states.pt").touch()
    (own / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    fits, not_so = make_run("lora", **{STAGE: "zero1"}).config(), [make_run("lora").config(), run.config()]
    assert resume_point.meet(run, folder, fits) == folder
    for config in not_so:
        with pytest.raises(EngineError, match=r"^parallel\.deepspeed: .* stages 1 and 2, and nothing else can read it"):
            resume_point.meet(run, folder, config)
    (folder / "state").mkdir()
    (folder / FACTS).write_text("{}", encoding="utf-8")
    with pytest.raises(EngineError, match=r"^checkpoint: .* cannot be read"):
        resume_point.meet(run, folder, fits)


def carry(rank: int, port: int, root: Path) -> None:
    """One machine of two."""
    own = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.distributed.init_process_group("gloo")
    transport.PIECE = 7
    folder = root / str(rank) / "checkpoint-1"
    apart = transport.apart(folder.parent)
    transport.collect(folder, here=not apart)
    transport.fetch(folder, here=not apart, wanted=lambda name: name.endswith("0"))
    torch.distributed.destroy_process_group()


def test_files_reach_the_first_machine_and_come_back_when_asked_for(tmp_path: Path) -> None:
    sizes = {"a": 0, "b": 7, "c/d": 20}
    for rank in (0, 1):
        for name, size in sizes.items():
            path = tmp_path / str(rank) / "checkpoint-1" / f"{name}{rank}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(range(rank, rank + size)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=carry, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "0" / "checkpoint-1", tmp_path / "1" / "checkpoint-1")
    ]
    expected = {f"{name}{rank}": bytes(range(rank, rank + size)) for name, size in sizes.items() for rank in (0, 1)}
    assert found[0] == expected
    assert found[1] == {name: value for name, value in expected.items() if name.endswith("0")}
