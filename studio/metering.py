"""Has a training step counted on empty tensors, by a process of its own, and remembers the result.

Seconds to half a minute for a large model; needs neither its weights nor a GPU. What was counted once is kept under
`cache/meter` of the workspace, by everything that can change it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from studio.activations import Load
from studio.footprint import Measurement
from studio.parallel_section import ParallelSection
from studio.rundir import write_atomic
from studio.runner import ENGINE, engine_environment
from studio.schema import dump_yaml
from studio.workspace import Workspace

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
TIMEOUT_S = 600.0
FORMAT = 1
"""Raise it when what is counted changes."""


class NotMetered(RuntimeError):
    """The step cannot be counted; the message says why."""


def key(load: Load) -> str:
    """What a measurement is remembered by: the parts of a configuration that change a step, and the libraries."""
    config = load.config
    parts = {
        "format": FORMAT,
        "method": config.method,
        "model": config.model.model_dump(exclude={"chat_template"}),
        "shape": load.shape.model_dump(),
        "quantization": config.quantization.model_dump(),
        "lora": config.lora.model_dump(),
        "train": config.train.model_dump(include=set(_STEP_FIELDS)),
        "accumulates": config.train.gradient_accumulation_steps > 1,
        "batch": [load.rows, load.length, load.masked, load.target, load.number],
        "libraries": [importlib.metadata.version(name) for name in LIBRARIES],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_STEP_FIELDS = ("optim", "gradient_checkpointing", "neftune_noise_alpha", "max_grad_norm")


def remembered(workspace: Workspace, load: Load) -> Measurement | None:
    """The measurement of an earlier `measure`, or None."""
    try:
        found = json.loads(_file(workspace, load).read_bytes())
        return Measurement(**found)
    except (OSError, ValueError, TypeError):
        return None


def measure(workspace: Workspace, load: Load, timeout: float = TIMEOUT_S) -> Measurement:
    """Count the step now, unless it is remembered. Raises NotMetered."""
    found = remembered(workspace, load)
    if found:
        return found
    found = _ask_engine(workspace, load, timeout)
    try:
        _file(workspace, load).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(workspace, load), json.dumps(asdict(found)))
    except OSError as error:
        raise NotMetered(f"the measurement cannot be kept ({error.strerror}); free some disk space") from None
    return found


def _file(workspace: Workspace, load: Load) -> Path:
    return workspace.path / "cache" / "meter" / f"{key(load)}.json"


def _ask_engine(workspace: Workspace, load: Load, timeout: float) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="meter-") as folder:
        file = Path(folder) / "config.yaml"
        # counted in one process: what division changes is arithmetic (`studio.footprint.divided`)
        frozen = workspace.freeze(load.config.model_copy(update={"parallel": ParallelSection()}))
        file.write_text(dump_yaml(frozen, full=True), encoding="utf-8")
        argv = [*ENGINE, "meter", str(file), "--target", load.target, "--length", str(load.length)]
        try:
            done = subprocess.run(
                argv + ([] if load.masked else ["--no-mask"]),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                env=engine_environment() | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotMetered(f"the step was not counted within {timeout:.0f} seconds") from None
        except OSError as error:
            raise NotMetered(f"the counting process cannot be started ({error.strerror or error})") from None
    return _read(done)


def _read(done: subprocess.CompletedProcess[str]) -> Measurement:
    lines = done.stdout.strip().splitlines()
    try:
        if done.returncode == 0:
            return Measurement(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        pass
    said = done.stderr.strip().splitlines()
    raise NotMetered(f"the step cannot be counted ({said[-1][:300] if said else 'the process said nothing'})")
