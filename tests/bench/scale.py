"""What several processes and each ZeRO stage bring and cost on this machine's CPU: tokens per second, in one run.

    python tests/bench/scale.py [--method lora] [--layers 4 --width 256] [--length 256] [--rows 2] [--steps 8]
                                [--rounds 3] [--only 1:none 2:none 2:zero2] [--json FILE]

Every contender (processes:stage) trains the same random Llama on the same packed rows with the real engine, each once
per round, so that a busy machine is busy for all. A process has `--rows` rows a step whatever their number: two
processes do twice the work. Printed are medians over the rounds: tokens per second, and its ratio to one process
without ZeRO in the same round (2.0 would be perfect for two); then what DeepSpeed and FSDP2 cost against plain DDP.
No test: the figures are for side-by-side reading.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from studio.config import RunConfig  # noqa: E402
from studio.events import CountsEvent, LogEvent  # noqa: E402
from studio.rundir import RunDir  # noqa: E402
from studio.schema import ConfigError, build, merge  # noqa: E402
from studio.workspace import Workspace  # noqa: E402

EMBER = ROOT / "assets" / "models" / "ember"
STAGES = ("none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2")
PLAIN, DDP = "1:none", "2:none"
WARM_UP = 2
"""Steps that are not counted: libraries are loaded in the first, and the optimizer's states are made."""


@dataclass
class Contender:
    """`name` is processes:stage; of each round its tokens per second, or why it has none."""

    name: str
    speeds: list[float] = field(default_factory=list)
    refused: str = ""

    @property
    def processes(self) -> int:
        """How many train together."""
        return int(self.name.partition(":")[0])

    @property
    def stage(self) -> str:
        """none, a stage of ZeRO, or fsdp2."""
        return self.name.partition(":")[2]


def make_model(folder: Path, layers: int, width: int) -> None:
    """A random Llama with the tokenizer of the built-in model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(EMBER)
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 64}
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id} | sizes | heads
    torch.manual_seed(0)
    config = LlamaConfig(**settings)
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_rows(path: Path, tokens: int) -> None:
    """Conversations of about so many tokens together."""
    lines = []
    for number in range(tokens // 64):
        question, answer = f"What is number {number}? " * 4, f"It is {number}, and after it comes {number + 1}. " * 3
        lines.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    path.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines), encoding="utf-8")


def config_of(contender: Contender, options: argparse.Namespace, folder: Path) -> RunConfig:
    """What the contender trains. Raises ConfigError where it cannot."""
    spread = {"fsdp": "fsdp2"} if contender.stage == "fsdp2" else {"deepspeed": contender.stage}
    layer: dict[str, Any] = {
        "name": contender.name.replace(":", " "),
        "method": options.method,
        "model.model_name_or_path": str(folder / "model"),
        "data": {"dataset": str(folder / "rows.jsonl"), "max_length": options.length, "packing": True},
        "train": {
            "per_device_train_batch_size": options.rows,
            "gradient_accumulation_steps": 1,
            "max_steps": WARM_UP + options.steps,
            "optim": "adamw_torch",
        },
        "samples.evaluation_inputs": [],
        "verdict.enabled": False,
        "parallel": {"num_processes": contender.processes, **spread},
    }
    return build(RunConfig, merge(RunConfig, layer))


def train(contender: Contender, options: argparse.Namespace, folder: Path) -> None:
    """One run to its end; its speed, or its refusal, is added to the contender."""
    try:
        run = Workspace(folder / "work").create_run(config_of(contender, options, folder))
    except ConfigError as error:
        contender.refused = str(error)
        return
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with run.log_file.open("ab") as log:
        argv = [sys.executable, "-m", "studio.engine", "train", str(run.path)]
        code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=env)
    if code:
        status = run.read_status()
        raise SystemExit(f"{contender.name} ended with {code}: {status.error if status else run.log_file}")
    contender.speeds.append(speed_of(run))


def speed_of(run: RunDir) -> float:
    """Tokens per second of all processes together, by the median step after the warm-up."""
    events, config = run.read_events()[0], run.config()
    assert isinstance(config, RunConfig)
    counts = next(event for event in events if isinstance(event, CountsEvent))
    logs = [event for event in events if isinstance(event, LogEvent) and event.step > WARM_UP]
    return counts.tokens / counts.packs * config.effective_batch_size / median(one.step_seconds or 0 for one in logs)


def ratios(contender: Contender, other: Contender) -> list[float]:
    """Speed relative to another's in the same round."""
    return [mine / theirs for mine, theirs in zip(contender.speeds, other.speeds, strict=True)]


def middle(values: list[float]) -> str:
    """Median, least and most."""
    return f"{median(values):5.2f} ({min(values):.2f}…{max(values):.2f})"


def table(contenders: dict[str, Contender]) -> str:
    """The figures for a person."""
    lines = [f"{'processes:stage':<18} {'tokens/s':>9}  {'to ' + PLAIN:<20} {'to ' + DDP:<20}"]
    for name, one in contenders.items():
        if one.refused:
            lines.append(f"{name:<18} {'–':>9}  {one.refused}")
            continue
        told = [
            middle(ratios(one, other)) if (other := contenders.get(base)) and other.speeds else "–"
            for base in (PLAIN, DDP)
        ]
        lines.append(f"{name:<18} {median(one.speeds):9.0f}  {told[0]:<20} {told[1] if one.processes > 1 else '':<20}")
    return "\n".join(line.rstrip() for line in lines)


def report(contenders: dict[str, Contender], options: argparse.Namespace, busy: list[float]) -> dict[str, Any]:
    """The figures for a program. `load_average`: how busy the machine was before and after."""
    plain, ddp = contenders.get(PLAIN), contenders.get(DDP)
    found = []
    for one in contenders.values():
        line: dict[str, Any] = asdict(one) | {"processes": one.processes, "stage": one.stage}
        if one.speeds and plain and plain.speeds:
            line["to_one_process"] = median(ratios(one, plain))
        if one.speeds and ddp and ddp.speeds and one.processes > 1:
            line["overhead_over_ddp"] = 1 / median(ratios(one, ddp)) - 1
        found.append(line)
    return {"options": vars(options), "cores": os.cpu_count(), "load_average": busy, "contenders": found}


def main() -> None:
    """Make model and rows, let everyone train in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("full", "lora", "qlora"), default="lora")
    for name, value in {"layers": 4, "width": 256, "length": 256, "rows": 2, "steps": 8, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", nargs="+", default=[f"{count}:{stage}" for count in (1, 2) for stage in STAGES])
    parser.add_argument("--json")
    options = parser.parse_args()
    contenders = {name: Contender(name) for name in options.only}
    busy = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="crucible-scale-") as name:
        folder = Path(name)
        make_model(folder / "model", options.layers, options.width)
        make_rows(folder / "rows.jsonl", 2 * options.rows * options.length * (WARM_UP + options.steps))
        for number in range(options.rounds):
            for contender in contenders.values():
                print(f"round {number + 1} of {options.rounds}: {contender.name}", file=sys.stderr, flush=True)
                if not contender.refused:
                    train(contender, options, folder)
    busy.append(os.getloadavg()[0])
    print(table(contenders))
    print(f"{os.cpu_count()} cores, load average {busy[0]:.1f} before and {busy[1]:.1f} after")
    if options.json:
        Path(options.json).write_text(json.dumps(report(contenders, options, busy), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
