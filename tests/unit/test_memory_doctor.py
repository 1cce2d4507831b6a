"""After a lack of memory: what is known of it, what would help at what price, what goes on and what begins again."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from studio.changes import ACCUMULATION, BATCH
from studio.config import RunConfig
from studio.events import Launch, RunError, RunState, Status
from studio.memory_doctor import Diagnosis, Remedy, diagnose
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.shortage import Shortage
from studio.workspace import Workspace

MB, GB = 1 << 20, 1 << 30
SHAPE = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 1.1 billion parameters, as far as planning looks."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


@pytest.fixture
def fail(workspace: Workspace, model: Path, tmp_path: Path) -> Any:
    """fail(details, checkpoint=0, **changes) -> a run that has run out of memory."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")

    def make(details: dict[str, Any], checkpoint: int = 0, **changes: Any) -> RunDir:
        layer: dict[str, Any] = {
            "method": "lora",
            "model.model_name_or_path": str(model),
            "data.dataset": str(rows),
            BATCH: 8,
            ACCUMULATION: 2,
        }
        run = workspace.create_run(build(RunConfig, merge(RunConfig, layer | changes)))
        run.write_launch(Launch(argv=[], pid=1, create_time=0.0, host=socket.gethostname(), started_at=0))
        error = RunError(kind="memory", message="m", details=details)
        run.write_status(Status(state=RunState.FAILED, phase="train", step=checkpoint, exit_code=5, error=error))
        if checkpoint:
            folder = run.checkpoints / f"checkpoint-{checkpoint}"
            folder.mkdir(parents=True)
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": checkpoint}), encoding="utf-8")
        return run

    return make


def details(**more: Any) -> dict[str, Any]:
    """A step that wanted 6 GB more than the 12 GB it had."""
    known = {"phase": "train", "activity": "step", "device": "cuda", "bound": "gpu", "rows": 8, "length": 2048}
    sizes = {"requested_bytes": 6 * GB, "available_bytes": GB, "used_bytes": 11 * GB, "limit_bytes": 16 * GB}
    return known | sizes | more


def of(run: RunDir) -> Diagnosis:
    """Its diagnosis, which must exist."""
    found = diagnose(run)
    assert found is not None
    return found


def fields(remedy: Remedy) -> set[str]:
    return set(remedy.changes)


def test_the_shortage_counts_what_was_there() -> None:
    found = Shortage.model_validate(details())
    assert (found.usable_bytes, found.needed_bytes, found.others_bytes) == (12 * GB, 17 * GB, 4 * GB)
    # Nothing says how much was asked for: more than there was.
    assert Shortage.model_validate(details(requested_bytes=None)).needed_bytes == 12 * GB


def test_a_smaller_batch_is_offered_with_what_it_needs_and_costs(fail: Any) -> None:
    found = of(fail(details()))
    first = found.remedies[0]
    assert first.verdict == "fits"
    assert first.needed is not None
    assert first.needed <= 12 * GB
    kinds = [fields(remedy) for remedy in found.remedies]
    assert {BATCH, ACCUMULATION} in kinds
    (batch,) = [remedy for remedy in found.remedies if fields(remedy) == {BATCH, ACCUMULATION}]
    assert batch.changes[BATCH] * batch.changes[ACCUMULATION] == 16
    assert all(remedy.continues and remedy.from_step == 0 for remedy in found.remedies)
    assert all(remedy.slowdown > 0 and remedy.message for remedy in found.remedies)


def test_of_memory_that_is_really_filled_half_is_kept_free_of_promises(fail: Any) -> None:
    """What the C library was given back counts there, and no formula knows how much it keeps."""
    there = {"used_bytes": 12 * GB, "held_bytes": 4 * GB, "noticed": True, "limit_bytes": 13 * GB}
    for bound, sure in (("control_group", 0.5), ("gpu", 0.85)):
        found = of(fail(details(bound=bound, requested_bytes=None, **there))).remedies
        assert all((remedy.verdict == "fits") == ((remedy.needed or 0) <= (4 + 8 * sure) * GB) for remedy in found)
        kind = {BATCH, ACCUMULATION}
        assert next(remedy.verdict for remedy in found if fields(remedy) == kind) == ("fits" if sure > 0.5 else "tight")


def test_what_the_formula_did_not_know_of_is_added(fail: Any) -> None:
    usual = of(fail(details()))
    worse = of(fail(details(requested_bytes=200 * GB)))
    assert worse.shortage.needed_bytes == 211 * GB
    # What fitted by the formula alone no longer does: more has to change.
    assert usual.remedies[0].changes not in [remedy.changes for remedy in worse.remedies]
    assert len(worse.remedies[0].changes) > len(usual.remedies[0].changes)
    assert all(remedy.needed <= 12 * GB for remedy in worse.remedies)  # type: ignore[operator]


