"""The run card: all there is to know about a run in one file that needs nothing else, as HTML or as Markdown.

Every text in it that a person or a model wrote is escaped; curves are drawn into it; opening it asks for nothing.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from studio import __version__
from studio.card_plot import WIDE, Point, Series, chart, smoothed
from studio.compare import fingerprints, spoken, text_of, verdict_of
from studio.config import OutputConfig, RunConfig
from studio.curves import Curves, read_curves
from studio.events import SampleEvent
from studio.library import Line, read_line
from studio.presets import ROOT
from studio.reproduce import command_line
from studio.rundir import RunDir
from studio.schema import ConfigError, dump_yaml, flatten, walk

Format = Literal["html", "md"]
Language = Literal["en", "zh"]
ASSETS = ROOT / "assets"
STEPS_SHOWN, PAIRS_SHOWN, FAILING_SHOWN, POINTS_LISTED, SKIPPED_SHOWN = 5, 20, 10, 12, 10
SMOOTHING = 0.8
SHARDING = {"zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "deepspeed": "DeepSpeed", "fsdp2": "FSDP2"} | {
    "zero2_offload": "ZeRO-2 + offload",
    "zero3_offload": "ZeRO-3 + offload",
}
"""What the processes of a run divided (`library.spread_of`), as people call it."""


@dataclass(frozen=True)
class Words:
    """The card's own texts and the names of fields in one language; `sentence` translates what the engine wrote."""

    language: Language = "en"
    sentence: Callable[[str], str] = str

    def __call__(self, key: str, **values: object) -> str:
        """The text of `card.<key>`."""
        text = _texts(self.language)[f"card.{key}"]
        return text.format(**values) if values else text

    def field(self, path: str) -> str:
        """The label of a configuration field."""
        return _labels(self.language).get(path, path)


@functools.cache
def _texts(language: Language) -> dict[str, str]:
    return dict(json.loads((ASSETS / "i18n" / f"{language}.card.json").read_text(encoding="utf-8")))


@functools.cache
def _labels(language: Language) -> dict[str, str]:
    found = {spec.path: spec.ui.label or spec.name for spec in walk(RunConfig)}
    if language == "zh":
        chinese = json.loads((ASSETS / "i18n" / "fields.zh.json").read_text(encoding="utf-8"))
        found |= {path: own["label"] for path, own in chinese.items() if own.get("label")}
    return found


def render(run: RunDir, kind: Format, words: Words | None = None) -> str:
    """The whole card as text."""
    words = words or Words()
    return _environment().get_template(f"card.{kind}.jinja").render(contents(run, words))


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(ASSETS / "card"),
        autoescape=lambda name: bool(name and name.startswith("card.html")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"md": markdown_text, "fence": fence}
    return found


def markdown_text(text: object) -> str:
    """A text inside a line of Markdown, with every sign that means something there escaped."""
    line = re.sub(r"([\\`*_{}\[\]()#|!~$])", r"\\\1", str(text))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"^(\s*)([-+=])(?=[\s=-]|$)|^(\s*\d+)(\.)(?=\s|$)", r"\1\3\\\2\4", line)
    return re.sub(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", "<br>", line)


def fence(text: str) -> str:
    """Backticks that no line of `text` can end."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def contents(run: RunDir, words: Words) -> dict[str, Any]:
    """What the templates are filled with: plain values and lists, nothing of it is markup but the plots."""
    line, report, curves = read_line(run), run.read_report() or {}, read_curves(run)
    pairs = [row for row in report.get("before_after") or [] if isinstance(row, dict)]
    return {
        "t": words,
        "version": __version__,
        "made_at": moment(time.time()),
        "run": line,
        "facts": _facts(run, line, words),
        "verdict": _verdict(report, words),
        "pairs": pairs[:PAIRS_SHOWN],
        "pairs_left": max(0, len(pairs) - PAIRS_SHOWN),
        "plots": [Markup(svg) for svg in plots(curves, words) if svg],
        "points": _points(curves),
        "figures": _figures(run, line, report, words),
        "data": [{"name": name, "sha": sha} for name, sha in fingerprints(run)],
        "counts": _counts(curves, words),
        "skipped": [words.sentence(reason) for reason in curves.counts.skipped[:SKIPPED_SHOWN]]
        if curves.counts
        else [],
        "samples": sample_grid(curves.samples),
        **_configuration(run, words),
        "changes": _changes(run, words),
        "environment": _environment_rows(run, line, words),
    }


def moment(unix: float | None) -> str:
    """A time as date and clock; "–" when there is none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix)) if unix else "–"


