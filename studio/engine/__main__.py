"""python -m studio.engine train RUN_DIR [--resume] | merge|convert|export|answer RUN_DIR | fetch … | serve …

Each verb's module is imported only when it is asked for: a run's directory shows a sign of life before torch is there.
"""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studio.engine.start import Training
from typing import IO

from studio.locales import start_in_utf8

USAGE = (
    "usage: python -m studio.engine train RUN_DIR [--resume] | merge|convert|export|answer RUN_DIR | fetch JOB_DIR | "
    "meter CONFIG | serve --base PATH --port N ..."
)
OUTPUTS = {"merge": "merge", "convert": "convert", "export": "export", "answer": "answer"}
"""Which module does each kind of run that is no training."""


def main(argv: list[str]) -> int:
    """Run one verb and return its exit code (`studio.events.ExitCode`)."""
    match argv:
        case ["train", run_dir]:
            from studio.engine.start import start

            return start(run_dir, _training)
        case ["train", run_dir, "--resume"] | ["train", "--resume", run_dir]:
            from studio.engine.start import start

            return start(run_dir, _training, resume=True)
        case ["rank", run_dir, *rest] if rest in ([], ["--resume"]):
            from studio.engine.start import start_rank

            return start_rank(run_dir, _training, resume=bool(rest))
        case [verb, run_dir, *rest] if verb in OUTPUTS and rest in ([], ["--resume"]):
            return int(import_module(f"studio.engine.{OUTPUTS[verb]}").main(run_dir))
        case ["meter", *rest]:
            from studio.engine import meter

            return meter.main(rest)
        case ["fetch", job_dir]:
            from studio.engine import hub

            return hub.main(job_dir)
        case ["serve", *rest]:
            from studio.engine import serve

            return serve.main(rest)
    print(USAGE, file=sys.stderr)  # noqa: T201 - this is a command
    return 4


def _let_go(stream: IO[str]) -> None:
    """What a full disk did not take must not turn the exit code into Python's own when the stream is closed."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _training() -> Training:
    from studio.engine.train import train

    return train


if __name__ == "__main__":
    start_in_utf8()
    code = main(sys.argv[1:])
    _let_go(sys.stdout)
    _let_go(sys.stderr)
    gc.freeze()  # the system takes everything back faster than the collector walks through a loaded torch (1.4 s)
    sys.exit(code)