def test_when_nothing_is_sure_everything_is_offered_and_that_is_said(fail: Any) -> None:
    hopeless = {"used_bytes": GB, "available_bytes": GB // 8, "limit_bytes": GB * 9 // 8, "requested_bytes": 999 * GB}
    (only,) = of(fail(details(**hopeless))).remedies
    assert only.verdict == "no"
    assert fields(only) == {BATCH, ACCUMULATION, "method", "train.gradient_checkpointing", "data.max_length"}
    assert (only.changes[BATCH], only.changes[ACCUMULATION]) == (1, 16)
    (kept,) = (one for one in of(fail(details(**hopeless), checkpoint=20)).remedies if one.continues)
    assert "data.max_length" not in kept.changes


def test_from_a_checkpoint_what_keeps_the_curve_comes_first(fail: Any) -> None:
    found = of(fail(details(), checkpoint=20))
    assert found.checkpoint == 20
    kept = [remedy for remedy in found.remedies if remedy.continues]
    again = [remedy for remedy in found.remedies if not remedy.continues]
    assert kept
    assert again
    assert {remedy.from_step for remedy in kept} == {20}
    assert {remedy.from_step for remedy in again} == {0}
    order = ("fits", "tight", "no")
    ranks = [(order.index(remedy.verdict), not remedy.continues) for remedy in found.remedies]
    assert ranks == sorted(ranks)


def test_samples_shrink_and_go_on(fail: Any) -> None:
    asked = [f"Question {number}?" for number in range(16)]
    broken = details(activity="samples", rows=16, length=2048, requested_bytes=2 * GB)
    run = fail(broken, 20, **{"samples.evaluation_inputs": asked, "samples.max_new_tokens": 2000})
    found = of(run)
    assert [fields(remedy) for remedy in found.remedies] == [{"samples.max_new_tokens"}, {"samples.evaluation_inputs"}]
    assert all(remedy.continues and remedy.verdict == "fits" and remedy.slowdown == 1 for remedy in found.remedies)
    assert 8 <= found.remedies[0].changes["samples.max_new_tokens"] < 2000


def test_evaluation_follows_the_batch(fail: Any) -> None:
    found = of(fail(details(activity="evaluation", rows=8, length=2048), checkpoint=20))
    kept = [remedy for remedy in found.remedies if remedy.continues]
    assert [fields(remedy) for remedy in kept] == [{BATCH, ACCUMULATION}]
    assert kept[0].changes[BATCH] < 8


def test_a_verdict_can_be_left_out(fail: Any) -> None:
    (only,) = of(fail(details(phase="verdict", activity="verdict"), checkpoint=20)).remedies
    assert (only.changes, only.continues, only.verdict) == ({"verdict.enabled": False}, True, "fits")


@pytest.mark.parametrize(("method", "offered"), [("lora", ["qlora"]), ("full", ["qlora"]), ("qlora", [])])
def test_a_model_that_cannot_be_loaded_is_loaded_in_fewer_bits(fail: Any, method: str, offered: list[str]) -> None:
    sizes = {"requested_bytes": GB, "available_bytes": GB // 2, "used_bytes": 2 * GB, "limit_bytes": 3 * GB}
    run = fail(details(phase="load", activity="load", rows=None, length=None, **sizes), method=method)
    found = of(run).remedies
    assert [remedy.changes["method"] for remedy in found] == offered
    assert all(remedy.continues for remedy in found)


def test_rows_cut_are_counted(fail: Any, tmp_path: Path, workspace: Workspace) -> None:
    rows = tmp_path / "long.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": "Hi " * words}, {"role": "assistant", "content": "Hello " * words}]}
        for words in (3, 3, 3, 400)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    sizes = {"requested_bytes": 300 * MB, "available_bytes": 50 * MB, "used_bytes": 650 * MB, "limit_bytes": 2 * GB}
    run = fail(
        details(device="cpu", bound="machine", rows=1, length=1000, **sizes),
        **{"model.model_name_or_path": "crucible/ember", "data.dataset": str(rows), BATCH: 1, "data.packing": False},
    )
    cut = [remedy for remedy in of(run).remedies if "data.max_length" in remedy.changes]
    assert cut
    assert all(remedy.cut == 0.25 for remedy in cut)


