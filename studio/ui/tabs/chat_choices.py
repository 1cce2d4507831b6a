"""Who can be talked to in the chat room, which two are chosen to begin with, and what they can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from studio.config import RunConfig
from studio.model_choices import ModelChoice, best_of, find_choice, list_choices
from studio.presets import ModelError
from studio.prompts import messages_of
from studio.records import DataError, DatasetStore
from studio.records.probes import heldout_messages
from studio.records.store import read_heldout
from studio.schema import ConfigError
from studio.ui.context import refuse
from studio.ui.i18n import tr
from studio.ui.tabs.chat_server import Pair
from studio.ui.widgets.chatview import LEFT, RIGHT, Message, Named
from studio.workspace import RunNotFound, Workspace

MOST_ASKED = 12
"""Questions that one click asks at most."""


@dataclass(frozen=True)
class Room:
    """What there is to choose from, by key, in the order of the lists."""

    choices: Mapping[str, ModelChoice]

    @property
    def trained(self) -> bool:
        """Whether anything here came out of a training."""
        return any(choice.what != "base" for choice in self.choices.values())

    @property
    def labels(self) -> list[tuple[str, str]]:
        """(what the list says, key)."""
        return [(label(choice), key) for key, choice in self.choices.items()]

    def pair(self, left: str | None, right: str | None) -> Pair:
        """The two that were chosen; only the right one when no left one is. Raises Refused."""
        if not right:
            raise refuse("chat.error.no_run")
        wanted = {LEFT: left, RIGHT: right} if left else {RIGHT: right}
        if any(key not in self.choices for key in wanted.values()):
            raise refuse("chat.error.run")
        return {side: self.choices[str(key)] for side, key in wanted.items()}


def room_of(workspace: Workspace) -> Room:
    """Everything that can answer, the base models of all runs among it."""
    found = {choice.key: choice for choice in list_choices(workspace)}
    for choice in list(found.values()):
        before = before_key(choice)
        if before and before not in found:
            try:
                found[before] = find_choice(workspace, before)
            except (ConfigError, ModelError, OSError):  # it was loaded from somewhere that is gone
                continue
    return Room(found)


def before_key(choice: ModelChoice) -> str:
    """The key of the model a choice was trained from; "" for one that was not, or does not say."""
    config = choice.trained()
    if config is not None:
        return config.model.model_name_or_path
    return choice.base if choice.what == "adapter" else ""


def first_pair(workspace: Workspace, room: Room, selected: str) -> tuple[str, str]:
    """The keys of left and right to begin with: the selected run's best or the newest one's, beside its base model."""
    best = _best(workspace, selected)
    made = [choice for choice in room.choices.values() if choice.what != "base"]
    newest = next((choice for choice in made if choice.best), next(iter(made), None))
    right = best if best and best.key in room.choices else newest
    if right is None:
        return "", next(iter(room.choices), "")
    before = before_key(right)
    return (before if before in room.choices else ""), right.key


def _best(workspace: Workspace, run_id: str) -> ModelChoice | None:
    """The best of a training, or what a merge, an import or an export has made; None when there is nothing."""
    try:
        return (best_of(workspace.run(run_id)) or find_choice(workspace, run_id)) if run_id else None
    except (RunNotFound, ConfigError, ModelError, OSError, ValueError):
        return None


def what_of(choice: ModelChoice) -> str:
    """What a choice is, in few words."""
    if choice.what == "base":
        return tr("chat.what.base")
    if choice.step is not None:
        return tr("chat.what.best" if choice.best else "chat.what.step", None, step=choice.step)
    if choice.run is not None:
        return tr("chat.what.final")
    return tr(f"chat.what.{choice.what}")


def label(choice: ModelChoice) -> str:
    """What a list says of a choice; a run also says when it began, as runs may have one name."""
    when = f" · {choice.run.id[:15]}" if choice.run else ""
    return f"{choice.name}{when} · {what_of(choice)}"


def named(pair: Pair) -> dict[str, Named]:
    """The sides as the page names them."""
    return {side: Named(key=choice.key, name=choice.name, what=what_of(choice)) for side, choice in pair.items()}


def config_of(pair: Pair) -> RunConfig | None:
    """The training the room goes by: that of the right side, else of the left one."""
    return next((found for side in (RIGHT, LEFT) if side in pair and (found := pair[side].trained())), None)


def trained_bits(pair: Pair) -> int:
    """The bits the base weights were held in while the right side was trained."""
    config = config_of(pair)
    return 4 if config is not None and config.method == "qlora" else 16


def evaluation_inputs(pair: Pair) -> list[list[Message]]:
    """The conversations the run was asked while it trained."""
    config = config_of(pair)
    prompts = config.samples.evaluation_inputs if config else []
    asked = [[dict(message) for message in messages_of(prompt)] for prompt in prompts]  # type: ignore[arg-type]
    return [messages for messages in asked if messages[-1]["content"].strip()][:MOST_ASKED]


def held_out(pair: Pair, workspace: Workspace) -> list[list[Message]]:
    """Questions the training never saw: the user's own, then some of the dataset's from all over the list."""
    config = config_of(pair)
    if config is None:
        return []
    own = [probe.messages for probe in config.verdict.probes]
    try:
        rows = read_heldout(DatasetStore(workspace.datasets).resolve(config.data.dataset))
    except (DataError, OSError):  # the dataset is gone: there is nothing to ask
        rows = []
    wanted = max(0, MOST_ASKED - len(own))
    spread = [rows[n * len(rows) // wanted] for n in range(wanted)] if wanted and len(rows) > wanted else rows[:wanted]
    return [*own, *(heldout_messages(row) for row in spread)][:MOST_ASKED]


def template_name(pair: Pair) -> str:
    """The chat template the right side was trained with, by name; "" for the model's own."""
    config = config_of(pair)
    wanted = (config.model.chat_template or "").strip() if config else ""
    return tr("chat.template.own_text") if "{{" in wanted or "{%" in wanted else wanted
