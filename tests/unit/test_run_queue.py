"""The order of waiting runs on disk, and who may start with what there is."""

import json
import threading

import pytest

from studio import hardware, resources, run_queue, turns
from studio.config import RunConfig
from studio.events import Launch, RunState, Status
from studio.hardware import Gpu
from studio.resources import Busy, Job, Room, card_environment, decide
from studio.run_queue import Entry, NotQueued, StartRefused
from studio.rundir import RunDir
from studio.schema import build
from studio.workspace import Workspace

CONFIG = build(RunConfig, {"model_path": "crucible/ember", "data_path": "identity", "name": "run"})


def queued(workspace: Workspace, count: int, **options) -> list[RunDir]:
    runs = []
    for _ in range(count):
        run = workspace.create_run(CONFIG)
        run_queue.enqueue(run, **options)
        runs.append(run)
    return runs


def order(workspace: Workspace) -> list[str]:
    return [run.id for run, _ in run_queue.entries(workspace)]


def ended_run(workspace: Workspace, attempt: int = 1) -> RunDir:
    run = workspace.create_run(CONFIG)
    run.write_launch(Launch(argv=[], pid=0, create_time=0.0, host="elsewhere", attempt=attempt, started_at=1.0))
    run.write_status(Status(state=RunState.STOPPED, step=4, updated_at=2.0))
    return run


# ---- the queue on disk -----------------------------------------------------------------------------------------------


def test_runs_wait_in_the_order_they_came(workspace):
    runs = queued(workspace, 3)
    assert order(workspace) == [run.id for run in runs]
    assert all(run.state() is RunState.QUEUED for run in runs)
    assert [entry.position for _, entry in run_queue.entries(workspace)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("moved", "place", "expected"),
    [(2, 1, "2013"), (0, 4, "1230"), (0, 99, "1230"), (3, 0, "3012"), (1, 3, "0213"), (1, 2, "0123")],
)
def test_a_run_can_be_moved_to_any_place(workspace, moved, place, expected):
    runs = queued(workspace, 4)
    run_queue.move(runs[moved], place)
    assert order(workspace) == [runs[int(digit)].id for digit in expected]


def test_run_next_goes_first_even_if_it_was_paused(workspace):
    runs = queued(workspace, 3)
    run_queue.pause(runs[2])
    run_queue.run_next(runs[2])
    assert order(workspace)[0] == runs[2].id
    assert not run_queue.read(runs[2]).paused


def test_pausing_keeps_the_place_and_nothing_is_left_to_do(workspace):
    runs = queued(workspace, 2)
    for run in runs:
        run_queue.pause(run)
    assert order(workspace) == [run.id for run in runs]
    assert not run_queue.has_work(workspace)
    run_queue.unpause(runs[1])
    assert run_queue.has_work(workspace)
    run_queue.pause_all(workspace)
    assert not run_queue.has_work(workspace)
    run_queue.unpause_all(workspace)
    assert run_queue.has_work(workspace)


def test_removing_a_run_that_never_started_leaves_nothing_behind(workspace):
    first, second = queued(workspace, 2)
    run_queue.remove(first)
    assert not first.path.exists()
    assert order(workspace) == [second.id]


def test_removing_a_resume_keeps_the_run_as_it_was(workspace):
    run = ended_run(workspace)
    entry = run_queue.enqueue(run)
    assert (entry.resume, entry.attempt) == (True, 2)
    assert run.state() is RunState.QUEUED
    run_queue.remove(run)
    assert run.state() is RunState.STOPPED
    assert run.read_status().step == 4


def test_what_does_not_wait_cannot_be_moved_paused_or_removed(workspace):
    run = ended_run(workspace)
    for action in (run_queue.pause, run_queue.unpause, run_queue.remove, run_queue.run_next):
        with pytest.raises(NotQueued, match=f"{run.id} does not wait in the queue .it is stopped"):
            action(run)
    with pytest.raises(NotQueued):
        run_queue.move(run, 1)
    assert run.path.exists()


