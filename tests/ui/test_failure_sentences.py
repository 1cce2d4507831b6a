"""What a run that failed says of itself, of its processes and what to do has Chinese."""

from __future__ import annotations

import errno
import re

import pytest

from studio.engine.failure import explain
from studio.engine.rank_ends import RankEnd, Stuck, told
from studio.events import RankStatus, RunError
from studio.schema import ConfigError
from studio.ui.sentences import translated

NO_MEMORY = RunError(
    kind="memory",
    message="train.per_device_train_batch_size: training step 4 (8 rows of 512 tokens) needs more memory than there "
    "is: 100 MB more were asked for, and 20 MB of 4.0 GB were left.",
    hint="The full story is at the end of engine.log.",
    field="train.per_device_train_batch_size",
)
FULL = OSError(errno.ENOSPC, "No space left on device")
RAISED = [
    FULL,
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    KeyError("x"),
]


def ends() -> list[RankEnd]:
    """Of every kind."""
    found = [explain(FULL)[0], explain(KeyError("x"))[0], NO_MEMORY]
    by_itself = [RankEnd(1, 1, status=RankStatus(rank=1, error=error)) for error in found]
    of_another = RunError(
        kind="disk", message=f"workspace: process 1 of 2: {found[0].message[11:]}", details={"rank": 1}
    )
    return [
        *by_itself,
        RankEnd(0, 1, status=RankStatus(rank=0, error=of_another)),
        RankEnd(1, -9, status=RankStatus(rank=1, step=4)),
        RankEnd(1, -11),
        RankEnd(1, 7),
    ]


def sentences() -> list[str]:
    errors = [explain(problem)[0] for problem in RAISED]
    errors += [told(end, 2, "vm")[0] for end in ends()]
    errors.append(told(RankEnd(0, -15), 2, "vm", Stuck(1, "vm", "batch 7 (step 8)", 60.0))[0])
    killed = told(RankEnd(1, -9), 2, "vm")[0].message.rstrip(".")
    texts = [text for error in errors for text in (error.message, error.hint) if text]
    return [*texts, f"{killed} (on machine 1).", explain(ConfigError([]))[0].hint]


@pytest.mark.parametrize("sentence", sorted(set(sentences())))
def test_chinese(sentence: str) -> None:
    chinese = translated(sentence, "zh-CN")
    assert chinese != sentence
    assert not re.search(r"[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}", re.sub(r"（[^）]*）", "", chinese)), chinese
