"""No event of the page is lost because the one before it is still under way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from gradio.helpers import special_args

from studio.ui.app import build_ui
from studio.workspace import Workspace
from tests.ui.building import built

LATEST, EACH = "always_last", "multiple"


@pytest.fixture
def events(workspace: Workspace) -> list[Any]:
    """Everything the page asks Python for."""
    return [event for event in built(lambda: build_ui(workspace)).fns.values() if event.fn is not None]


def told_what_was_clicked(event: Any) -> bool:
    return special_args(event.fn)[2] is not None


def names(events: Iterable[Any]) -> list[str]:
    return sorted(f"{event.name} on {[what for _, what in event.targets]}" for event in events)


def test_what_is_read_is_never_older_than_what_was_last_asked(events: list[Any]) -> None:
    """Gradio's own way ("once") drops what is asked meanwhile; reads are those that any number may do at a time.

    One thing is asked for once: an answer of the chat.
    """
    reads = [event for event in events if event.concurrency_limit is None]
    assert len(reads) > 30
    dropped = [event for event in reads if event.trigger_mode not in (LATEST, EACH)]
    assert names(dropped) == ["ask on ['submit', 'click', 'apply', 'select']"]


def test_a_click_that_waited_is_told_of_itself(events: list[Any]) -> None:
    """What Gradio does afterwards for "always_last" is told of the first click instead of the last one."""
    told = [event for event in events if told_what_was_clicked(event)]
    assert len(told) > 15
    assert names(event for event in told if event.trigger_mode == LATEST) == []


def test_no_order_given_to_a_list_is_dropped_and_none_is_carried_out_beside_another_of_its_kind(
    events: list[Any],
) -> None:
    """Each names what it means: a row, a run, a dataset, a tool."""
    orders = [event for event in events if event.name in ("change", "change_row", "delete_rows", "delete", "remove")]
    assert len(orders) == 6
    assert {(event.trigger_mode, event.concurrency_limit) for event in orders} == {(EACH, 1)}
