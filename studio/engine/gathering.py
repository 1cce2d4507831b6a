"""How the machines of a run come together: machine 0 waits for the others and compares, the others look for it.

Whatever goes wrong is a sentence within half a minute; only for a machine that has not come yet is waited longer
(`parallel.ddp_timeout`), which is said meanwhile, and a stop ends the waiting.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from studio import wire
from studio.config import RunConfig
from studio.engine.failure import EngineError, explain
from studio.engine.journal import Journal, StopRequested
from studio.engine.machines import Ended, Meeting, Peer, Together, code_of, lost, told_of
from studio.engine.meeting import clock_warning, difference, facts
from studio.events import ExitCode, RunError, RunState
from studio.preflight_network import ADDRESS, PORT, own_addresses
from studio.wire import Garbled, Line

HELLO_S = 5.0
SAID_AFTER_S = 12.0
WRONG_ADDRESS_S = 20.0
TELL_EVERY_S = 5.0


def gather(journal: Journal, config: RunConfig, resume_step: int | None) -> Together:
    """Machine 0: wait for all others and compare what they say. Raises EngineError; whoever is here is told why."""
    section = config.parallel
    address, port = str(section.main_process_ip), section.port
    with _listening(address, port) as server, _store_port(address, port) as store:
        peers: list[Peer] = []
        try:
            own = facts(journal.run, config, resumes=resume_step is not None)
            _await_all(journal, config, server, own, peers)
        except BaseException as problem:
            _send_away(peers, problem)
            raise
    meeting = Meeting(address, store, f"crucible-{secrets.token_hex(8)}", journal.run.id, resume_step)
    welcome = {"kind": "welcome", "port": store, "token": meeting.token, "run": meeting.run_id, "step": resume_step}
    for peer in peers:
        with contextlib.suppress(OSError):  # who has gone meanwhile is missed at once by who listens
            peer.line.send({**welcome, "host": socket.gethostname(), "time": time.time()})
    return Together(journal, config, meeting, sorted(peers, key=lambda peer: peer.machine))


def _await_all(
    journal: Journal, config: RunConfig, server: socket.socket, own: dict[str, Any], peers: list[Peer]
) -> None:
    """Until every machine has come; into `peers` as they come."""
    section, began, told, warned = config.parallel, time.monotonic(), float("-inf"), False
    while len(peers) < section.num_machines - 1:
        missing = min(set(range(1, section.num_machines)) - {peer.machine for peer in peers})
        waited = time.monotonic() - began
        if time.monotonic() - told >= TELL_EVERY_S:
            where = f"{section.main_process_ip}:{section.port}"
            journal.progress(
                1 + len(peers), section.num_machines, f"machines; waiting for machine {missing} at {where}"
            )
            told = time.monotonic()
        if waited > SAID_AFTER_S and not warned:
            journal.warn(_not_come(missing, config), ADDRESS)
            warned = True
        if waited > section.ddp_timeout:
            raise _failure(ADDRESS, f"machine {missing} did not come within {section.ddp_timeout} s.", _START_IT)
        peer = _come(server, own, peers, section.num_machines)
        if peer is not None:
            peers.append(peer)
            told = float("-inf")
            warning = clock_warning(peer.clock, peer.name)
            if warning:
                journal.warn(warning)


_START_IT = "Start it with its own line, which the Train tab shows, or check that its network reaches this machine."


def _not_come(missing: int, config: RunConfig) -> str:
    section = config.parallel
    return (
        f"Machine {missing} of {section.num_machines} has not come to {section.main_process_ip}:{section.port} yet. "
        f"Start it there with its own line; it is waited for {section.ddp_timeout // 60} minutes."
    )


def _come(server: socket.socket, own: dict[str, Any], peers: list[Peer], machines: int) -> Peer | None:
    """The next machine that comes, if it is one of the run's. Raises EngineError: it differs or cannot take part."""
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return None
    line = Line(connection)
    try:
        said = line.receive(HELLO_S)
        if said is None or said.get("kind") != "hello" or not isinstance(said.get("machine"), int):
            raise Garbled("no machine of ours")
    except OSError:  # a stranger, or a machine that was ended just then
        line.close()
        return None
    peer = Peer(said["machine"], str(said.get("host", ""))[:100], line, clock=_number(said.get("time")))
    problem = difference(own, said)
    if problem is None and peer.machine not in range(1, machines):  # no line of ours makes such a number
        line.close()
        return None
    if problem is None and peer.machine in {other.machine for other in peers}:
        twice = f"parallel.machine_rank: there is a machine {peer.machine} already; give this one another number"
        _send_away([peer], _failure("parallel.machine_rank", f"{twice}.", ""))
        return None
    if problem is not None:
        field = problem.partition(":")[0]
        failure = _failure(field, problem.partition(": ")[2] + ".", "Then start all machines again.")
        _send_away([peer], failure)
        raise failure
    with contextlib.suppress(OSError):  # who has gone meanwhile is missed at once by who listens
        line.send({"kind": "here"})
    return peer


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else time.time()