def seconds(value: float | None) -> str:
    """A duration like 1:02:03 or 0:07; "–" when it is unknown."""
    if value is None:
        return "–"
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def size(value: float | None) -> str:
    """Bytes with a unit; "–" when they are unknown."""
    if not value:
        return "–"
    power = min(4, (int(value).bit_length() - 1) // 10)
    return f"{value / 1024**power:.{1 if power > 2 else 0}f} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits; "–" when there is none."""
    return "–" if value is None else f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.1f}".removesuffix(".0") + " %"


def _facts(run: RunDir, line: Line, words: Words) -> list[tuple[str, str]]:
    """The lines under the title."""
    rows = [
        ("id", run.id),
        ("state", words(f"state.{line['state']}")),
        ("model", line["model"]),
        ("dataset", line["dataset"]),
        ("method", line["method"]),
        ("spread", _spread(line, words)),
        ("continues", line["continues"]),
        ("tags", ", ".join(line["tags"])),
        ("steps", f"{line['step']} / {line['max_steps']}" if line["max_steps"] else ""),
        ("created", moment(line["created_at"])),
        ("duration", seconds(line["duration_seconds"])),
        ("size", size(line["size_bytes"])),
        ("error", words.sentence(line["error"]) if line["error"] else ""),
    ]
    return [(words(key), value) for key, value in rows if value not in ("", "–")]


def _spread(line: Line, words: Words) -> str:
    """Over how many processes and machines it was spread, and what they divided; "" for one process."""
    if line["processes"] == 1:
        return ""
    counted = {"processes": line["processes"], "machines": line["machines"]}
    told = words("spread.machines" if line["machines"] > 1 else "spread.processes", **counted)
    return " · ".join(part for part in (told, SHARDING.get(line["sharding"], line["sharding"])) if part)


def _verdict(report: Mapping[str, Any], words: Words) -> dict[str, Any] | None:
    found = verdict_of(report)
    diagnosis = found["diagnosis"]
    if not found["lights"] and not diagnosis:
        return None
    lights = [
        {
            "name": words(name),
            "share": percent(part["share"]),
            "ok": bool(part["ok"]),
            "note": words(f"{name}.note", count=part["count"], total=part["total"]),
            "failing": [row for row in part["failing"] if isinstance(row, dict)][:FAILING_SHOWN],
        }
        for name, part in found["lights"].items()
    ]
    return {
        "passed": found["passed"],
        "lights": lights,
        "message": words.sentence(str(diagnosis.get("message", ""))) if diagnosis else "",
        "hint": words.sentence(str(diagnosis.get("hint", ""))) if diagnosis else "",
        "changes": _settings_rows(diagnosis.get("changes") or {}, words) if diagnosis else [],
    }


def plots(curves: Curves, words: Words) -> list[str]:
    """Loss with the validation loss and the checks of the verdict, then learning rate, gradient norm and speed."""
    loss: list[Point] = [(log.step, log.loss) for log in curves.logs]
    evals: list[Point] = [(one.step, one.eval_loss) for one in curves.evals]
    weight = SMOOTHING if len(loss) > 20 else 0.0
    first = [Series(words("loss"), smoothed(loss, weight)), Series(words("eval_loss"), evals, 1, dots=True)]
    if weight:
        first.insert(0, Series(words("loss"), loss, faint=True))
    found = [chart(words("loss"), first, WIDE)]
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "gpu_utilization", "mfu"):
        points: list[Point] = [(log.step, getattr(log, name)) for log in curves.logs]
        found.append(chart(words(name), [Series(words(name), points)]))
    checks = [
        Series(words(label), [(one.step, getattr(one, name)) for one in curves.verdicts], colour, dots=True)
        for colour, (label, name) in enumerate({"learned": "learned", "leaked": "leaked", "forgot": "retained"}.items())
    ]
    return [*found, chart(words("checks"), checks)]


def _points(curves: Curves) -> list[tuple[int, str, str]]:
    """Some points of the loss as numbers, for a reader that shows no pictures: (step, loss, learning rate)."""
    logs = [log for log in curves.logs if log.loss is not None]
    count = min(len(logs), POINTS_LISTED)
    chosen = sorted({round(n * (len(logs) - 1) / max(1, count - 1)) for n in range(count)})
    return [(logs[n].step, number(logs[n].loss), number(logs[n].learning_rate)) for n in chosen]


def _figures(run: RunDir, line: Line, report: Mapping[str, Any], words: Words) -> list[tuple[str, str]]:
    took = report.get("seconds")
    parts = [f"{words('phase.' + name)} {seconds(value)}" for name, value in _numbers(took) if name in PHASES]
    rows = [
        ("loss", number(line["loss"])),
        ("eval_loss", number(line["eval_loss"])),
        ("perplexity", _perplexity(verdict_of(report)["perplexity"], words)),
        ("best_step", best_step(run)),
        ("tokens_per_second", number(_number(report.get("tokens_per_second")))),
        ("peak_memory", size(_number(report.get("peak_memory_bytes")))),
        ("time_of", ", ".join(parts)),
    ]
    return [(words(key), value) for key, value in rows if value not in ("", "–")]


