"""Two or more runs side by side: what their configurations and surroundings differ in, verdicts, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from studio.config import RunConfig
from studio.curves import read_samples
from studio.library import read_line
from studio.rundir import RunDir
from studio.schema import ConfigError, FieldError, flatten, walk

MOST_RUNS = 8
PROMPTS_SHOWN = 50
# A name is how a run is called, not what it does.
UNTOLD = ("name", "kind", "schema_version")


def check_count(runs: Sequence[str]) -> list[str]:
    """The different ids, in order. Raises ConfigError unless there are two to `MOST_RUNS`."""
    chosen = list(dict.fromkeys(runs))
    if len(chosen) < 2:
        raise ConfigError([FieldError("run", "choose at least two runs to compare")])
    if len(chosen) > MOST_RUNS:
        raise ConfigError([FieldError("run", f"at most {MOST_RUNS} runs can be compared at once; choose fewer")])
    return chosen


def compare(runs: Sequence[RunDir]) -> dict[str, Any]:
    """What the page and `runs compare` show; in every row one value per run, in the order of `runs`.

    `fields` and `environment` have only what differs, with values as text (None: the run has no such field).
    """
    reports = [run.read_report() or {} for run in runs]
    return {
        "runs": [read_line(run) for run in runs],
        "fields": field_rows([settings(run) for run in runs]),
        "environment": _differing([surroundings(run) for run in runs]),
        "verdicts": [verdict_of(report) for report in reports],
        "prompts": prompt_rows([_answers(run) for run in runs]),
    }


def settings(run: RunDir) -> dict[str, Any]:
    """{dotted path: value} of a run's configuration; {} when it is broken."""
    try:
        config = run.config()
    except ConfigError:
        return {}
    data = config.model_dump(mode="json")
    return flatten(RunConfig, data) if isinstance(config, RunConfig) else data


def field_rows(all_settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The fields that differ, in the order of the form: {"path", "values"}."""
    order = [spec.path for spec in walk(RunConfig)]
    paths = [path for path in order if any(path in one for one in all_settings)]
    paths += sorted({path for one in all_settings for path in one} - set(paths))
    return _differing([{path: one[path] for path in paths if path in one} for one in all_settings], skip=UNTOLD)


def _differing(all_values: Sequence[Mapping[str, Any]], skip: Sequence[str] = ()) -> list[dict[str, Any]]:
    paths = list(dict.fromkeys(path for one in all_values for path in one))
    rows = [
        {"path": path, "values": [text_of(one[path]) if path in one else None for one in all_values]} for path in paths
    ]
    return [row for row in rows if row["path"] not in skip and len(set(row["values"])) > 1]


def text_of(value: Any) -> str:
    """A value of a configuration in one line; "" for an empty one."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def surroundings(run: RunDir) -> dict[str, Any]:
    """What a run used beside its configuration: versions, commit, machine, and the fingerprint of each dataset."""
    launch = run.read_launch()
    found: dict[str, Any] = {}
    if launch:
        found |= {name: version for name, version in launch.versions.items()}
        found |= {"commit": (launch.git_commit or "")[:10], "gpus": launch.gpus}
    return found | {f"data {name}": sha[:12] for name, sha in fingerprints(run)}


def fingerprints(run: RunDir) -> list[tuple[str, str]]:
    """(dataset, SHA-256) of what a run was trained on, as its engine found it; [] before that."""
    try:
        found = json.loads(run.data_file.read_bytes())
        return [(str(name), str(sha)) for name, sha in found]
    except (OSError, ValueError, TypeError):
        return []


def verdict_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one verdict: a light's share, whether it is good, and how many of how many."""
    verdict = report.get("verdict")
    verdict = verdict if isinstance(verdict, dict) else {}
    keys = {"learned": ("share", "right"), "leaked": ("share", "hits"), "forgot": ("retained", "kept")}
    lights = {}
    for name, (share, count) in keys.items():
        part = verdict.get(name)
        if isinstance(part, dict):
            lights[name] = {"share": part.get(share), "ok": part.get("ok"), "count": part.get(count)}
            lights[name] |= {"total": part.get("total"), "failing": part.get("failing") or []}
    diagnosis = report.get("diagnosis")
    return {
        "passed": verdict.get("passed"),
        "lights": lights,
        "perplexity": verdict.get("perplexity") or report.get("perplexity"),
        "diagnosis": diagnosis if isinstance(diagnosis, dict) else None,
    }


def spoken(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as one text: of several messages each on a line of its own, behind its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)


def _answers(run: RunDir) -> dict[str, dict[str, Any]]:
    """{prompt: its first and its last answer} of a run."""
    found: dict[str, dict[str, Any]] = {}
    for event in sorted(read_samples(run), key=lambda event: event.step):
        entry = found.setdefault(spoken(event.prompt), {"before": event.answer if event.step == 0 else None})
        entry |= {"answer": event.answer, "step": event.step}
    return found


def prompt_rows(answers: Sequence[Mapping[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per prompt: "before", what the base model said if all agree on it, and "answers", one or None per run."""
    prompts = list(dict.fromkeys(prompt for one in answers for prompt in one))[:PROMPTS_SHOWN]
    rows = []
    for prompt in prompts:
        given = [one.get(prompt) for one in answers]
        before = {entry["before"] for entry in given if entry}
        shared = before.pop() if len(before) == 1 else None
        rows.append({"prompt": prompt, "before": shared, "answers": given})
    return rows