def test_rows_are_never_cut_so_short_that_nothing_is_taught(fail: Any, tmp_path: Path) -> None:
    rows = tmp_path / "late.jsonl"
    turns = [{"role": "user", "content": "Hi there, " * 300}, {"role": "assistant", "content": "Hello"}]
    rows.write_text(f"{json.dumps({'messages': turns})}\n" * 4, encoding="utf-8")
    little = {"requested_bytes": 900 * MB, "available_bytes": 9 * MB, "used_bytes": GB, "held_bytes": GB}
    run = fail(
        details(device="cpu", bound="machine", rows=8, length=700, limit_bytes=2 * GB, **little),
        checkpoint=20,
        **{"model.model_name_or_path": "crucible/ember", "data.dataset": str(rows), "data.packing": False},
    )
    found = of(run).remedies
    assert found
    assert found[0].continues
    assert not [remedy for remedy in found if "data.max_length" in remedy.changes]


def test_only_a_lack_of_memory_is_treated(fail: Any, workspace: Workspace) -> None:
    run = fail(details())
    status = run.read_status()
    run.write_status(status.model_copy(update={"error": RunError(kind="disk", message="m")}))
    assert diagnose(run) is None
    run.write_status(status.model_copy(update={"state": RunState.FINISHED, "error": None}))
    assert diagnose(run) is None
    run.write_status(status)
    run.queue_file.write_text("{}", encoding="utf-8")  # it waits for its resume already
    assert diagnose(run) is None


def test_an_engine_of_before_told_no_details(fail: Any) -> None:
    assert of(fail({})).remedies
    assert of(fail({"step": "x"})).remedies


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", None),
        ("memory allocation of 4096000 bytes failed", 4096000),
        ("libgomp: Thread creation failed: Resource temporarily unavailable", None),
    ],
)
def test_last_words_of_a_lost_run(fail: Any, said: str, asked: int | None) -> None:
    run = fail(details(), checkpoint=20)
    run.write_status(Status(state=RunState.RUNNING, phase="train", step=25, updated_at=1.0))
    assert run.state() is RunState.LOST
    assert diagnose(run) is None
    run.log_file.write_text(f"step 25\n{said}\n", encoding="utf-8")
    found = of(run)
    assert (found.shortage.requested_bytes, found.shortage.step, found.checkpoint) == (asked, 25, 20)
    assert found.remedies


def test_processes_of_a_run_share_what_was_left_of_main_memory(fail: Any) -> None:
    told = details(device="cpu", bound="machine")
    alone, one_of_4 = (of(fail(told, **{"parallel.num_processes": n})) for n in (1, 4))
    assert alone.shortage.usable_bytes == 12 * GB
    assert one_of_4.shortage.usable_bytes == 11 * GB + GB // 4
    card = of(fail(details(), **{"parallel.num_processes": 4}))
    assert card.shortage.usable_bytes == 12 * GB


def test_several_processes_are_offered_to_divide(fail: Any) -> None:
    found = of(fail(details(), method="full", **{"parallel.num_processes": 4}))
    assert any("parallel.deepspeed" in fields(remedy) for remedy in found.remedies)


FEWER = {"parallel.num_processes", ACCUMULATION}


@pytest.mark.parametrize("activity", ["load", "step"])
def test_fewer_processes_are_offered_where_they_share_one_memory(fail: Any, activity: str) -> None:
    told = details(activity=activity, device="cpu", bound="machine", used_bytes=40 * GB, available_bytes=0)
    told |= {"requested_bytes": GB, "limit_bytes": 199 * GB, "held_bytes": 6 * GB}
    found = of(fail(told, checkpoint=20, **{"parallel.num_processes": 4, BATCH: 2, ACCUMULATION: 4}))
    (fewer,) = [remedy for remedy in found.remedies if fields(remedy) == FEWER]
    assert fewer.changes == {"parallel.num_processes": 2, ACCUMULATION: 8}
    assert (fewer.verdict, fewer.usable, fewer.continues, fewer.from_step) == ("fits", 80 * GB, True, 20)
    assert fewer.message.startswith("fewer processes (2): ")
    assert fewer.slowdown == pytest.approx(1, abs=0.1)  # they share the cores too
    for same in ({"device": "cuda", "bound": "gpu"}, {"bound": "address_space"}):
        own = of(fail(told | same, checkpoint=20, **{"parallel.num_processes": 4, BATCH: 2, ACCUMULATION: 4}))
        assert not [remedy for remedy in own.remedies if fields(remedy) == FEWER]


def test_fewer_processes_that_cannot_be_are_not_offered(fail: Any) -> None:
    told = details(device="cpu", bound="machine", used_bytes=4 * GB, available_bytes=0, requested_bytes=GB)
    share = {"parallel.sequence_parallel_size": 2, "parallel.deepspeed": "zero3", "parallel.num_processes": 2}
    for changes in (share, {"parallel.num_processes": 2, "parallel.fsdp": "fsdp2"}):
        found = of(fail(told, **changes))
        assert not [remedy for remedy in found.remedies if "parallel.num_processes" in fields(remedy)]
