"""A progress bar on stderr for work that counts bytes or rows; stdout stays clean for the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is told `done` and `total` (0: not known); the bar is gone at the end."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(40),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # a log file gets no bar, and no empty lines for one
    ) as progress:
        task = progress.add_task(title, total=None, note="")

        def heard(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None, note="" if total else f"{done} rows")

        yield heard