def test_an_entry_whose_start_was_recorded_is_over(workspace):
    """The starter was killed between the engine's record and taking the run out of the queue."""
    run = ended_run(workspace)
    run_queue.enqueue(run)
    run.write_launch(run.read_launch().model_copy(update={"attempt": 2}))
    assert run_queue.read(run) is None
    assert order(workspace) == []
    assert run_queue.started(workspace)
    run_queue.forget_started(workspace)
    assert not run.queue_file.exists()
    assert run.state() is RunState.STOPPED


def test_a_spoiled_entry_can_still_be_found_and_removed(workspace):
    spoiled, good = queued(workspace, 2)
    spoiled.queue_file.write_text('{"position": ')
    assert order(workspace) == [good.id, spoiled.id]
    assert run_queue.read(spoiled).paused
    assert "cannot be read" in run_queue.read(spoiled).problem
    run_queue.remove(spoiled)
    assert order(workspace) == [good.id]


def test_settings_are_kept_and_wrong_ones_refused(workspace):
    assert run_queue.settings(workspace).max_running == 1
    run_queue.change_settings(workspace, max_running=3)
    run_queue.pause_all(workspace)
    again = Workspace(workspace.path)
    assert run_queue.settings(again) == run_queue.Settings(paused=True, max_running=3)
    for wrong in (0, -1, 65):
        with pytest.raises(StartRefused, match="1 to 64"):
            run_queue.change_settings(workspace, max_running=wrong)
    (workspace.path / "queue.json").write_text("[]")
    assert run_queue.settings(workspace) == run_queue.Settings()


