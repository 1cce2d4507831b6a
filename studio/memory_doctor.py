"""After a run has run out of memory: what it needed, and what to change so that it goes on, each with its price.

What the engine told (`Shortage`) corrects the formula of `studio.bounds`: a run that failed needed more than there was,
whatever was promised. Changes that keep the curve are applied to the run, which goes on from its checkpoint; others
need a run from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from studio.activations import LOSS_TOKENS, LOSS_VOCABULARY
from studio.bounds import FRAMEWORK_BYTES, UNKNOWN, Facts, Verdict
from studio.changes import continues
from studio.checkpoints import last_checkpoint, step_of
from studio.config import RunConfig
from studio.devices import UNKNOWN_BANDWIDTH, UNKNOWN_TFLOPS, Device, main_memory, present
from studio.estimate import Plan, plan
from studio.memory import facts_of
from studio.memory_room import Bound
from studio.model_shape import shape_of
from studio.presets import ModelError
from studio.records.errors import DataError
from studio.records.sources import NotCounted
from studio.remedies import (
    SHORTEST,
    Case,
    fewer_processes,
    fixes,
    lighter_methods,
    price_of,
    sentence_of,
    smaller_batches,
    with_overrides,
)
from studio.rundir import RunDir
from studio.schema import ConfigError
from studio.shortage import Shortage, shortage_of
from studio.workspace import Workspace

MOST_OFFERED = 4
SURE: dict[Bound, float] = {"gpu": 0.85, "address_space": 0.85, "control_group": 0.5, "machine": 0.5}
"""Share of the memory that comes and goes up to which a guess counts as sure to fit, by who sets the limit. Of main
memory that is really filled the C library keeps an unforeseeable part of what it was given back: where a guess was
1, 1.1 to 1.7 were measured, most with gradient checkpointing."""
SHORTEST_ANSWER = 8
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of the memory there is, what the formula may fill: less and less, where it was wrong."""
_ORDER: tuple[Verdict, ...] = ("fits", "tight", "no")


@dataclass(frozen=True)
class Remedy:
    """Fields to change by dotted path. `needed` bytes then, None when unknown, of `usable` ones; `slowdown` relative
    time of a token.

    `continues`: the run itself goes on, from checkpoint `from_step` (0: there is none yet, it begins again); otherwise
    a new run begins. `cut`: share of the rows that lose their end, None when no row does or nobody knows.
    """

    changes: dict[str, Any]
    needed: int | None
    usable: int
    verdict: Verdict
    slowdown: float
    continues: bool
    from_step: int
    cut: float | None = None

    @property
    def key(self) -> str:
        """The changes as text, to find the remedy again."""
        return " ".join(f"{path}={value}" for path, value in sorted(self.changes.items()))

    @property
    def message(self) -> str:
        """For a terminal."""
        return sentence_of(self.changes, self.slowdown)


@dataclass(frozen=True)
class Diagnosis:
    """Why a run ended, the step of its last checkpoint (0: none), and what would help, the best first."""

    shortage: Shortage
    checkpoint: int
    remedies: tuple[Remedy, ...]


def diagnose(run: RunDir) -> Diagnosis | None:
    """Why the run ran out of memory and what would help; None when it did not, or is no training."""
    shortage = shortage_of(run)
    try:
        config = run.config()
    except ConfigError:
        return None
    if shortage is None or not isinstance(config, RunConfig):
        return None
    if shortage.device == "cpu":
        shortage = shortage.model_copy(update={"sharers": config.parallel.processes_per_machine})
    last = last_checkpoint(run.checkpoints)
    step = step_of(last) if last else 0
    return Diagnosis(shortage, step, _Doctor(config, shortage, step, Workspace(run.path.parent.parent)).remedies())


