"""An export of the Export tab as the line that does the same in a terminal."""

import shlex

from studio import presets
from studio.config import ConvertConfig, ExportConfig, MergeConfig
from studio.outputs import OutputConfig
from studio.schema import walk
from studio.workspace import Workspace

RENAMED = {"gguf_type": "type", "settings": "config", "lora_alpha": "alpha"}
"""Options of the command line that are called otherwise than their field."""
POSITIONAL = {
    MergeConfig: ("base", "adapter", "out"),
    ConvertConfig: ("source", "out"),
    ExportConfig: ("format", "model", "out"),
}
_NEVER = ("kind", "schema_version", "name", "out", "weight", "more_adapters", "private", "repo_id")


def command(config: OutputConfig, workspace: Workspace) -> str:
    """The line that does the same in a terminal, in this workspace."""
    elsewhere = workspace.path.resolve() != (presets.ROOT / "workspace").resolve()
    place = ["--workspace", str(workspace.path)] if elsewhere else []
    return shlex.join(["studio", *_words(config), *_flags(config), *_special(config), *place])


def _words(config: OutputConfig) -> list[str]:
    verb = {MergeConfig: "merge", ConvertConfig: "convert", ExportConfig: "export"}[type(config)]
    upload = isinstance(config, ExportConfig) and config.format == "hub"
    names = ("format", "model", "repo_id") if upload else POSITIONAL[type(config)]
    return [verb, *(str(getattr(config, name)) for name in names)]


def _flags(config: OutputConfig) -> list[str]:
    """Options for what is not as usual."""
    written = {*_NEVER, *POSITIONAL[type(config)]}
    found: list[str] = []
    for spec in walk(type(config)):
        value = getattr(config, spec.path, None)
        if spec.path not in written and value not in (None, spec.default):
            found += ["--" + RENAMED.get(spec.path, spec.path).replace("_", "-"), str(value)]
    return found


def _special(config: OutputConfig) -> list[str]:
    """What a terminal writes in a way of its own."""
    if isinstance(config, ExportConfig):
        return [] if config.private else ["--public"]
    if not isinstance(config, MergeConfig):
        return []
    more = [(one.path, one.weight) for one in config.more_adapters]
    own = ["--weight", f"{config.weight:g}"] if config.weight != 1 else []
    return [*own, *(part for path, weight in more for part in ("--adapter", f"{path}:{weight:g}"))]
