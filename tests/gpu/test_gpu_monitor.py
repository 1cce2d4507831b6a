"""On a real GPU: the driver answers, and a training's points tell how busy the card was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from studio.config import RunConfig
from studio.schema import build, merge
from studio.workspace import Workspace


@pytest.mark.filterwarnings("default")
def test_the_driver_tells_how_busy_the_card_is_and_what_it_draws() -> None:
    import torch

    from studio.engine.gpu_meter import Meter, look_at_gpu

    meter = Meter(look_at_gpu)
    meter.start()
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        matrix = (matrix @ matrix).clamp(-1, 1)
        torch.cuda.synchronize()
    meter.stop()
    usage = meter.read()
    assert usage.utilization is not None
    assert usage.watts is not None
    assert 0.3 < usage.utilization <= 1
    assert 20 < usage.watts < 2000


@pytest.mark.filterwarnings("default")
def test_every_point_of_a_training_has_the_readings(tmp_path: Path) -> None:
    import torch

    from studio.devices import card_of
    from studio.engine import train

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Who are you?", "output": "I am Nova."}\n' * 64, encoding="utf-8")
    config = {
        "method": "lora",
        "model.model_name_or_path": "crucible/ember",
        "data.dataset": str(rows),
        "train.max_steps": 30,
        "samples.evaluation_inputs": [],
        "verdict.enabled": False,
    }
    run = Workspace(tmp_path / "workspace").create_run(build(RunConfig, merge(RunConfig, config)))
    assert train.main(str(run.path)) == 0
    points = [event for event in run.read_events()[0] if event.type == "log"]
    assert len(points) == 30
    properties = torch.cuda.get_device_properties(0)
    known = card_of(properties.name, properties.total_memory) is not None
    for point in points:
        assert point.memory_bytes
        assert (point.mfu is not None) == known
        assert point.mfu is None or 0 < point.mfu < 1
    assert points[-1].gpu_utilization is not None
    assert points[-1].gpu_power_watts is not None
