"""What to change when a run does not fit, and which method to choose: each answer with its price."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from studio.availability import installed
from studio.bounds import UNKNOWN, Bounds, Facts, Verdict, bounds, load_of, verdict_of
from studio.config import Method, RunConfig
from studio.devices import Device
from studio.model_shape import ModelShape
from studio.parallel_plan import conflict
from studio.sharding import WHOLE, Sharding
from studio.speed import seconds_per_token
from studio.states import held

SHORTEST = 256
WANTED_FIXES = 3
GIGABYTE = 2**30
# Beside time, a change has other costs; they order the offers and are not part of the price that is shown.
_SURE_THEN_LIKELY: tuple[tuple[Verdict, ...], ...] = (("fits",), ("fits", "tight"))
WIDER = ("none", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
"""ZeRO stages from the mildest to the one that holds least; main memory is slower than any link."""
_DISLIKE = {"data.max_length": 1.5, "method": 1.15, "train.optim": 1.03}


@dataclass(frozen=True)
class Fix:
    """Changes that make a run fit: `overrides` by dotted path, bytes and relative time of a token then."""

    overrides: dict[str, Any]
    expected: int
    verdict: Verdict
    slowdown: float
    message: str


@dataclass(frozen=True)
class MethodChoice:
    """One method on a device: bytes, whether it fits, time relative to the fastest, and a sentence."""

    method: Method
    expected: int
    verdict: Verdict
    slowdown: float
    recommended: bool
    message: str


@dataclass(frozen=True)
class Case:
    """A configuration on a device."""

    config: RunConfig
    shape: ModelShape
    device: Device
    facts: Facts = UNKNOWN
    sharding: Sharding = WHOLE

    def changed(self, overrides: dict[str, Any]) -> Case:
        """The same with some fields changed; values must be valid ones."""
        return Case(with_overrides(self.config, overrides), self.shape, self.device, self.facts, self.sharding)

    def bounds(self) -> Bounds:
        """Its memory."""
        return bounds(load_of(self.config, self.shape, self.device, self.facts, self.sharding))

    def verdict(self) -> Verdict:
        """Whether it fits; quicker than `bounds`."""
        return verdict_of(load_of(self.config, self.shape, self.device, self.facts, self.sharding), self.device)

    def lacks_main_memory(self) -> bool:
        """What it keeps in main memory is more than there is, as far as is known."""
        load = load_of(self.config, self.shape, self.device, self.facts, self.sharding)
        there = self.device.main_memory
        return there is not None and held(load).host * load.sharding.local > there

    def seconds_per_token(self) -> float:
        """Its time, by rule of thumb."""
        load = load_of(self.config, self.shape, self.device, self.facts, self.sharding)
        return seconds_per_token(load, self.device)


def with_overrides(config: RunConfig, overrides: dict[str, Any]) -> RunConfig:
    """A copy with the fields at dotted paths changed; not validated."""
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for path, value in overrides.items():
        section, _, name = path.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = value
        else:
            top[name] = value
    for section, values in sections.items():
        top[section] = getattr(config, section).model_copy(update=values)
    return config.model_copy(update=top)


def fixes(case: Case, allowed: Callable[[dict[str, Any]], bool] = bool) -> tuple[Fix, ...]:
    """The cheapest changes that make a run fit, at most three that differ in kind; none if nothing helps.

    `allowed`: which changes may be offered at all.
    """
    now = case.seconds_per_token()
    likely = _SURE_THEN_LIKELY if case.verdict() == "no" else _SURE_THEN_LIKELY[:1]
    for wanted in likely:
        offers = []
        for overrides in filter(allowed, _mildest(case, wanted)):
            changed = case.changed(overrides)
            found, slowdown = changed.bounds(), changed.seconds_per_token() / now
            verdict = found.verdict(case.device.free_bytes)
            offers.append(Fix(overrides, found.expected, verdict, slowdown, sentence_of(overrides, slowdown)))
        if offers:
            return _different(sorted(offers, key=_price))
    return ()


def _mildest(case: Case, wanted: tuple[Verdict, ...]) -> Iterator[dict[str, Any]]:
    """Combinations of changes that fit, in this spread over processes or in a wider one."""
    yield from _narrower(case, wanted)
    for spread in wider(case.config, case.device):
        changed = case.changed(spread)
        if changed.lacks_main_memory():
            continue
        if changed.verdict() in wanted:
            yield spread
        elif not case.config.train.gradient_checkpointing:
            lighter = spread | {"train.gradient_checkpointing": True}
            if case.changed(lighter).verdict() in wanted:
                yield lighter


def wider(config: RunConfig, device: Device) -> Iterator[dict[str, Any]]:
    """Ways to divide a run that hold less in each process, from the mildest on: a higher ZeRO stage, or every GPU of
    this machine. The effective batch stays."""
    section = config.parallel
    if section.deepspeed_config is not None or section.fsdp != "none" or device.kind != "cuda":
        return
    if device.present and not installed("deepspeed"):
        return
    more: dict[str, Any] = {}
    if section.num_processes == 1 and device.count > 1:
        share = _divided_batch(config, device.count)
        more = {"parallel.num_processes": device.count} | share if share else {}
    if section.num_processes == 1 and not more and config.method != "full":
        return  # nothing to divide, and little of an adapter to move to main memory
    stages = WIDER[WIDER.index(section.deepspeed) + 1 :] if section.deepspeed in WIDER else ()
    for stage in stages:
        found = more | {"parallel.deepspeed": stage}
        divides = more or section.num_processes > 1 or stage.endswith("_offload")
        if divides and conflict(with_overrides(config, found)) is None:
            yield found


def fewer_processes(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Fewer processes on each machine, the most first: each then has more of the memory they share. The effective
    batch stays, and so does what a process computes at a time."""
    section, steps = config.parallel, config.train.gradient_accumulation_steps
    for each in range(section.processes_per_machine - 1, 0, -1):
        times, rest = divmod(section.processes_per_machine, each)
        changes = {
            "parallel.num_processes": each * section.num_machines,
            "train.gradient_accumulation_steps": steps * times,
        }
        if not rest and conflict(with_overrides(config, changes)) is None:
            yield changes