class _Doctor:
    """One case: the configuration, what went wrong, what is known of model and data."""

    def __init__(self, config: RunConfig, shortage: Shortage, step: int, workspace: Workspace) -> None:
        self.config, self.shortage, self.step, self.workspace = config, shortage, step, workspace
        self.counted = self._plan(config)
        self.taught: dict[int, bool] = {}
        self.device = _device(shortage)
        self.usable = shortage.usable_bytes or self.device.free_bytes
        shape, facts = shape_of(config), self._facts()
        limit = min(config.data.max_length, facts.longest or config.data.max_length)
        # Rows are known by now: none is longer than the longest, whatever the configuration allows.
        known = with_overrides(config, {"data.max_length": limit})
        self.case = Case(known, shape, self.device, facts) if shape else None

    def _plan(self, config: RunConfig) -> Plan | None:
        """What a configuration trains on; None when it is not known."""
        try:
            return plan(config, self.workspace)
        except (ModelError, NotCounted, OSError, DataError):
            return None

    def _facts(self) -> Facts:
        known = facts_of(self.counted.prepared, self.counted.counts) if self.counted else UNKNOWN
        if known.longest is None and self.shortage.activity == "step":
            return replace(known, longest=self.shortage.length)
        return known

    def remedies(self) -> tuple[Remedy, ...]:
        """What would help, the best first."""
        match self.shortage.activity:
            case "samples":
                found = [self._guessed(changes) for changes in self._fewer_samples()]
            case "evaluation":
                found = [self._guessed(changes) for changes in self._smaller_evaluation()]
            case "verdict":
                found = [self._guessed({"verdict.enabled": False})]
            case "load":
                found = [self._guessed(changes) for changes in (*self._fewer(), *lighter_methods(self.config))]
            case "tokenise" | "merge" | "proof" | "convert" | "export" | "upload" | "answer":
                found = []
            case _:
                found = [*map(self._guessed, self._fewer()), *self._smaller_steps()]
        useful = [remedy for remedy in _first_that_fit(found) if self._teaches(remedy)]
        return tuple(_without_more_of_the_same(sorted(useful, key=self._rank))[:MOST_OFFERED])

    def _teaches(self, remedy: Remedy) -> bool:
        """False for rows cut so short that no answer is left in them."""
        length = remedy.changes.get("data.max_length")
        if length is None or self.counted is None:
            return True
        if length not in self.taught:
            self.taught[length] = self._plan(with_overrides(self.config, {"data.max_length": length})) is not None
        return self.taught[length]

    def _rank(self, remedy: Remedy) -> tuple[int, bool, float]:
        price = price_of(remedy.changes, remedy.slowdown) * (1 + (remedy.cut or 0))
        return _ORDER.index(remedy.verdict), not remedy.continues, price

    # ---- a training step ---------------------------------------------------------------------------------------------

    def _smaller_steps(self) -> list[Remedy]:
        if self.case is None:
            return [self._guessed(changes) for changes in _usual_changes(self.config)]
        found = self._that_fit(self.case, self._keeps)
        found = found or [self._guessed(changes) for changes in _strongest(self.case.config, self._keeps)]
        return found + (self._that_fit(self.case, self._breaks) if self.step else [])

    def _that_fit(self, case: Case, allowed: Callable[[dict[str, Any]], bool]) -> list[Remedy]:
        """The mildest that fit. What the formula promises to fit must do so by what is known now, too."""
        found: list[Remedy] = []
        for share in SHARES:
            free = self._held(self.config) + share * (self.usable - self._held_really())
            smaller = replace(case, device=replace(case.device, free_bytes=max(1, round(free))))
            found += [self._guessed(fix.overrides) for fix in fixes(smaller, allowed)]
            if any(remedy.verdict == "fits" and self._teaches(remedy) for remedy in found):
                break
        return [remedy for remedy in found if remedy.verdict != "no" and self._teaches(remedy)]

    def _fewer(self) -> Iterable[dict[str, Any]]:
        """Fewer processes, where all of them take from one memory."""
        return fewer_processes(self.config) if self.shortage.shared else ()

    def _keeps(self, changes: dict[str, Any]) -> bool:
        return bool(changes) and (not self.step or continues(self.config, changes))

    def _breaks(self, changes: dict[str, Any]) -> bool:
        return not continues(self.config, changes)

    # ---- anything else -----------------------------------------------------------------------------------------------

    def _fewer_samples(self) -> Iterable[dict[str, Any]]:
        section = self.config.samples
        for tokens in _halves(section.max_new_tokens, SHORTEST_ANSWER):
            yield {"samples.max_new_tokens": tokens}
        for count in _halves(len(section.evaluation_inputs), 1):
            yield {"samples.evaluation_inputs": section.evaluation_inputs[:count]}
        yield {"samples.evaluation_inputs": []}

    def _smaller_evaluation(self) -> Iterable[dict[str, Any]]:
        yield from smaller_batches(self.config)
        yield from ({"data.max_length": length} for length in _halves(self.config.data.max_length, SHORTEST))

    def _guessed(self, changes: dict[str, Any]) -> Remedy:
        """A remedy, with its need: what is held all the time, and what comes and goes as far as that shrinks."""
        changed = with_overrides(self.config, changes)
        share, wanted = self._share(changed), self._wanted()
        held, predicted = self._held_really(), self._held(self.config)
        lighter = self._held(changed) / predicted if predicted else 1.0
        needed = round(held * lighter + max(0, wanted - held) * share) if wanted else None
        usable = self._usable(changed)
        verdict: Verdict = "tight" if needed is None else self._verdict(needed, usable)
        if not share:  # what failed is not done any more
            verdict = "fits"
        return self._remedy(changes, needed, usable, verdict)

    def _wanted(self) -> int:
        """Bytes the run wanted: what it asked for, or more, if the formula says that more was to come."""
        seen = self.shortage.needed_bytes
        if self.case is None or not seen or self.shortage.activity not in ("load", "step", "save", None):
            return seen
        return max(seen, self._held_really() + self._moving(self.config))

    def _held_really(self) -> int:
        """Bytes held all the time, as the run told; else by the formula, and no more than it held in the end."""
        if self.shortage.held_bytes is not None:
            return self.shortage.held_bytes
        if self.shortage.bound == "address_space":  # the formula knows nothing of what is mapped and not used
            return self.shortage.used_bytes
        predicted = self._held(self.config)
        return min(predicted, self.shortage.used_bytes) if self.shortage.used_bytes else predicted

    def _usable(self, config: RunConfig) -> int:
        """What a process can have, with another configuration."""
        if not self.shortage.shared:
            return self.usable
        return self.usable * self.shortage.sharers // config.parallel.processes_per_machine

    def _verdict(self, needed: int, usable: int) -> Verdict:
        held = min(self._held_really(), usable)
        if needed <= held + SURE[self.shortage.bound] * (usable - held):
            return "fits"
        return "tight" if needed <= usable else "no"

    def _held(self, config: RunConfig) -> int:
        """Bytes held all the time, by the formula; of a run that was still loading, all but its weights."""
        if self.case is None:
            return 0
        framework = FRAMEWORK_BYTES[self.device.kind][1]
        if self.shortage.activity == "load":
            return framework
        found = replace(self.case, config=config).bounds().footprint
        return framework + found.weights + found.adapter + found.optimizer

    def _share(self, config: RunConfig) -> float:
        """How much of what came and went is left with another configuration."""
        rows, length = self.shortage.rows or 1, self.shortage.length or 1
        match self.shortage.activity:
            case "samples":
                shorter = self.config.samples.max_new_tokens - config.samples.max_new_tokens
                now = min(rows, len(config.samples.evaluation_inputs))
                return now / rows * max(1, length - shorter) / length
            case "evaluation":
                now = min(rows, config.train.per_device_train_batch_size)
                return now / rows * min(length, config.data.max_length) / length
            case "verdict":
                return float(config.verdict.enabled)
        before = self._moving(self.config)
        return self._moving(config) / before if before else 0.5

    def _moving(self, config: RunConfig) -> int:
        """Bytes that come and go in a training step, by the formula; of a run that was still loading, its weights."""
        if self.case is None:
            return 0
        if self.shortage.activity == "load":
            return replace(self.case, config=config).bounds().footprint.weights
        limit = min(config.data.max_length, self.case.config.data.max_length)
        changed = replace(self.case, config=with_overrides(config, {"data.max_length": limit}))
        moving = changed.bounds().expected - self._held(config)
        if self.shortage.bound != "address_space" or self.case.facts.longest is None:
            return moving
        # Tiles of the loss are taken in whole; main memory only as far as they are written to.
        tokens = min(LOSS_TOKENS, config.train.per_device_train_batch_size * min(self.case.facts.longest, limit))
        return moving + 4 * tokens * max(0, LOSS_VOCABULARY - self.case.shape.vocab_size)

    def _slowdown(self, changes: dict[str, Any]) -> float:
        if self.case is None:
            return 1.0
        return _seconds(self.case.changed(changes)) / _seconds(self.case)

    def _remedy(self, changes: dict[str, Any], needed: int | None, usable: int, verdict: Verdict) -> Remedy:
        goes_on, slowdown = self._keeps(changes), self._slowdown(changes)
        step = self.step if goes_on else 0
        return Remedy(changes, needed, usable, verdict, slowdown, goes_on, step, self._cut(changes))

    def _cut(self, changes: Mapping[str, Any]) -> float | None:
        """Share of the rows longer than the new maximum length."""
        limit = changes.get("data.max_length")
        if limit is None or self.counted is None:
            return None
        lengths = self.counted.prepared.examples.length
        return float((lengths > limit).mean()) if len(lengths) else None


