"""estimate: the memory and the time a configuration will need, before anything is started."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from studio import metering
from studio.bounds import UNKNOWN, Facts, load_of
from studio.cli.follow import print_json
from studio.cli.train import add_deepspeed, load_config, overrides_of
from studio.cli.workspace import add_workspace, open_workspace
from studio.config import RunConfig
from studio.devices import Device, cards, find_card, present
from studio.estimate import plan
from studio.events import ExitCode
from studio.footprint import Measurement, divided
from studio.memory import Fit, ModelShape, advise_method, facts_of, fit, shape_of
from studio.presets import ModelError
from studio.records.errors import DataError
from studio.records.sources import NotCounted
from studio.schema import ConfigError, FieldError
from studio.sharding import WHOLE
from studio.speed import recorded
from studio.spread import advice, amount, levels, link_words, lowest, rows
from studio.workspace import Workspace

GB = 2**30  # as the driver and the names of the cards count
VERDICTS = {"fits": "it fits", "tight": "it is tight", "no": "it does not fit"}
SHORT = {"fits": "fits", "tight": "tight", "no": "no"}
STYLES = {"fits": "bold green", "tight": "bold yellow", "no": "bold red"}


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "estimate", help="say how much memory and time a configuration needs, and what would help"
    )
    parser.add_argument("config", help="a YAML file, or a preset name from list-cfg")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="overrides",
                        help="change one field, like --set data.max_length=1024; may be given again")  # fmt: skip
    add_deepspeed(parser)
    parser.add_argument("--card", action="append", default=[], metavar="NAME",
                        help="compare with this card, like '4060' or 'A100 80GB'; may be given again; all: every "
                        "card of the list (default: this machine)")  # fmt: skip
    parser.add_argument("--exact", action="store_true",
                        help="also count the training step itself on empty tensors (up to a minute)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    add_workspace(parser)
    parser.set_defaults(func=_estimate)


def _estimate(arguments: argparse.Namespace) -> int:
    devices = _devices(arguments.card)
    workspace = open_workspace(arguments)
    config = load_config(arguments.config, overrides_of(arguments), os.environ, scheduled=True)
    shape = _shape(config)
    facts, note = _facts(config, workspace)
    results = [_Result(config, shape, device, facts, workspace, exact=arguments.exact) for device in devices]
    if arguments.json:
        print_json([result.view() | {"note": note} for result in results])
    else:
        _show(shape, results, note)
    return ExitCode.FINISHED


def _devices(names: list[str]) -> list[Device]:
    if not names:
        return list(present())
    if names == ["all"]:
        return [card.device for card in cards()]
    return [find_card(name) for name in names]


def _shape(config: RunConfig) -> ModelShape:
    shape = shape_of(config)
    if shape is None:
        raise ConfigError(
            [
                FieldError(
                    "model.model_name_or_path",
                    f"how large {config.model.model_name_or_path[:200]} is, is not known on this machine; "
                    "give a folder with its config.json, or a model from list-cfg",
                )
            ]
        )
    return shape


def _facts(config: RunConfig, workspace: Workspace) -> tuple[Facts, str]:
    """What the data says of the rows, and a sentence if it says nothing."""
    try:
        found = plan(config, workspace)
    except NotCounted:
        return UNKNOWN, "the dataset has not been counted yet: full rows are assumed"
    except (DataError, ModelError, OSError) as error:
        return UNKNOWN, f"full rows are assumed, since the data cannot be read: {error}"
    if found is None:
        return UNKNOWN, "the tokenizer is not on this machine: full rows are assumed"
    return facts_of(found.prepared, found.counts), ""


class _Result:
    """One device: the fit, the methods, and the counted step if it was asked for."""

    def __init__(
        self, config: RunConfig, shape: ModelShape, device: Device, facts: Facts, workspace: Workspace, *, exact: bool
    ) -> None:
        speed = recorded(config, workspace) if device.present else None
        self.fit: Fit = fit(config, shape, device, facts, speed=speed)
        self.methods = advise_method(config, shape, device, facts)
        self.spread = rows(config, shape, device, facts)
        self.levels = levels(config, shape, device, facts)
        self.advice = advice(config, shape, device, facts)
        self.load = load_of(config, shape, device, facts)
        self.counted: Measurement | None = None
        self.problem = ""
        if exact:
            try:
                self.counted = metering.measure(workspace, self.load)
            except metering.NotMetered as error:
                self.problem = str(error)

    def view(self) -> dict[str, Any]:
        """Everything as plain values."""
        counted = asdict(self.counted) if self.counted else None
        return asdict(self.fit) | {
            "methods": [asdict(choice) for choice in self.methods],
            "levels": self.levels,
            "spread": [asdict(row) for row in self.spread],
            "advice": str(self.advice) if self.advice else None,
            "counted": counted,
            "counted_divided": divided(self.counted, self.load) if self.counted else None,
            "counted_problem": self.problem,
        }


def _show(shape: ModelShape, results: list[_Result], note: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{shape.parameters / 1e9:.2f} billion parameters ({shape.model_type})")
    if note:
        console.print(f"note: {note}", markup=False)
    if len(results) > 1:
        console.print(_many(results))
        return
    _show_one(results[0], console)


def _many(results: list[_Result]) -> Table:
    table = Table("device", "memory", "low", "expected", "high", "verdict", "tokens/s")
    for result in results:
        one = result.fit
        sizes = (one.device.memory_bytes, one.low, one.expected, one.high)
        words = [f"{size / GB:.1f} GB" for size in sizes]
        verdict = f"[{STYLES[one.verdict]}]{SHORT[one.verdict]}"
        table.add_row(one.device.name, *words, verdict, f"{one.speed.tokens_per_second:,.0f}")
    return table


def _show_one(result: _Result, console: Console) -> None:
    one = result.fit
    table = Table("part", "GB", title=f"at its fullest ({one.moment})", title_justify="left")
    for part, size in one.components.items():
        if size:
            table.add_row(part, f"{size / GB:.2f}")
    table.add_row("expected", f"{one.expected / GB:.2f}", style="bold")
    console.print(table)
    free = f"{one.device.free_bytes / GB:.1f} GB free"
    free += " for each process" if result.load.sharding.processes > 1 else ""
    console.print(
        f"{one.device.name}, {free}: {one.low / GB:.1f} to {one.high / GB:.1f} GB are needed, "
        f"[{STYLES[one.verdict]}]{VERDICTS[one.verdict]}[/]"
    )
    if one.host_bytes:
        console.print(f"and {one.host_bytes / GB:.1f} GB of main memory")
    _show_counted(result, console)
    _show_time(one, console)
    if result.load.sharding.processes > 1 or one.device.count > 1:
        _show_spread(result, console)
    for fix in one.fixes:
        changes = " ".join(f"--set {path}={value}" for path, value in fix.overrides.items())
        console.print(f"would fit: {fix.message}; {fix.expected / GB:.1f} GB ({changes})", markup=False)
    if one.verdict == "no" and not one.fixes:
        console.print("nothing makes it fit here: choose a smaller model or a larger card")
    for choice in result.methods:
        mark = VERDICTS[choice.verdict] + (", recommended" if choice.recommended else "")
        console.print(f"{choice.method}: {choice.message} ({mark})", markup=False)


def _show_counted(result: _Result, console: Console) -> None:
    if result.counted:
        counted = result.counted
        console.print(f"counted: {counted.peak_bytes / GB:.2f} GB, {counted.flops / 1e12:.2f} TFLOP for each batch")
        if result.load.sharding != WHOLE:
            console.print(f"of which each process has {divided(counted, result.load) / GB:.2f} GB, as it is divided")
    if result.problem:
        console.print(f"note: {result.problem}", markup=False)


def _show_spread(result: _Result, console: Console) -> None:
    count = result.load.sharding.processes
    title = f"{count} process{'es' if count > 1 else ''}, for each of them and each update; speeds by rule of thumb"
    head = ("GB each", "saves", "sends", "sent in", "tokens/s", "")
    table = Table(Column("divided by", no_wrap=True), *head, title=title, title_justify="left")
    best = lowest(result.spread)
    for row in result.spread:
        fits = "cannot be chosen here" if row.problem else SHORT[row.verdict]
        fits += ", best" if best is not None and row.name == best.name else ""
        table.add_row(
            f"{row.name}{' (chosen)' if row.chosen else ''}",
            f"{row.expected / GB:.1f}",
            f"{round(row.saves / GB, 1) + 0.0:.1f}",  # no minus before a zero
            amount(row.sent_bytes) if row.sent_bytes else "",
            f"{row.seconds:.2g} s" if row.sent_bytes else "",
            f"{row.tokens_per_second:,.0f}",
            fits,
            style="dim" if row.problem else "",
        )
    console.print(table)
    names = {None: "nothing fits", "none": "nothing has to be divided"}
    words = [f"{method}: {names.get(name, name)}" for method, name in result.levels.items()]
    console.print(f"the least that has to be divided to fit: {', '.join(words)}")
    console.print(link_words(result.load.sharding.machines, result.fit.device))
    if result.advice:
        console.print(f"note: {result.advice}", markup=False)


def _show_time(one: Fit, console: Console) -> None:
    whence = "as an earlier run reached here" if one.speed.source == "recorded" else "by rule of thumb"
    words = f"{one.speed.tokens_per_second:,.0f} tokens/s {whence}: {one.seconds_per_step:.2g} s an update"
    if one.seconds is not None:
        words += f", {_duration(one.seconds)} of training"
    console.print(words)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
