"""export: write a model as bitsandbytes, GGUF or for Ollama, or upload it to a hub; or a training as a job."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from studio.cli import export_job
from studio.cli.merge import show_bases
from studio.cli.output_run import carry_out
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import ExportConfig
from studio.events import RunState
from studio.export_targets import Hub, advice, uses
from studio.model_choices import ModelChoice, find_choice, find_run
from studio.outputs import MergeBase
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build
from studio.workspace import Workspace, free_path, slug

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("export", help="write a model as GGUF, for Ollama or in 4/8 bits, or upload it to a hub")
    formats = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    packed = _format(formats, "bitsandbytes", "weights packed in 4 or 8 bits, for transformers and vLLM")
    packed.add_argument("--bits", type=int, choices=(4, 8), default=4, help="bits per weight (default: 4)")
    packed.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="largest file (default: 2GB)")
    gguf = _format(formats, "gguf", "one file for llama.cpp and its relatives")
    ollama = _format(formats, "ollama", "GGUF and its Modelfile")
    for parser_of in (gguf, ollama):
        parser_of.add_argument("--type", dest="gguf_type", choices=GGUF_TYPES, default="q8_0", help="default: q8_0")
    ollama.add_argument("--system", default=None, help="system prompt (default: the one the run was trained with)")
    hub = _format(formats, "hub", "upload an adapter or a model as it is", out=False)
    hub.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the hub; made if it is not there")
    hub.add_argument("--hub", choices=get_args(Hub), default="huggingface", help="default: huggingface")
    hub.add_argument("--public", action="store_true", help="everybody may see it (default: only the owner)")
    hub.add_argument("--endpoint", default=None, metavar="URL", help="address of the hub, if it is not the public one")
    export_job.add_format(formats)


def _format(formats: Any, name: str, about: str, *, out: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = formats.add_parser(name, help=about)
    parser.add_argument("model", metavar="MODEL|RUN", help="a model, an adapter's folder, a run, or RUN#checkpoint-N")
    if out:
        parser.add_argument("out", metavar="OUT", nargs="?", default=None, help="folder to make (default: in exports/)")
        parser.add_argument("--merge-base", choices=get_args(MergeBase), default="original", help="default: original")
    parser.add_argument("--adapter", default=None, metavar="PATH", help="adapter for the model, if it has none itself")
    parser.add_argument("--json", action="store_true", help="print every event as one line of JSON")
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_export, format=name)
    return parser


def _export(arguments: argparse.Namespace) -> int:
    workspace = open_workspace(arguments)
    choice = _choice(workspace, arguments)
    for one in advice(choice, arguments.format, hub=getattr(arguments, "hub", "huggingface")):
        if one.level == "error":
            raise ConfigError([FieldError(one.field, f"{one.message}; {one.fix}")])
        print(f"{one.level}: {one}", file=sys.stderr)
    config = build(ExportConfig, _settings(workspace, arguments, choice))
    report = partial(_report, choice)
    return carry_out(workspace, config, report, stopping="stopping the export", as_json=arguments.json)


def _choice(workspace: Workspace, arguments: argparse.Namespace) -> ModelChoice:
    """What is exported; an upload may also be any folder of files. Raises ConfigError or ModelError."""
    folder = _files(workspace, arguments.model) if arguments.format == "hub" else None
    if folder is not None:
        return ModelChoice(str(folder), "model", folder.name, str(folder))
    choice = find_choice(workspace, arguments.model)
    if arguments.adapter is None:
        return choice
    adapter = find_choice(workspace, arguments.adapter).adapter
    if adapter is None:
        raise ConfigError(
            [FieldError("adapter", f"{arguments.adapter!r} is no adapter; give an adapter's folder or a run")]
        )
    return ModelChoice(choice.key, "adapter", choice.name, choice.base, adapter, run=choice.run)


def _files(workspace: Workspace, reference: str) -> Path | None:
    """A folder with GGUF files: one that is named, or the one a finished run made."""
    run = find_run(workspace, reference)
    finished = run is not None and run.state() is RunState.FINISHED
    folder = run.result("model") if run and finished else Path(reference).expanduser().absolute()
    return folder if folder.is_dir() and any(folder.glob("*.gguf")) else None


def _settings(workspace: Workspace, arguments: argparse.Namespace, choice: ModelChoice) -> dict[str, Any]:
    names = ("format", "bits", "gguf_type", "max_shard_size", "merge_base", "system", "repo_id", "hub", "endpoint")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    given |= {"model": choice.base, "adapter": str(choice.adapter) if choice.adapter else None}
    if arguments.format == "hub":
        return given | {"private": not arguments.public}
    return given | {
        "out": str(Path(arguments.out).expanduser().absolute() if arguments.out else _free(workspace, given))
    }


def _free(workspace: Workspace, given: dict[str, Any]) -> Path:
    """A folder among the exports that does not exist yet."""
    kind = {"bitsandbytes": f"{given.get('bits', 4)}bit"}.get(given["format"], given["format"])
    name = slug(f"{Path(given['adapter'] or given['model']).name}-{kind}")
    return free_path(workspace.exports / name)


def _compared(proof: dict[str, Any]) -> str:
    """How the file answers beside the model it was written from."""
    equal = (
        f"{proof['answers_equal']} of {proof.get('prompts')} answers equal to those of the model it was written from"
    )
    if "max_logprob_difference" in proof:
        largest, allowed = proof["max_logprob_difference"], proof.get("tolerance", 0)
        return f"{equal}; largest difference of a log probability {largest:.2g} (allowed {allowed:.2g})"
    if "max_logit_difference" in proof:
        return f"{equal}; largest logit difference {proof['max_logit_difference']:.2g}"
    return equal


def _report(choice: ModelChoice, run: RunDir) -> None:
    report: dict[str, Any] = run.read_report() or {}
    config = run.config()
    assert isinstance(config, ExportConfig)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"exported: {report.get('out')} ({report.get('size_bytes', 0) / 1e6:.0f} MB)")
    proof = report.get("proof", {})
    if "answers_equal" in proof:
        console.print(f"proof: {_compared(proof)}")
    show_bases(console, report.get("merge") or {})
    checked_with = proof.get("checked_with", "the hub's list of files")
    console.print(f"checked with: {checked_with}")
    for use in uses(config.format, Path(config.out), base=choice.base, repo_id=config.repo_id or "", hub=config.hub):
        console.print(f"{use.program}: {use.command}")