def test_many_hands_at_once_lose_no_run(workspace):
    runs = queued(workspace, 6)
    threads = [threading.Thread(target=run_queue.move, args=(run, place)) for place, run in enumerate(runs[::-1], 1)]
    threads += [threading.Thread(target=run_queue.pause, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = run_queue.entries(workspace)
    assert {run.id for run, _ in found} == {run.id for run in runs}
    assert all(entry.paused for _, entry in found)
    assert len({entry.position for _, entry in found}) == 6


def test_a_queue_of_another_version_is_read(workspace):
    [run] = queued(workspace, 1)
    run.queue_file.write_text(json.dumps({"position": 1, "colour": "red"}))
    assert run_queue.read(run).gpu_count == 1


def test_a_queued_run_has_its_place_before_it_can_be_seen(workspace, monkeypatch):
    seen = []
    real = Workspace._write_config

    def looking(run, config, *rest):
        made = real(run, config, *rest)
        seen.append(run_queue.read(made))
        return made

    monkeypatch.setattr(Workspace, "_write_config", staticmethod(looking))
    workspace.create_run(CONFIG, queue=Entry(position=7).model_dump_json())
    assert seen[0].position == 7


# ---- who may start ---------------------------------------------------------------------------------------------------


def started(jobs, busy, cards=(), max_running=1, missing=()):
    room = Room(tuple(cards), max_running, lambda run_id, _: "waits for memory" if run_id in missing else "")
    return {found.run_id: found.cards for found in decide(jobs, busy, room) if found.start}


def reasons(jobs, busy, cards=(), max_running=1, missing=()):
    room = Room(tuple(cards), max_running, lambda run_id, _: "waits for memory" if run_id in missing else "")
    return {found.run_id: (found.reason, found.blocking) for found in decide(jobs, busy, room) if not found.start}


def test_without_a_card_one_run_goes_at_a_time():
    jobs = [Job("a"), Job("b")]
    assert started(jobs, []) == {"a": ()}
    assert started(jobs, [Busy("x")]) == {}
    assert reasons(jobs, [Busy("x")])["a"] == ("waits until run x has ended", "x")


def test_more_go_at_once_if_they_may_and_their_memory_is_there():
    jobs = [Job("a"), Job("b"), Job("c")]
    assert started(jobs, [], max_running=2) == {"a": (), "b": ()}
    assert started(jobs, [Busy("x")], max_running=2) == {"a": ()}
    assert started(jobs, [Busy("x")], max_running=3, missing={"a"}) == {}, "nobody overtakes the one that waits"
    assert started(jobs, [], max_running=3, missing={"a", "b"}) == {"a": ()}, "alone it is the person's decision"


def test_two_that_fit_one_at_a_time_do_not_start_together():
    left = {"b": 5, "c": 5}
    room = Room((), 3, lambda run_id, others: "" if left[run_id] >= 2 * len(others) + 2 else "waits for memory")
    assert [found.start for found in decide([Job("a"), Job("b"), Job("c")], [], room)] == [True, True, False]


def test_a_paused_run_holds_nobody_up():
    assert started([Job("a", paused=True), Job("b")], []) == {"b": ()}


def test_each_run_has_a_card_of_its_own_the_roomiest_first():
    jobs = [Job("a"), Job("b"), Job("c")]
    assert started(jobs, [], cards=(1, 0)) == {"a": (1,), "b": (0,)}
    assert started(jobs, [Busy("x", (1,))], cards=(1, 0)) == {"a": (0,)}
    assert reasons(jobs, [Busy("x", (1,))], cards=(1, 0))["b"][1] in ("x", "a")


def test_a_chosen_card_is_waited_for_and_others_go_past_on_other_cards():
    jobs = [Job("a", cards=(0,)), Job("b", cards=(1,)), Job("c", cards=(0,))]
    assert started(jobs, [Busy("x", (0,))], cards=(0, 1)) == {"b": (1,)}
    assert reasons(jobs, [Busy("x", (0,))], cards=(0, 1))["a"] == ("waits for card 0, which run x has", "x")


def test_a_run_that_wants_several_cards_is_not_starved():
    """Cards that become free are kept for it: small runs behind it do not take them away again and again."""
    jobs = [Job("wide", count=2), Job("small")]
    assert started(jobs, [Busy("x", (0,))], cards=(0, 1)) == {}
    assert started(jobs, [Busy("x", (0,))], cards=(0, 1, 2)) == {"wide": (1, 2)}


def test_a_card_that_is_not_there_holds_up_nobody_else():
    jobs = [Job("a", cards=(7,)), Job("b")]
    assert started(jobs, [], cards=(0, 1)) == {"b": (0,)}
    assert "it wants 1 cards, and there are 2" in reasons(jobs, [], cards=(0, 1))["a"][0]


def test_what_needs_no_card_goes_beside_those_that_have_one():
    jobs = [Job("merge", count=0), Job("merge2", count=0)]
    assert started(jobs, [Busy("x", (0,))], cards=(0,)) == {"merge": ()}


def test_an_engine_sees_its_cards_only():
    assert card_environment([2, 0]) == {"CUDA_VISIBLE_DEVICES": "2,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert card_environment([])["CUDA_VISIBLE_DEVICES"] == ""


def test_what_another_machine_computes_takes_no_room_here(workspace):
    """A workspace on a shared disk: the other machine's run is live, and this one's memory and cards are free."""
    far = workspace.create_run(CONFIG)
    far.write_launch(Launch(argv=[], pid=1, create_time=1.0, host="elsewhere", gpus=[0]))
    far.write_status(Status(state=RunState.RUNNING, attempt=1))
    assert far.state() is RunState.RUNNING
    queued(workspace, 1)
    assert [decision.start for decision in turns.decisions(workspace)] == [True]


def test_cards_named_by_identifiers_stay_those_the_person_allowed(monkeypatch):
    """A cluster hands out parts of a card: numbers would point at cards of somebody else."""
    whole = Gpu(0, "a card", 1 << 34, 1 << 33, "1")
    monkeypatch.setattr(hardware, "torch_has_cuda", lambda: True)
    monkeypatch.setattr(hardware, "find_gpus", lambda: (whole,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aaaa,MIG-bbbb")
    resources._cards.cache_clear()
    assert [card.index for card in resources.cards()] == [0, 1]
    assert card_environment([1])["CUDA_VISIBLE_DEVICES"] == "MIG-bbbb"
    assert card_environment([0, 1])["CUDA_VISIBLE_DEVICES"] == "MIG-aaaa,MIG-bbbb"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(hardware, "find_gpus", lambda: tuple(Gpu(n, "a card", 1 << 34, 1, "1") for n in range(4)))
    resources._cards.cache_clear()
    assert [card.index for card in resources.cards()] == [3]
    assert card_environment([3])["CUDA_VISIBLE_DEVICES"] == "3"
    resources._cards.cache_clear()