def _failure(field: str, message: str, hint: str) -> EngineError:
    error = RunError(kind="config", message=f"{field}: {message.removeprefix(f'{field}: ')}", hint=hint, field=field)
    return EngineError(error)


def _send_away(peers: list[Peer], problem: BaseException) -> None:
    """Tell who has come already that the run does not begin, and why."""
    state, error, code = RunState.STOPPED, None, ExitCode.STOPPED
    if isinstance(problem, Exception):
        found, code = explain(problem)
        state, error = RunState.FAILED, found.model_dump()
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.line.send({"kind": "ended", "state": str(state), "code": int(code), "error": error})
            peer.line.receive(1.0)  # let it be read first
        peer.line.close()


# ---- where machine 0 listens -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _listening(address: str, port: int) -> Iterator[socket.socket]:
    """A server at an address of this machine. Raises EngineError."""
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise _failure(
            ADDRESS, f"there is no machine called {address}.", "Give a name or an address of this machine."
        ) from None
    family, where = found[0][0], str(found[0][4][0])
    # Many systems give their own name an address only they can reach; then any of theirs will do.
    bound = "" if where.startswith("127.") or where == "::1" else where
    try:
        server = socket.create_server((bound, port), family=family, backlog=128)
    except OSError as problem:
        raise _cannot_listen(problem, address, port) from None
    server.settimeout(1.0)
    with server:
        yield server


def _cannot_listen(problem: OSError, address: str, port: int) -> EngineError:
    if problem.errno == errno.EADDRINUSE:
        message = f"port {port} is in use on this machine; another program or run has it."
        return _failure(PORT, message, "Choose another port, the same on all machines.")
    if problem.errno == errno.EADDRNOTAVAIL:
        message = f"{address} is no address of this machine, which is machine 0; it has {_own()}."
        return _failure(ADDRESS, message, "Give one of these, on all machines; or give this machine another number.")
    if problem.errno == errno.EACCES:
        return _failure(PORT, f"port {port} may not be used.", "Choose one above 1023, the same on all machines.")
    return _failure(ADDRESS, f"cannot listen at {address}:{port} ({problem.strerror}).", "Choose another address.")


def _own() -> str:
    return ", ".join(own_addresses()[:6]) or "none but itself"