def _device(shortage: Shortage) -> Device:
    """Where the run computed, with what it could have had."""
    usable = shortage.usable_bytes
    if shortage.device == "cpu":
        here = main_memory()
    else:
        unknown = Device("GPU", "cuda", shortage.limit_bytes, usable, UNKNOWN_TFLOPS, UNKNOWN_BANDWIDTH)
        here = next((one for one in present() if one.kind == "cuda"), unknown)
    return replace(here, memory_bytes=shortage.limit_bytes, free_bytes=usable) if usable else here


def _seconds(case: Case) -> float:
    """Its time for a token; processes of a machine without GPUs share its cores."""
    shared = case.device.shared_by(case.config.parallel.processes_per_machine)
    return replace(case, device=shared).seconds_per_token()


def _halves(number: int, least: int) -> Iterable[int]:
    while number // 2 >= least:
        number //= 2
        yield number


def _usual_changes(config: RunConfig) -> Iterable[dict[str, Any]]:
    """What usually helps, for a model of unknown size."""
    yield from list(smaller_batches(config))[:1]
    if not config.train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}
    yield from lighter_methods(config)


def _strongest(config: RunConfig, allowed: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Everything at once, when nothing is sure to be enough."""
    parts: list[dict[str, Any]] = [*smaller_batches(config)][-1:] + [*lighter_methods(config)][-1:]
    if not config.train.gradient_checkpointing:
        parts.append({"train.gradient_checkpointing": True})
    if config.data.max_length > SHORTEST:
        parts.append({"data.max_length": SHORTEST})
    changes = {path: value for part in parts if allowed(part) for path, value in part.items()}
    return [changes] if changes else []


def _without_more_of_the_same(ranked: list[Remedy]) -> list[Remedy]:
    """Without those that change more fields than a better one that is enough."""
    kept: list[Remedy] = []
    for remedy in ranked:
        if not any(one.verdict == "fits" and set(one.changes) < set(remedy.changes) for one in kept):
            kept.append(remedy)
    return kept


def _first_that_fit(remedies: Iterable[Remedy]) -> list[Remedy]:
    """Of remedies that change the same fields, the mildest that fits (they come in that order), or the strongest."""
    chosen: dict[frozenset[str], Remedy] = {}
    for remedy in remedies:
        kind = frozenset(remedy.changes)
        if kind not in chosen or chosen[kind].verdict != "fits":
            chosen[kind] = remedy
    return list(chosen.values())
