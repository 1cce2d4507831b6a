"""A training whose loss or gradient is no longer a number stops there, and says at which rows it was looking.

It stops before the update, and before anything is saved: what was saved before is sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studio.checkpoints import last_checkpoint, step_of
from studio.config import RunConfig
from studio.engine.failure import EngineError
from studio.engine.journal import Journal
from studio.events import LogEvent, RunError
from studio.records.batches import Rows
from studio.records.errors import shown
from studio.records.order import Indices, training_order

What = Literal["loss", "gradient"]
FIELD = "train.learning_rate"
NAMED_ROWS = 6


@dataclass(frozen=True)
class Batches:
    """Which rows of which dataset each batch of a training has. `names`: of the datasets, as `rows.sources` come."""

    rows: Rows
    names: tuple[str, ...]
    seed: int
    batch_size: int
    rounds: int = 1
    processes: int = 1

    def of_update(self, done: int, which: int | None = None, process: int | None = None) -> list[tuple[str, int]]:
        """(dataset, row number in it) of the update after `done` ones, or of its batch number `which` only, or only of
        those of one process.
        """
        per_update = self.batch_size * self.rounds * self.processes
        batches = math.ceil(math.ceil(len(self.rows) / self.batch_size) / self.processes)
        epoch, update = divmod(done, math.ceil(batches / self.rounds))
        order = training_order(self.rows.sizes, self.seed, epoch, per_update)
        found = list[tuple[str, int]]()
        for number in range(self.rounds) if which is None else (which,):
            for one in range(self.processes) if process is None else (process,):
                start = ((update * self.rounds + number) * self.processes + one) * self.batch_size
                found += self._named(order[start : start + self.batch_size])
        return found

    def _named(self, packs: Indices) -> list[tuple[str, int]]:
        examples, found = self.rows.examples, list[tuple[str, int]]()
        for pack in packs.tolist():
            for member in self.rows.packs[pack].tolist():
                source = int(examples.source[member])
                row = int(self.rows.sources[source].table.rows[int(examples.index[member])])
                found.append((self.names[source] if source < len(self.names) else "self-replay", row))
        return found


def batches_of(config: RunConfig, rows: Rows, processes: int = 1) -> Batches:
    """The batches of a run over `rows`."""
    names = tuple(Path(section.dataset).name or section.dataset for section in config.data.all_sources)
    train = config.train
    size, rounds = train.per_device_train_batch_size, train.gradient_accumulation_steps
    return Batches(rows, names, train.seed, size, rounds, processes)


def named(rows: Sequence[tuple[str, int]]) -> str:
    """`rows 3, 17 of nova; row 4 of alpaca`, the first few of them."""
    by_name: dict[str, list[str]] = {}
    for name, row in rows[:NAMED_ROWS]:
        by_name.setdefault(shown(name, 100), []).append(str(row))
    said = [f"row{'s' * (len(numbers) > 1)} {', '.join(numbers)} of {name}" for name, numbers in by_name.items()]
    more = [f"{len(rows) - NAMED_ROWS} more"] if len(rows) > NAMED_ROWS else []
    return "; ".join(said + more)


@dataclass(frozen=True)
class Guard:
    """Looks at the numbers of each step."""

    journal: Journal
    batches: Batches

    def check(self, what: What, value: Any, done: int, which: int | None = None, process: int | None = None) -> None:
        """Raise EngineError if `value` of the update after `done` ones, or of its batch `which`, is no number.

        `process`: the one whose value it is.
        """
        if not math.isfinite(float(value)):
            raise self._blown_up(what, done, self.batches.of_update(done, which, process))

    def _blown_up(self, what: What, done: int, rows: Sequence[tuple[str, int]]) -> EngineError:
        step = done + 1
        self.journal.update(force=True, step=step)
        self.journal.emit(LogEvent(loss=None))
        checkpoint = last_checkpoint(self.journal.run.checkpoints)
        saved = step_of(checkpoint) if checkpoint else None
        hint = "Lower the learning rate (a third is a good try), add warm-up, or look at these rows."
        if saved is not None:
            lower = "Clone the run with a third of the learning rate, or look at these rows first."
            hint = f"Step {saved} is saved. {lower}"
        message = f"{FIELD}: the {what} stopped being a number at step {step}, in the batch with {named(rows)}."
        details = {"what": what, "step": step, "rows": [list(row) for row in rows], "saved_step": saved}
        return EngineError(RunError(kind="config", message=message, hint=hint, field=FIELD, details=details))
