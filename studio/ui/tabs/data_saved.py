"""Data, my datasets: the list, and what can be done to whole datasets; each operation makes a new one and says so."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from studio.records import DatasetInfo, DatasetStore, edits
from studio.records.edits import Making
from studio.ui.context import refuse
from studio.ui.i18n import tr
from studio.ui.sentences import translated

_SHOWN = {"name", "title", "kind", "rows", "texts", "source", "format", "skipped", "languages", "created_at"}


class Order(BaseModel):
    """What the page asks to be done to the datasets called `names`."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    op: Literal["rename", "copy", "split", "merge", "distinct", "shuffle", "sample"]
    names: list[str] = Field(min_length=1, max_length=50)
    title: str = Field(default="", max_length=400)
    share: float = 0.7
    amount: float = 0
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    loose: bool = False


def saved_list(store: DatasetStore, said: str = "") -> dict[str, Any]:
    """The saved datasets, newest first, as JSON; `said` is a sentence about what has just been done."""
    return {
        "datasets": [
            info.model_dump(mode="json", include=_SHOWN) | {"source": translated(info.source)} for info in store.list()
        ],
        "notes": [translated(problem) for problem in store.problems()],
        "said": said,
    }


def carry_out(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    """Does what is asked; the dataset to show then, and a sentence about it. Raises DataError, Refused."""
    return _ORDERS[order.op](store, order)


def _making(order: Order) -> Making:
    return Making(title=order.title.strip(), seed=order.seed)


def _rename(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    if not order.title.strip():
        raise refuse("data.error.no_title")
    info = store.rename(order.names[0], order.title)
    return info, tr("data.did.rename", None, title=info.title)


def _copy(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    info = edits.save_as(store, order.names[0], _making(order))
    return info, tr("data.did.copy", None, title=info.title, rows=f"{info.rows:,}")


def _split(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    first, rest = edits.split(store, order.names[0], order.share, _making(order))
    texts = {"first": first.title, "first_rows": f"{first.rows:,}", "rest": rest.title, "rest_rows": f"{rest.rows:,}"}
    return first, tr("data.did.split", None, **texts)


def _merge(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    info = edits.merge(store, order.names, _making(order))
    return info, tr("data.did.merge", None, title=info.title, count=len(order.names), rows=f"{info.rows:,}")


def _distinct(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    before = store.info(order.names[0]).rows
    info = edits.deduplicate(store, order.names[0], _making(order), loose=order.loose)
    return info, tr("data.did.distinct", None, title=info.title, rows=f"{info.rows:,}", gone=f"{before - info.rows:,}")


def _shuffle(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    info = edits.shuffle(store, order.names[0], _making(order))
    return info, tr("data.did.shuffle", None, title=info.title, seed=order.seed)


def _sample(store: DatasetStore, order: Order) -> tuple[DatasetInfo, str]:
    info = edits.sample(store, order.names[0], order.amount, _making(order))
    return info, tr("data.did.sample", None, title=info.title, rows=f"{info.rows:,}")


_ORDERS: dict[str, Callable[[DatasetStore, Order], tuple[DatasetInfo, str]]] = {
    "rename": _rename,
    "copy": _copy,
    "split": _split,
    "merge": _merge,
    "distinct": _distinct,
    "shuffle": _shuffle,
    "sample": _sample,
}