def interface(address: str, port: int) -> str | None:
    """The network card by which this machine reaches `address`, for gloo, which else takes what its own name leads to.

    None when that is the machine itself, or cannot be told.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)  # sends nothing
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    cards = psutil.net_if_addrs().items()
    name = next((name for name, given in cards if own in {one.address.partition("%")[0] for one in given}), None)
    return None if own.startswith("127.") or own == "::1" else name


@contextlib.contextmanager
def _store_port(address: str, port: int) -> Iterator[int]:
    """A port for torch's store: the next one if it is free, for a firewall's sake; held until all have come."""
    where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(where[0]) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host = str(where[4][0])
        try:
            held.bind((host, port + 1 if port < 65535 else 0))
        except OSError:
            held.bind((host, 0))
        yield int(held.getsockname()[1])


# ---- the other machines ----------------------------------------------------------------------------------------------


def join(journal: Journal, config: RunConfig, resume_step: int | None) -> Together:
    """A machine other than 0: find machine 0, say who this is, and wait until all are there. Raises EngineError."""
    section = config.parallel
    address, port = str(section.main_process_ip), section.port
    try:
        own = facts(journal.run, config, resumes=resume_step is not None)
    except Exception as problem:
        said = explain(problem)[0].message
        wire.decline(address, port, {"kind": "hello", "machine": section.machine_rank, "problem": said})
        raise
    line = _find(journal, config)
    try:
        line.send({**own, "time": time.time()})
        welcome = _welcome(journal, config, line)
    except OSError:
        line.close()
        raise EngineError(lost(f"machine 0 at {address}:{port}"), ExitCode.INTERNAL) from None
    except StopRequested:
        with contextlib.suppress(OSError):
            line.send({"kind": "ended", "state": str(RunState.STOPPED)})
        line.close()
        raise
    except EngineError:
        line.close()
        raise
    main = Peer(0, str(welcome.get("host", ""))[:100], line)
    run = str(welcome.get("run"))[:200]
    journal.warn(
        f"This is machine {section.machine_rank} of {section.num_machines}: curves, samples and results are in the run "
        f"{run} on {main.name}.",
        "parallel.machine_rank",
    )
    warning = clock_warning(_number(welcome.get("time")), main.name)
    if warning:
        journal.warn(warning)
    return Together(journal, config, _meeting(address, welcome, main), [main])


def _meeting(address: str, welcome: dict[str, Any], main: Peer) -> Meeting:
    port, step = welcome.get("port"), welcome.get("step")
    if not isinstance(port, int) or not (step is None or isinstance(step, int)):
        raise EngineError(lost(main.name), ExitCode.INTERNAL)
    return Meeting(address, port, str(welcome.get("token"))[:100], str(welcome.get("run"))[:200], step)


def _find(journal: Journal, config: RunConfig) -> Line:
    """A line to machine 0, which may be started later than this machine."""
    section, began, told, said = config.parallel, time.monotonic(), False, float("-inf")
    address, port = str(section.main_process_ip), section.port
    while True:
        try:
            return wire.call(address, port)
        except OSError as problem:
            why, waited = wire.why_not(problem, address, port), time.monotonic() - began
            if (wire.is_wrong_address(problem) and waited > WRONG_ADDRESS_S) or waited > section.ddp_timeout:
                hint = "Check the address, the port and that machine 0 has been started and lets this machine through."
                raise _failure(ADDRESS, f"{why}.", hint) from None
            if waited > SAID_AFTER_S and not told:
                told = True
                journal.warn(f"Machine 0 is not there yet: {why}. Start it, or correct the address.", ADDRESS)
        if time.monotonic() - said >= TELL_EVERY_S:
            said = time.monotonic()
            journal.progress(0, 1, f"machines; looking for machine 0 at {address}:{port}")
        time.sleep(wire.PAUSE_S)


def _welcome(journal: Journal, config: RunConfig, line: Line) -> dict[str, Any]:
    """What machine 0 says once all have come. Raises EngineError when it says that the run does not begin."""
    section, began, warned = config.parallel, time.monotonic(), False
    journal.progress(1, 2, "machines; waiting until all are there")
    while time.monotonic() - began < section.ddp_timeout + HELLO_S:
        message = line.receive(1.0)
        if message is None:
            if time.monotonic() - began > SAID_AFTER_S and not warned:
                journal.warn(_no_answer(f"{section.main_process_ip}:{section.port}"), PORT)
                warned = True
            continue
        if message.get("kind") == "here":
            warned = True  # it is machine 0, and waits as well
            continue
        if message.get("kind") == "welcome":
            return message
        if message.get("state") == RunState.STOPPED:
            journal.run.request_stop()  # noticed at once, and raised here
            time.sleep(HELLO_S)
        error = told_of(Peer(0, "", line), message)
        raise EngineError(error, code_of(error))
    raise ConnectionResetError("nothing more was heard")


def _no_answer(where: str) -> str:
    return (
        f"Something takes the connection to {where}, but does not answer as machine 0 does. If another program has "
        "this port there, choose another one, the same on all machines."
    )


# ---- from the first to the last word ---------------------------------------------------------------------------------


def all_together(
    journal: Journal, config: RunConfig, resume_step: int | None, work: Callable[[Together | None], RunState]
) -> RunState:
    """Do this machine's part of the work once all machines have met; returns how the whole run ended.

    `resume_step`: of the checkpoint this machine would go on from; machine 0's counts.

    Raises:
        EngineError: the machines cannot meet, differ, or one of them failed; whatever `work` raises on one machine.
    """
    if config.parallel.num_machines == 1:
        return work(None)
    meet = join if config.parallel.machine_rank else gather
    found = meet(journal, config, resume_step)
    found.begin()
    try:
        state, error, code = found.settle(*_outcome(journal, found, work))
    finally:
        found.close()
    if error is not None:
        raise EngineError(error, code, told=True)
    return state


def _outcome(journal: Journal, found: Together, work: Callable[[Together | None], RunState]) -> Ended:
    """How this machine's part ended, whatever way that was."""
    try:
        return work(found), None, ExitCode.FINISHED
    except (StopRequested, KeyboardInterrupt):
        return RunState.STOPPED, None, ExitCode.STOPPED
    except Exception as problem:
        error, code = explain(problem, journal.place)
        if error.kind == "internal" and not (isinstance(problem, EngineError) and problem.told):
            traceback.print_exc()
        return RunState.FAILED, error, code
