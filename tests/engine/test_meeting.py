"""Machines of a run meet, compare and hear of each other; on one machine, each in a thread, and torch is not needed."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import MakeRun, events_of

from studio import wire
from studio.config import RunConfig
from studio.engine import gathering, machines
from studio.engine.failure import EngineError
from studio.engine.gathering import all_together, gather, interface, join
from studio.engine.journal import Journal, StopRequested
from studio.engine.machines import Together
from studio.engine.meeting import clock_warning, difference, facts
from studio.events import LOST, RANK, ExitCode, RankStatus, RunError, RunState
from studio.rundir import write_atomic

PATIENCE = 600
"""Against a test that hangs; nothing is concluded from it."""


@pytest.fixture
def port() -> int:
    """A port that is free, and the next one probably too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def machine(make_run: MakeRun, port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Journal, RunConfig]]:
    """machine(1, **changes) -> the journal and configuration of that machine's run; its address is this machine's."""
    monkeypatch.setattr(machines, "BEAT_S", 0.05)
    monkeypatch.setattr(machines, "LAST_WORDS_S", PATIENCE)

    def make(rank: int, **changes: Any) -> tuple[Journal, RunConfig]:
        spread = {"num_processes": 2, "num_machines": 2, "machine_rank": rank, "main_process_ip": "127.0.0.1"}
        spread |= {"main_process_port": port, "ddp_timeout": PATIENCE}
        run = make_run(**{f"parallel.{name}": value for name, value in spread.items()} | changes)
        journal = Journal(run, attempt=rank + 1)
        journal.begin()
        config = run.config()
        assert isinstance(config, RunConfig)
        return journal, config

    return make


Made = tuple[Journal, RunConfig]


