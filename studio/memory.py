"""The promise before the start: memory and time a run will take on a device, and what to do if it does not fit.

Pure and instant: a form asks at every keystroke. The parts are `studio.footprint` (the formula), `studio.bounds` (what
may differ from it), `studio.speed` (time) and `studio.remedies` (what to change).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from studio.bounds import UNKNOWN, Facts, Verdict, load_of
from studio.config import RunConfig
from studio.devices import Device
from studio.footprint import PARTS
from studio.model_shape import ModelShape as ModelShape
from studio.model_shape import shape_of as shape_of
from studio.records.counts import Counts, Prepared
from studio.remedies import Case, Fix, MethodChoice, choose_method, fixes
from studio.sharding import WHOLE, Sharding
from studio.speed import Speed, computed


@dataclass(frozen=True)
class Fit:
    """Memory of each process in bytes, and time in seconds.

    `device` is what each process has of it. `components` add up to `expected`; `moment` is when the step is at its
    fullest; `host_bytes` must be free in main memory as well, for all processes of a machine. `seconds` is the whole
    training, None while the number of updates is not known.
    """

    device: Device
    components: dict[str, int]
    low: int
    expected: int
    high: int
    verdict: Verdict
    moment: str
    host_bytes: int
    speed: Speed
    seconds_per_step: float
    seconds: float | None
    fixes: tuple[Fix, ...]


def facts_of(prepared: Prepared, counts: Counts) -> Facts:
    """What is known once the data has been counted (`studio.estimate.plan`)."""
    rows = prepared.packs.sums(prepared.examples.length)
    if not len(rows):
        return UNKNOWN
    return Facts(int(rows.max()), float(rows.mean()), counts.packed, counts.updates)


def fit(
    config: RunConfig,
    shape: ModelShape,
    device: Device,
    facts: Facts = UNKNOWN,
    *,
    speed: Speed | None = None,
    sharding: Sharding = WHOLE,
) -> Fit:
    """What a run takes on `device`. `speed`: recorded by earlier runs (`studio.speed.recorded`), else computed."""
    device = device.shared_by(config.parallel.processes_per_machine)
    case = Case(config, shape, device, facts, sharding)
    found = case.bounds()
    verdict = found.verdict(device.free_bytes)
    load = load_of(config, shape, device, facts, sharding)
    usual = min(facts.mean_length or load.length, load.length)
    speed = speed or computed(replace(load, length=max(1, round(usual))), device)
    seconds = config.effective_batch_size * usual / speed.tokens_per_second
    return Fit(
        device=device,
        components={part: getattr(found.footprint, part) for part in PARTS} | {"framework": found.framework},
        low=found.low,
        expected=found.expected,
        high=found.high,
        verdict=verdict,
        moment=found.footprint.moment,
        host_bytes=(found.footprint.host + found.footprint.paged) * load.sharding.local,
        speed=speed,
        seconds_per_step=seconds,
        seconds=seconds * facts.updates if facts.updates is not None else None,
        fixes=() if verdict == "fits" else fixes(case),
    )


def advise_method(
    config: RunConfig, shape: ModelShape, device: Device, facts: Facts = UNKNOWN
) -> tuple[MethodChoice, ...]:
    """bf16 LoRA, QLoRA and full training on `device`, the recommended one first."""
    device = device.shared_by(config.parallel.processes_per_machine)
    return choose_method(Case(config, shape, device, facts))
