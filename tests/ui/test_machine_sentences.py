"""What is said of the machines of a run has Chinese."""

from __future__ import annotations

import re
from typing import Any

import pytest

from studio.engine.gathering import _START_IT, _cannot_listen, _no_answer, _not_come
from studio.engine.machines import Peer, lost, told_of
from studio.engine.meeting import clock_warning, difference
from studio.ui.sentences import translated
from studio.wire import why_not

OWN: dict[str, Any] = {
    "protocol": 1,
    "versions": {"torch": "2.13"},
    "device": "CPU",
    "config": {"train.learning_rate": "0.1", "data.system": "text 12"},
    "model": {"config.json": "1 a"},
    "adapter": {},
    "data": ["x"],
    "resumes": False,
}
CHANGES: list[dict[str, Any]] = [
    {"protocol": 2},
    {"versions": {"torch": "2.12"}},
    {"device": "GPU"},
    {"config": {"train.learning_rate": "0.2"}},
    {"config": {"train.learning_rate": "0.1", "data.system": "text 13"}},
    {"model": {}},
    {"data": []},
    {"resumes": True},
    {"problem": "data.dataset: the rows on machine 2 are not those of machine 0; copy the dataset from there."},
]


def sentences() -> list[str]:
    found = [f"{difference(OWN, OWN | {'machine': 1} | change)}." for change in CHANGES]
    for problem in (OSError(98, "in use"), OSError(99, "no address")):
        error = _cannot_listen(problem, "10.0.0.9", 29500).error
        found += [error.message, error.hint]
    found.append(_no_answer("10.0.0.9:29500"))
    found += [_START_IT, str(clock_warning(100.0, "machine 1 (b)", now=0.0)), lost("machine 1 (b)").hint]
    peer = Peer(1, "b", None)  # type: ignore[arg-type]
    found += [
        lost(peer.name).message,
        told_of(peer, {"error": {"kind": "model", "message": "nobody answers at x:1."}}).message,
    ]
    found += [f"Machine 0 is not there yet: {why_not(one, 'n0', 1)}. Start it, or correct the address." for one in (
        ConnectionRefusedError(), TimeoutError(), OSError(113, "No route to host"),
    )]  # fmt: skip
    found += [
        "10.0.0.9 is no address of this machine, which is machine 0; it has 10.0.0.1, 10.0.0.2",
        "port 29500 is in use on this machine now",
    ]
    found += [
        "give one of these, or give this machine another number",
        "choose another port, the same on all machines, or wait",
    ]
    return [*found, "This is machine 1 of 2: curves, samples and results are in the run x on machine 0 (a)."]


@pytest.mark.parametrize("sentence", sentences())
def test_chinese(sentence: str) -> None:
    told = translated(sentence, "zh-CN")
    assert told != sentence
    assert not re.search(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}", re.sub(r"（[^）]*）|runs resume last", "", told)), told


def test_who_has_not_come() -> None:
    class Section:
        num_machines, main_process_ip, port, ddp_timeout = 3, "n0", 29500, 1800

    class Config:
        parallel = Section

    assert "最多等待 30 分钟" in translated(_not_come(2, Config), "zh-CN")  # type: ignore[arg-type]