def _perplexity(found: Any, words: Words) -> str:
    if not isinstance(found, dict):
        return ""
    before, after = (number(_number(found.get(name))) for name in ("before", "after"))
    return words("perplexity.value", before=before, after=after, rows=found.get("rows"))


def best_step(run: RunDir) -> str:
    """The step of the checkpoint that did best, "" where nobody has looked."""
    try:
        return str(int(json.loads(run.best_file.read_bytes())["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ""


PHASES = ("load", "tokenise", "train", "convert", "merge", "export", "answer", "save", "verdict", "proof", "upload")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _numbers(found: Any) -> list[tuple[str, float]]:
    pairs = found.items() if isinstance(found, dict) else ()
    return [(str(name), float(value)) for name, value in pairs if _number(value) is not None]


def _counts(curves: Curves, words: Words) -> list[tuple[str, str]]:
    counts = curves.counts
    if counts is None:
        return []
    names = ("rows_read", "rows_skipped", "conversations", "distinct", "tokens", "trained_tokens", "truncated")
    numbers = {name: getattr(counts, name) for name in (*names, "packs", "updates")}
    found = [(words(f"counts.{name}"), f"{value:,}") for name, value in numbers.items() if value]
    return [*found, (words("counts.padding"), percent(counts.padding))] if counts.padding else found


def sample_grid(samples: Sequence[SampleEvent]) -> dict[str, Any]:
    """Answers as a grid prompt × step; of many steps the first, the last and some between."""
    steps = sorted({sample.step for sample in samples})
    if len(steps) > STEPS_SHOWN:
        steps = sorted({steps[round(n * (len(steps) - 1) / (STEPS_SHOWN - 1))] for n in range(STEPS_SHOWN)})
    prompts = {sample.index: spoken(sample.prompt) for sample in samples}
    given = {(sample.index, sample.step): sample.answer for sample in samples}
    rows = [
        {"prompt": prompts[index], "answers": [given.get((index, step), "–") for step in steps]}
        for index in sorted(prompts)
    ]
    return {"steps": steps, "rows": rows}


def _configuration(run: RunDir, words: Words) -> dict[str, Any]:
    """What differs from the defaults, the whole configuration as YAML, and the line that starts it again."""
    try:
        config = run.config()
    except ConfigError as error:
        return {"settings": [], "yaml": "", "command": "", "problem": str(error)}
    if isinstance(config, OutputConfig):
        rows = [(name, name, text_of(value), "") for name, value in config.model_dump(mode="json").items()]
        return {"settings": rows, "yaml": dump_yaml(config, full=True), "command": "", "problem": ""}
    defaults = {spec.path: spec.default for spec in walk(RunConfig)}
    chosen = flatten(RunConfig, config.model_dump(mode="json", exclude_defaults=True))
    return {
        "settings": _settings_rows(chosen, words, defaults),
        "yaml": dump_yaml(config, full=True),
        "command": shlex.join(command_line(config)),
        "problem": "",
    }


def _settings_rows(
    values: Mapping[str, Any], words: Words, defaults: Mapping[str, Any] | None = None
) -> list[tuple[str, str, str, str]]:
    """(label, path, value, default) of some fields."""
    known = defaults or {}
    return [
        (words.field(path), path, text_of(value), text_of(known[path]) if path in known else "")
        for path, value in values.items()
    ]


def _changes(run: RunDir, words: Words) -> list[dict[str, Any]]:
    """What resumes changed on the way."""
    try:
        changes = run.changes()
    except ConfigError:
        return []
    return [{"step": one.step, "at": moment(one.at), "fields": _settings_rows(one.fields, words)} for one in changes]


def _environment_rows(run: RunDir, line: Line, words: Words) -> list[tuple[str, str]]:
    launch = run.read_launch()
    if launch is None:
        return []
    machine = launch.machine
    gpus = [f"{gpu.get('name')} {size(_number(gpu.get('memory_bytes')))}" for gpu in machine.get("gpus", [])]
    rows = [
        ("studio", __version__),
        ("commit", launch.git_commit or ""),
        ("system", str(machine.get("system", ""))),
        ("processor", str(machine.get("processor", ""))),
        ("cores", str(machine.get("cores", ""))),
        ("memory", size(_number(machine.get("memory_bytes")))),
        ("gpus", ", ".join(gpus) or (words("none") if machine else "")),
        ("gpus_used", ", ".join(map(str, launch.gpus))),
        ("driver", str(machine.get("driver", ""))),
        ("python", str(machine.get("python", ""))),
        ("attempts", str(launch.attempt)),
        ("last_started", moment(line["started_at"])),
    ]
    named = [(words(key), value) for key, value in rows if value not in ("", "–")]
    return named + sorted(launch.versions.items())
