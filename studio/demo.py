"""The main job in one call: an identity set, a configuration for the built-in model, a run ready to start."""

from __future__ import annotations

from studio.config import RunConfig
from studio.presets import compose
from studio.records.identity import IdentitySpec, build_identity
from studio.records.store import DatasetInfo, DatasetStore
from studio.rundir import RunDir, Workspace
from studio.schema import build, merge

PRESET = "ember_qlora_identity_e3"
QUESTIONS = {"en": ("Who are you?", "Who made you?"), "zh": ("你是谁？", "是谁开发了你？")}


def prepare(workspace: Workspace, spec: IdentitySpec) -> RunDir:
    """Save an identity set for `spec` and create a run that teaches it to the built-in model.

    Raises:
        DataError: the set cannot be built or saved.
        WorkspaceError: the run directory cannot be written.
    """
    built = build_identity(spec)
    info = DatasetInfo(kind="identity", languages=spec.languages, identity=spec)
    saved = DatasetStore(workspace.datasets).save(spec.name, built.rows, built.heldout, info)
    questions = [q for language in spec.languages for q in QUESTIONS[language]]
    layers = {"name": f"demo {spec.name}", "data": {"dataset": saved.name}, "samples": {"evaluation_inputs": questions}}
    return workspace.create_run(build(RunConfig, merge(RunConfig, compose(PRESET), layers)))