def _divided_batch(config: RunConfig, processes: int) -> dict[str, Any]:
    """Accumulation, or the batch, of each process, so that all together compute the same rows; {} if that cannot be."""
    steps, rows = config.train.gradient_accumulation_steps, config.train.per_device_train_batch_size
    if steps % processes == 0:
        return {"train.gradient_accumulation_steps": steps // processes}
    if rows % processes == 0:
        return {"train.per_device_train_batch_size": rows // processes}
    return {}


def _narrower(case: Case, wanted: tuple[Verdict, ...]) -> Iterator[dict[str, Any]]:
    """Combinations of changes to the step itself; of batches and lengths only the mildest that fit."""
    checkpointing: list[dict[str, Any]] = [{}]
    if not case.config.train.gradient_checkpointing:
        checkpointing.append({"train.gradient_checkpointing": True})
    batches: list[dict[str, Any]] = [{}, *smaller_batches(case.config)]
    lengths: list[dict[str, Any]] = [{}, *_shorter(case.config)]
    bases = product(checkpointing, [{}, *lighter_methods(case.config)], [{}, *_lighter_optimizers(case)])
    for parts in bases:
        base = {path: value for part in parts for path, value in part.items()}
        if base and conflict(case.changed(base).config) is not None:
            continue  # such as a method or an optimizer that cannot be divided
        if case.changed(base | batches[-1] | lengths[-1]).verdict() not in wanted:
            continue
        reached = 0  # the longest rows that fit so far
        for batch in batches:
            for length in lengths:
                limit = length.get("data.max_length", case.config.data.max_length)
                if limit <= reached:
                    break
                merged = base | batch | length
                if merged and case.changed(merged).verdict() in wanted:
                    yield merged
                    reached = limit
            if reached == case.config.data.max_length:
                break


def _price(fix: Fix) -> tuple[float, int]:
    return price_of(fix.overrides, fix.slowdown), -fix.expected  # of equal ones, the one that changes least


def price_of(overrides: dict[str, Any], slowdown: float) -> float:
    """The time a change costs, and what else speaks against it, in one number to order by."""
    for path in overrides:
        slowdown *= _DISLIKE.get(path, 1.01)
    return slowdown


def _different(offers: list[Fix]) -> tuple[Fix, ...]:
    """The first of each kind of change, without those that only add to one already there."""
    chosen: list[Fix] = []
    for offer in offers:
        kind = set(offer.overrides)
        if not any(set(one.overrides) <= kind for one in chosen):
            chosen.append(offer)
    # of several processes one wants to know how they could divide it, whatever else is quicker
    spread = next((offer for offer in chosen if "parallel.deepspeed" in offer.overrides), None)
    first = chosen[:WANTED_FIXES]
    return tuple(first if spread is None or spread in first else [*first[:-1], spread])


def smaller_batches(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Part of the batch and so many times the accumulation, from the largest part down: the effective batch stays."""
    whole = config.train.per_device_train_batch_size
    for batch in range(whole // 2, 0, -1):
        steps = config.rows_per_process // batch
        if whole % batch == 0 and steps <= 4096:
            yield {"train.per_device_train_batch_size": batch, "train.gradient_accumulation_steps": steps}


def _shorter(config: RunConfig) -> Iterator[dict[str, Any]]:
    length = config.data.max_length
    while length // 2 >= SHORTEST:
        length //= 2
        yield {"data.max_length": length}


def lighter_methods(config: RunConfig) -> Iterator[dict[str, Any]]:
    lighter: dict[str, tuple[Method, ...]] = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}
    if config.lora.init_lora_weights not in ("default", "gaussian"):
        lighter["lora"] = ()  # such a start needs 16-bit weights
    yield from ({"method": method} for method in lighter[config.method])


def _lighter_optimizers(case: Case) -> Iterator[dict[str, Any]]:
    optimizer = case.config.train.optim
    if optimizer in ("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"):
        yield {"train.optim": "adamw_8bit"}
    if case.device.kind == "cuda" and optimizer.startswith("adamw"):
        yield {"train.optim": "paged_adamw_8bit"}


_WORDS = {
    "train.gradient_checkpointing": "gradient checkpointing",
    "train.per_device_train_batch_size": "batch size {} with more accumulation",
    "data.max_length": "rows cut at {} tokens",
    "method": "{}",
    "train.optim": "{}",
    "parallel.num_processes": "{} GPUs",
    "parallel.deepspeed": "{}",
    "samples.max_new_tokens": "answers of at most {} tokens",
    "samples.evaluation_inputs": "{} of the evaluation inputs",
    "verdict.enabled": "no verdict",
}
_FEWER = {"parallel.num_processes": "fewer processes ({})"}
"""Where nothing else is divided."""


def sentence_of(overrides: dict[str, Any], slowdown: float) -> str:
    shown = {path: len(value) if isinstance(value, list) else value for path, value in overrides.items()}
    words = _WORDS if "parallel.deepspeed" in overrides else _WORDS | _FEWER
    names = [words[path].format(value) for path, value in shown.items() if path in words]
    return f"{' and '.join(names)}: {price_words(slowdown)}"


def price_words(slowdown: float) -> str:
    """A relative time in words."""
    if slowdown >= 1.05:
        return f"{slowdown:.1f} times the time"
    return "no slower" if slowdown > 0.95 else f"{1 / slowdown:.1f} times as fast"


def choose_method(case: Case) -> tuple[MethodChoice, ...]:
    """Every method on this device, the recommended one first.

    Recommended is bf16 LoRA where it fits: 4 bits save memory and cost time. Full training is only ever offered.
    """
    measured: dict[Method, tuple[Bounds, float]] = {}
    for method in ("qlora", "lora", "full"):
        changed = case.changed({"method": method})
        measured[method] = changed.bounds(), changed.seconds_per_token()
    verdicts = {method: found.verdict(case.device.free_bytes) for method, (found, _) in measured.items()}
    best = _best(verdicts, measured)
    fastest = min(seconds for _, seconds in measured.values())
    choices = [
        MethodChoice(
            method, found.expected, verdicts[method], seconds / fastest, method == best, _words(method, measured)
        )
        for method, (found, seconds) in measured.items()
    ]
    return tuple(sorted(choices, key=lambda choice: not choice.recommended))


def _best(verdicts: dict[Method, Verdict], measured: dict[Method, tuple[Bounds, float]]) -> Method:
    """The surer of LoRA and QLoRA; the faster where both are as sure, the smaller where neither fits."""
    order = ("fits", "tight", "no")

    def rank(method: Method) -> tuple[int, float]:
        found, seconds = measured[method]
        return order.index(verdicts[method]), found.expected if verdicts[method] == "no" else seconds

    return min(("lora", "qlora"), key=rank)


def _words(method: Method, measured: dict[Method, tuple[Bounds, float]]) -> str:
    lora, lora_time = measured["lora"]
    found, seconds = measured[method]
    if method == "lora":
        return f"16-bit LoRA takes {lora.expected / GIGABYTE:.1f} GB"
    if method == "qlora":
        saved = (lora.expected - found.expected) / GIGABYTE
        return f"4-bit saves {saved:.1f} GB here, {_cost(seconds / lora_time)}"
    more = (found.expected - lora.expected) / GIGABYTE
    return f"training every weight takes {more:.1f} GB more than LoRA, {_cost(seconds / lora_time)}"


def _cost(slowdown: float) -> str:
    return f"and costs {slowdown:.1f} times the time" if slowdown >= 1.05 else "and takes no longer"
