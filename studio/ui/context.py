"""What a tab gets to build itself: the workspace, texts, shared components, and the one way to guard a handler."""

import functools
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from studio.rundir import RunDir
from studio.ui.counting import Counting
from studio.ui.i18n import T, tr
from studio.ui.sentences import translated
from studio.ui.widgets.form import Form
from studio.workspace import Workspace

Handler = Callable[..., Any]
log = logging.getLogger("studio.ui")

# Every event carries these: not listed as a public endpoint, no spinner over the field. Add concurrency_limit.
EVENT: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Reads and previews: as many at once as come, outside the queue of the heavy actions. One that is asked for while it
# is under way is done again afterwards: Gradio would drop it, and the page would keep what was true before.
READ: dict[str, Any] = {**EVENT, "concurrency_limit": None, "trigger_mode": "always_last"}
# The same for handlers that are told what was clicked (`gr.EventData`): "afterwards" would be told of the first click.
READ_EACH: dict[str, Any] = {**READ, "trigger_mode": "multiple"}
# Live previews while typing: only the last state counts.
PREVIEW: dict[str, Any] = {**EVENT, "queue": False, "trigger_mode": "always_last"}
# Actions that start or stop something: one at a time.
ACTION: dict[str, Any] = {**EVENT, "concurrency_limit": 1}


class Refused(Exception):
    """An action that cannot be done, with a finished sentence for the visitor; build it with :func:`refuse`."""


def refuse(key: str, **values: object) -> Refused:
    """``raise refuse("common.error.no_run")``: the text of ``key`` becomes the visitor's warning."""
    return Refused(tr(key, None, **values))


@dataclass(slots=True)
class Context:
    """Handed to every tab's ``build``. Components are published here by ``app.py`` before the tabs are built."""

    workspace: Workspace
    demo: gr.Blocks
    tabs: gr.Tabs
    # Hidden, value = id of the selected run or "". Use as input, as output (selects it, updates ?run=), or .change.
    selected_run: gr.HTML
    # Hidden, value = name of the last saved or chosen dataset or "". Same use.
    selected_dataset: gr.Textbox
    # The form of the Train tab, once that is built: its components hold the configuration as it stands.
    form: Form | None = None
    # Once the Train tab is built: fills its form from a run of this id, and the components that takes.
    recall: tuple[Callable[[str], list[Any]], list[Any]] | None = None
    # What a configuration will train on; shared, so that one process counts a large dataset for the whole page.
    counting: Counting = field(init=False)
    # The gr.Tab of each id: ctx.tab["chat"].select(...) runs when the visitor opens it.
    tab: dict[str, gr.Tab] = field(default_factory=dict)
    T: Callable[[str], str] = T
    tr: Callable[..., str] = tr

    def __post_init__(self) -> None:
        """Build what follows from the workspace."""
        self.counting = Counting(self.workspace)

    def heading(self, tab: str) -> None:
        """The title and the sentence beneath it: texts ``<tab>.title`` and ``<tab>.lead``."""
        # One marker per component: the page translates only the first of a text.
        with gr.Column(elem_classes=["page-head"], min_width=0):
            gr.HTML(f'<h2 class="page-title">{T(tab + ".title")}</h2>', apply_default_css=False)
            gr.HTML(f'<p class="page-lead">{T(tab + ".lead")}</p>', apply_default_css=False)

    def run(self, run_id: str | None) -> RunDir:
        """The run directory of an id that came from the page; raises Refused when there is none."""
        if not run_id:
            raise refuse("common.error.no_run")
        try:
            return self.workspace.run(run_id)
        except (LookupError, OSError) as error:
            raise refuse("common.error.unknown_run") from error


def known_errors() -> tuple[type[Exception], ...]:
    """Errors of the lower layers whose text is already one sentence for the visitor."""
    from studio.records import DataError
    from studio.run_deletion import DeletionRefused
    from studio.runner import StartRefused
    from studio.schema import ConfigError
    from studio.workspace import WorkspaceError

    return (Refused, DataError, WorkspaceError, StartRefused, DeletionRefused, ConfigError)


def sentence(error: Exception) -> str:
    """What the visitor reads about ``error``; an unknown one is logged under an id that the sentence names."""
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, known_errors()):
        return translated(str(error))
    if isinstance(error, OSError):
        log.warning("file operation failed", exc_info=error)
        return tr("common.error.file", reason=error.strerror or type(error).__name__)
    mark = secrets.token_hex(3)
    log.error("unexpected error %s", mark, exc_info=error)
    return tr("common.error.unexpected", mark=mark)


def _stop(error: Exception) -> Exception:
    """Show the sentence; the invisible error that is returned keeps ``.success`` chains from going on."""
    if isinstance(error, gr.Error):
        return error
    gr.Warning(sentence(error), duration=12)
    return gr.Error("", visible=False, print_exception=False)


def _safe_async_generator(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            async for value in handler(*args, **kwargs):
                yield value
        except Exception as error:
            raise _stop(error) from None

    return guarded


def _safe_generator(handler: Handler) -> Handler:
    @functools.wraps(handler)
    def guarded(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except Exception as error:
            raise _stop(error) from None

    return guarded


def _safe_async(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return await handler(*args, **kwargs)
        except Exception as error:
            raise _stop(error) from None

    return guarded


def _safe_plain(handler: Handler) -> Handler:
    @functools.wraps(handler)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _stop(error) from None

    return guarded


def safe(handler: Handler) -> Handler:
    """Wrap an event handler (plain, async or generator): any error becomes one sentence in a warning, outputs stay.

    After an error the event counts as failed: what was chained with ``.success`` does not run, ``.then`` does.
    """
    if inspect.isasyncgenfunction(handler):
        return _safe_async_generator(handler)
    if inspect.isgeneratorfunction(handler):
        return _safe_generator(handler)
    return _safe_async(handler) if inspect.iscoroutinefunction(handler) else _safe_plain(handler)