class Side(threading.Thread):
    """One machine's part; `result` is what it returned, `error` what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.result: Any = None
        self.error: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as problem:
            self.error = problem

    def ended(self) -> Side:
        """The same, once it has."""
        self.join(PATIENCE)
        assert not self.is_alive()
        return self


def told(side: Side) -> RunError:
    """The failure a side ended with."""
    error = side.ended().error
    assert isinstance(error, EngineError), error
    return error.error


def both(first: Made, second: Made, work: Callable[[Any], RunState] = lambda _: RunState.FINISHED) -> list[Side]:
    """Machine 0 and another one, each doing `work` once they have met."""
    sides = [Side(lambda made=made: all_together(*made, None, work)) for made in (second, first)]  # type: ignore[misc]
    return [side.ended() for side in reversed(sides)]


# ---- what is compared ----


def test_differences(machine: Callable[..., Made], rows: Path) -> None:
    journal, config = machine(0)
    own = facts(journal.run, config, resumes=False)
    other = json.loads(json.dumps(own | {"machine": 1}))
    assert difference(own, other) is None
    for change, sentence in (
        ({"protocol": 0}, "versions: machine 1 has a Crucible of another version"),
        ({"versions": own["versions"] | {"torch": "1.0"}}, f"torch is 1.0 on machine 1 and {own['versions']['torch']}"),
        (
            {"config": own["config"] | {"train.learning_rate": "0.5"}},
            "train.learning_rate: is 0.5 on machine 1 and 0.001",
        ),
        ({"config": {}}, ": differs between machine 0 and machine 1; start every machine with"),
        (
            {"model": {}},
            "model.model_name_or_path: the model on machine 1 is not that of machine 0 (chat_template.jinja differs)",
        ),
        ({"adapter": {"a": "1"}}, "model.adapter: the adapter on machine 1"),
        ({"data": ["x"]}, "data.dataset: the rows on machine 1 are not those of machine 0"),
        ({"device": "GPU"}, "device: machine 1 trains on the GPU, machine 0 on the CPU"),
        ({"resumes": True}, "resume: machine 1 resumes a run and machine 0 begins one"),
        ({"problem": "data.dataset: gone"}, "data.dataset: gone (on machine 1)"),
        ({"versions": 5, "model": [], "config": "x"}, "versions: crucible is missing on machine 1"),
    ):
        found = difference(own, other | change)
        assert found is not None
        assert sentence in found


def test_paths_and_names_may_differ_but_not_what_lies_there(
    machine: Callable[..., Made], tmp_path: Path, rows: Path
) -> None:
    journal, config = machine(0)
    copy = tmp_path / "other.jsonl"
    copy.write_bytes(rows.read_bytes())
    other_journal, other = machine(1, name="another", **{"data.dataset": str(copy), "train.report_to": ["tensorboard"]})
    own = facts(journal.run, config, resumes=False)
    assert difference(own, facts(other_journal.run, other, resumes=False)) is None
    copy.write_text(rows.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "data.dataset: the rows on machine 1" in str(difference(own, facts(other_journal.run, other, resumes=False)))


@pytest.mark.parametrize(("ahead", "said"), [(2.0, None), (60.0, "60 s ahead of"), (-3600.0, "3600 s behind")])
def test_clocks(ahead: float, said: str | None) -> None:
    found = clock_warning(1000.0 + ahead, "machine 1", now=1000.0)
    assert (found is None) if said is None else (said in str(found))


# ---- meeting ----


def test_machines_meet_hear_of_each_other_and_end_together(machine: Callable[..., Made]) -> None:
    here, there = machine(0), machine(1)
    met: dict[bool, Together] = {}
    ready, followed = threading.Event(), threading.Event()

    def work(together: Together) -> RunState:
        met[together.first] = together
        run, journal = together.journal.run, together.journal
        run.ranks.mkdir()
        if together.first:
            journal.update(force=True, phase="train", step=5, max_steps=9)
            assert ready.wait(PATIENCE)
            return RunState.FINISHED
        status = RankStatus(rank=1, attempt=journal.status.attempt, step=5, updated_at=time.time() - 7)
        write_atomic(run.rank_file(1), status.model_dump_json())
        while journal.step != 5 or not here[0].run.rank_file(1).exists():
            time.sleep(0.02)
        ready.set()
        followed.set()
        return RunState.FINISHED

    first, second = both(here, there, work)
    assert (first.error, second.error) == (None, None)
    assert (first.result, second.result) == (RunState.FINISHED, RunState.FINISHED)
    assert met[True].meeting == met[False].meeting
    [mirrored] = here[0].run.read_ranks()
    assert (mirrored.rank, mirrored.step, mirrored.attempt) == (1, 5, 1)
    assert 5 < time.time() - mirrored.updated_at < PATIENCE
    assert (there[0].status.phase, there[0].status.max_steps) == ("train", 9)
    assert events_of(here[0].run, "progress")[0].label.startswith("machines; waiting for machine 1 at 127.0.0.1:")


def test_a_stop_on_either_machine_is_one_of_the_run(machine: Callable[..., Made]) -> None:
    here, there = machine(0), machine(1)

    def work(together: Together) -> RunState:
        if not together.first:
            together.journal.run.request_stop()
        while not together.journal.stop_requested():
            time.sleep(0.02)
        return RunState.STOPPED

    assert [side.result for side in both(here, there, work)] == [RunState.STOPPED, RunState.STOPPED]
    assert here[0].run.stop_requested()


ECHO = RunError(kind="internal", message="Process 0 of 2 (x): closed by peer.", details={LOST: True})
CAUSE = RunError(kind="internal", message="Process 1 of 2 (x) was killed by SIGKILL.", details={RANK: 1})


@pytest.mark.parametrize("dies", [0, 1])
def test_a_failure_is_told_with_its_cause_on_both_machines(machine: Callable[..., Made], dies: int) -> None:
    def work(together: Together) -> RunState:
        own = together.config.parallel.machine_rank == dies
        raise EngineError(CAUSE if own else ECHO, ExitCode.INTERNAL, told=True)

    for side in both(machine(0), machine(1), work):
        assert told(side) == CAUSE
    assert side.error.code == ExitCode.INTERNAL


def test_ranks_of_a_machine_are_ended_when_another_one_is_gone(
    machine: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(machines, "FAREWELL_S", 0.1)
    monkeypatch.setattr(machines, "end_children", ended.set)

    def work(together: Together) -> RunState:
        if not together.first:
            together.peers[0].line.close()  # as the kernel does for a machine's launcher that is killed
            return RunState.FINISHED
        together.carry_out(lambda: None if ended.wait(PATIENCE) else None)
        return RunState.FINISHED

    first, second = both(machine(0), machine(1), work)
    assert told(first).message.startswith("The connection to machine 1 (")
    assert told(second).message.startswith("The connection to machine 0 (")


def test_another_program_at_the_port_of_machine_0_is_said(
    machine: Callable[..., Made], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SAID_AFTER_S", 0.1)
    journal, config = machine(1)
    with socket.create_server(("127.0.0.1", port)) as silent:
        side = Side(lambda: join(journal, config, None))
        line = silent.accept()[0]
        while not events_of(journal.run, "warning"):
            assert side.is_alive()
            time.sleep(0.02)
        line.close()
    assert told(side).message.startswith("The connection to machine 0 at 127.0.0.1:")
    [warning] = events_of(journal.run, "warning")
    assert warning.message.startswith(f"Something takes the connection to 127.0.0.1:{port}, but does not answer as")
    assert warning.field == "parallel.main_process_port"


def test_machine_0_answers_at_once(machine: Callable[..., Made], port: int) -> None:
    here, there = machine(0), machine(1)
    first = Side(lambda: gather(*here, None))
    while not events_of(here[0].run, "progress"):
        time.sleep(0.02)
    line = wire.call("127.0.0.1", port, PATIENCE)
    line.send(facts(there[0].run, there[1], resumes=False))
    kinds = [(line.receive(PATIENCE) or {}).get("kind") for _ in range(2)]
    assert kinds == ["here", "welcome"]
    line.close()
    first.ended().result.close()


def test_a_machine_that_differs_ends_the_run_on_both(machine: Callable[..., Made]) -> None:
    for side in both(machine(0), machine(1, **{"train.learning_rate": 0.5})):
        assert told(side).message.startswith("train.learning_rate: is 0.5 on machine 1 and 0.001 on machine 0; ")
        assert told(side).field == "train.learning_rate"
        assert side.error.code == ExitCode.BAD_INPUT


def test_a_machine_without_the_model_tells_it(machine: Callable[..., Made], tmp_path: Path) -> None:
    here, there = machine(0), machine(1)
    gone = there[1].model.model_copy(update={"model_name_or_path": str(tmp_path / "gone")})
    first, second = both(here, (there[0], there[1].model_copy(update={"model": gone})))
    assert "gone" in told(first).message
    assert told(first).message.endswith("(on machine 1).")
    assert told(first).field == "model.model_name_or_path"
    assert second.error is not None


def test_strangers_and_doubles_are_shown_the_door(make_run: MakeRun, machine: Callable[..., Made], port: int) -> None:
    three = {"parallel.num_machines": 3, "parallel.num_processes": 3}
    here, one = machine(0, **three), machine(1, **three)
    first, second = Side(lambda: gather(*here, None)), Side(lambda: join(*one, None))
    while not any("machine 2" in event.label for event in events_of(here[0].run, "progress")):
        time.sleep(0.02)
    for words in (b"GET / HTTP/1.0\r\n\r\n", b'{"kind": "hello"}\n', b"[" * 300_000 + b"\n", b'"x"\n'):
        reset = contextlib.suppress(ConnectionError)  # of what is not read any more
        with socket.create_connection(("127.0.0.1", port)) as line, reset:
            line.sendall(words)
            assert line.recv(10) == b""
    double = Side(lambda: join(*machine(1, **three), None))
    assert told(double).message.startswith("parallel.machine_rank: there is a machine 1 already")
    third = Side(lambda: join(*machine(2, **three), None))
    assert {side.ended().result.meeting.token for side in (first, second, third)}.__len__() == 1
    for side in (first, second, third):
        side.result.close()


# ---- not meeting ----


def test_a_port_in_use_is_said(machine: Callable[..., Made], port: int) -> None:
    with socket.create_server(("", port)):
        side = Side(lambda: gather(*machine(0), None))
        assert told(side).message.startswith(f"parallel.main_process_port: port {port} is in use on this machine")


@pytest.mark.parametrize(
    ("rank", "address", "sentence"),
    [
        (0, "192.0.2.1", "192.0.2.1 is no address of this machine, which is machine 0; it has "),
        (0, "no.such.machine.invalid", "there is no machine called no.such.machine.invalid"),
        (1, "no.such.machine.invalid", "there is no machine called no.such.machine.invalid"),
        (1, "x" * 70, f"there is no machine called {'x' * 70}"),
        (1, "127.0.0.1", "nobody answers at 127.0.0.1:"),
    ],
)
def test_an_address_that_leads_nowhere_is_said(
    machine: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, rank: int, address: str, sentence: str
) -> None:
    monkeypatch.setattr(gathering, "WRONG_ADDRESS_S", 0.1)
    monkeypatch.setattr(gathering, "SAID_AFTER_S", 0.1)
    journal, config = machine(rank, **{"parallel.main_process_ip": address})
    brief = config.model_copy(update={"parallel": config.parallel.model_copy(update={"ddp_timeout": 1})})
    side = Side(lambda: all_together(journal, brief, None, lambda _: RunState.FINISHED))
    assert told(side).message.startswith(f"parallel.main_process_ip: {sentence}")


def test_machine_0_says_whom_it_waits_for_and_gives_up(
    machine: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "SAID_AFTER_S", 0.1)
    journal, config = machine(0)
    brief = config.model_copy(update={"parallel": config.parallel.model_copy(update={"ddp_timeout": 2})})
    error = told(Side(lambda: gather(journal, brief, None)))
    assert error.message == "parallel.main_process_ip: machine 1 did not come within 2 s."
    [warning] = events_of(journal.run, "warning")
    assert warning.message.startswith("Machine 1 of 2 has not come to 127.0.0.1:")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_ends_the_waiting(machine: Callable[..., Made], rank: int) -> None:
    """The heartbeat turns a stop file into a signal for the main thread."""
    journal, config = machine(rank)
    threading.Timer(0.3, journal.run.request_stop).start()
    with journal.watching(), pytest.raises(StopRequested):
        all_together(journal, config, None, lambda _: RunState.FINISHED)


# ---- small things ----


def test_ended_ranks_leave_their_exit_code() -> None:
    waits = f"import signal, time; print(1, flush=True); time.sleep({PATIENCE})"
    deaf = waits.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print")
    with pytest.MonkeyPatch.context() as patch:
        for program, patience, code in ((waits, PATIENCE, 15), (deaf, 0.5, 9)):
            patch.setattr(machines, "FAREWELL_S", patience)
            with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
                assert child.stdout
                child.stdout.readline()
                machines.end([psutil.Process(child.pid)])
                assert child.poll() == -code


def test_the_card_by_which_a_machine_is_reached() -> None:
    assert interface("127.0.0.1", 1) is None
    assert interface("no.such.machine.invalid", 1) is None


def test_declining(port: int) -> None:
    assert not wire.decline("127.0.0.1", port, {"kind": "hello"}, patience=0.1)
    with socket.create_server(("127.0.0.1", port)) as server:
        side = Side(lambda: wire.decline("127.0.0.1", port, {"kind": "hello", "problem": "é"}))
        line = wire.Line(server.accept()[0])
        assert line.receive(5) == {"kind": "hello", "problem": "é"}
        assert line.receive(0) is None
        line.close()
        assert side.ended().result is True
