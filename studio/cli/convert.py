"""convert: import an adapter that another tool made, or make one of our own ready to be given away."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from studio.cli import merge
from studio.cli.output_run import carry_out
from studio.cli.workspace import add_remote_code, add_workspace, open_workspace
from studio.config import ConvertConfig
from studio.model_choices import SEPARATOR, find_run
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, build
from studio.workspace import Workspace, free_path, slug

# The notes' own commands (XTuner's), by the number of what follows them.
SPELLINGS = {"pth_to_hf": "pth_to_hf CONFIG PTH OUT", "merge": "merge BASE ADAPTER OUT"}
_DESCRIPTION = (
    "Makes a complete adapter folder (PEFT, safetensors, tokenizer, chat template, generation settings, card) of an "
    "XTuner .pth file or folder, shards of DeepSpeed, a .bin adapter, an adapter's folder, or a run. Nothing of a file "
    "is executed. The result is tried on the base model before it gets its name."
)


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "convert",
        help="import an adapter of XTuner, DeepSpeed or PEFT, or make a run's adapter ready to be given away",
        description=_DESCRIPTION,
        usage="%(prog)s SOURCE [OUT] [options]\n       "
        + "\n       ".join(f"%(prog)s {spelling} [options]" for spelling in SPELLINGS.values()),
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="SOURCE [OUT]",
        help="a checkpoint or folder, a run's id (its best step), or RUN#checkpoint-N; OUT: the folder to make",
    )
    parser.add_argument("--base", default=None, metavar="MODEL", help="base model (default: the one it names itself)")
    parser.add_argument(
        "--config",
        default=None,
        metavar="FILE",
        help="how it was trained: XTuner's .py, adapter_config.json, or a preset's name (default: the one beside it)",
    )
    parser.add_argument("--alpha", type=float, default=None, help="LoRA alpha, where no configuration says it")
    parser.add_argument("--prompt-template", default=None, metavar="NAME", help="chat template it was trained with")
    parser.add_argument("--json", action="store_true", help="print every event as one line of JSON")
    _add_notes_options(parser)
    add_remote_code(parser)
    add_workspace(parser)
    parser.set_defaults(func=_convert)


def _add_notes_options(parser: argparse.ArgumentParser) -> None:
    """Options of the notes' commands; those of pth_to_hf have nothing to do here."""
    group = parser.add_argument_group("options of the notes' commands")
    group.add_argument("--max-shard-size", default=None, metavar="SIZE", help="merge: largest weights file")
    group.add_argument("--device", default=None, choices=("cpu", "cuda", "auto"), help="merge: where it is computed")
    group.add_argument("--safe-serialization", action="store_true", help="always so: files are safetensors")
    group.add_argument("--fp32", action="store_true", help="pth_to_hf: the numbers stay as they were saved anyway")


def _convert(arguments: argparse.Namespace) -> int:
    what: list[str] = arguments.what
    spelled = what[0] if what[0] in (*SPELLINGS, "split") and not Path(what[0]).exists() else ""
    if spelled == "merge" and len(what) == 4:
        return _merge(arguments)
    workspace = open_workspace(arguments)
    if spelled == "pth_to_hf" and len(what) == 4:
        config, source, out = what[1:]
    elif spelled:
        raise _wrong(f"give {SPELLINGS.get(spelled, 'SOURCE [OUT]; files are split by merge --max-shard-size')}")
    elif len(what) > 2:
        raise _wrong("give SOURCE and OUT")
    else:
        config, source = arguments.config, what[0]
        out = what[1] if len(what) == 2 else str(_free(workspace, source))
    _say_unused(arguments)
    settings = build(ConvertConfig, _settings(workspace, arguments, (config, source, out)))
    return carry_out(workspace, settings, _report, stopping="stopping the import", as_json=arguments.json)


def _say_unused(arguments: argparse.Namespace) -> None:
    """Options of a merge that are given to an import; the notes write some of them with pth_to_hf too."""
    for option in ("max_shard_size", "device"):
        if getattr(arguments, option) is not None:
            name = option.replace("_", "-")
            print(f"warning: --{name} is an option of merge and changes nothing here", file=sys.stderr)


def _settings(
    workspace: Workspace, arguments: argparse.Namespace, given: tuple[str | None, str, str]
) -> dict[str, Any]:
    config, source, out = given
    return {
        "source": _reference(workspace, source),
        "out": str(Path(out).expanduser().absolute()),
        "base": _absolute(arguments.base),
        "settings": _absolute(config),
        "lora_alpha": arguments.alpha,
        "prompt_template": arguments.prompt_template,
    }


def _reference(workspace: Workspace, source: str) -> str:
    """A path made absolute; a run, which may be known by a part of its name, by its directory."""
    if Path(source).expanduser().exists():
        return str(Path(source).expanduser().absolute())
    name, mark, place = source.partition(SEPARATOR)
    run = find_run(workspace, name)
    return f"{run.path}{mark}{place}" if run else source


def _absolute(reference: str | None) -> str | None:
    if reference is None:
        return None
    path = Path(reference).expanduser()
    return str(path.absolute()) if path.exists() else reference


def _free(workspace: Workspace, source: str) -> Path:
    """A folder among the exports that does not exist yet, called as the source is."""
    run = find_run(workspace, source.partition(SEPARATOR)[0])
    name = slug(f"{run.id}-adapter" if run else f"{Path(source).expanduser().absolute().stem}-adapter")
    return free_path(workspace.exports / name)


def _merge(arguments: argparse.Namespace) -> int:
    """`convert merge` is `merge`."""
    argv = ["merge", *arguments.what[1:]]
    for option in ("max_shard_size", "device", "workspace"):
        value = getattr(arguments, option)
        argv += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    argv += ["--json"] if arguments.json else []
    parser = argparse.ArgumentParser(prog="studio convert")
    merge.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(argv)
    return int(parsed.func(parsed))


def _wrong(sentence: str) -> ConfigError:
    return ConfigError([FieldError("convert", sentence)])


def _report(run: RunDir) -> None:
    report: dict[str, Any] = run.read_report() or {}
    proof, lora = report.get("proof", {}), report.get("lora")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{'adapter' if lora else 'model'}: {report.get('out')}")
    if not lora and "files_equal" in proof:
        console.print(
            f"proof: {proof.get('files_equal')} weights file(s) equal, {proof.get('prompts')} questions answered"
        )
        return
    console.print(
        f"base model: {report.get('base')}" + (f"; rank {lora['r']}, alpha {lora['lora_alpha']}" if lora else "")
    )
    console.print(
        f"proof: {report.get('tensors')} tensors found their place; {proof.get('answers_changed')} of "
        f"{proof.get('prompts')} answers changed, logits by up to {proof.get('max_logit_difference', 0):.3g}"
    )
