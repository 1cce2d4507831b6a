"""What chat servers leave in the workspace: records and logs of those that are gone are cleared away."""

from __future__ import annotations

import os

from studio import processes
from studio.chat_memory import LOGS_KEPT, ChatHolder, forget_ended, record_file, write_record
from studio.workspace import Workspace


def test_only_the_newest_logs_are_kept_and_those_of_servers_at_work(workspace: Workspace) -> None:
    folder = workspace.path / "chat"
    folder.mkdir()
    for port in range(1, LOGS_KEPT + 4):  # 1 is the oldest
        log = folder / f"server-{port}.log"
        log.write_text("warning", encoding="utf-8")
        os.utime(log, (port, port))
    (folder / "votes.jsonl").write_text("{}", encoding="utf-8")
    here, gone = processes.record(os.getpid()), processes.record(2**22 + 1)
    write_record(workspace, ChatHolder(**here, port=1, base="at/work"))
    write_record(workspace, ChatHolder(**gone, port=2, base="it/made-room", released_for="run"))
    write_record(workspace, ChatHolder(**gone, port=9, base="it/made-room", released_for="run"))
    write_record(workspace, ChatHolder(**gone, port=10, base="it/ended"))
    forget_ended(workspace)
    kept = sorted(int(log.stem.partition("-")[2]) for log in folder.glob("server-*.log"))
    assert kept == [1, *range(4, LOGS_KEPT + 4)]
    assert [record_file(workspace, port).exists() for port in (1, 2, 9, 10)] == [True, False, True, False]
    assert (folder / "votes.jsonl").is_file()
