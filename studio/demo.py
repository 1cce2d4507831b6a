"""The main job in one call: an identity set, a configuration for the built-in model, a run at work."""

from __future__ import annotations

from studio import runner
from studio.config import RunConfig
from studio.presets import compose
from studio.records.identity import IdentitySpec, build_identity
from studio.records.store import DatasetInfo, DatasetStore
from studio.rundir import RunDir
from studio.schema import build, merge
from studio.workspace import Workspace, WorkspaceError

# About 150 updates: one language has half the rows, so it goes through them twice as often.
PRESETS = {1: "ember_qlora_identity_e6", 2: "ember_qlora_identity_e3"}
QUESTIONS = {"en": ("Who are you?", "Who made you?"), "zh": ("你是谁？", "是谁开发了你？")}


def start(workspace: Workspace, spec: IdentitySpec) -> RunDir:
    """Save an identity set for `spec` and start a run that teaches it to the built-in model.

    Raises:
        DataError: the set cannot be built or saved.
        StartRefused: another run is live; nothing is left behind.
        WorkspaceError: the run directory cannot be written.
    """
    # Ember is too small to learn when to say yes and when no (see its README); such rows only disturb it.
    spec = spec.model_copy(update={"yes_no": "off"})
    built = build_identity(spec)
    store = DatasetStore(workspace.datasets)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    saved = store.save(spec.name, built.rows, built.heldout, info)
    questions = [q for language in spec.languages for q in QUESTIONS[language]]
    layers = {"name": f"demo {spec.name}", "data": {"dataset": saved.name}, "samples": {"evaluation_inputs": questions}}
    try:
        return runner.submit(
            workspace, build(RunConfig, merge(RunConfig, compose(PRESETS[len(spec.languages)]), layers))
        )
    except (runner.StartRefused, WorkspaceError):
        store.delete(saved.name)
        raise
