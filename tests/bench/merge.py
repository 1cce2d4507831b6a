"""How much memory and time a merge takes: a random model of a well-known shape, a random adapter on all its layers.

    python tests/bench/merge.py [SHAPE] [--max-shard-size 2GB] [--folder DIR] [--merge-base dequantized]
                               [--dtype float32]

SHAPE: 7b (Llama-2-7B, the default; needs 30 GB of disk), 1b, small. The bound to hold: the peak stays under 1.5 times
the largest file plus the adapter. The peak is that of the whole process, libraries included, as the kernel counts it.
No test: timings are for side-by-side reading only. `peak_of_merge` is used by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "engine")]

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "small": (1024, 2816, 12, 16, 16, 8000),
    "test": (768, 2048, 8, 12, 12, 4000),
    "tiny": (64, 128, 2, 4, 4, 300),
}


def make_base(folder: Path, shape: str) -> Path:
    """A Llama of that shape in bfloat16, written without ever being in memory."""
    import torch
    from tiny import byte_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    from studio.engine.shards import Shards

    tokenizer = byte_tokenizer()
    hidden, inner, layers, heads, key_value, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value,
        vocab_size=vocabulary,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
        dtype=torch.bfloat16,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shards = Shards(folder, model.state_dict(), 2 * 10**9)
    torch.manual_seed(0)
    noise = torch.randn(2**22).bfloat16() * 0.02
    for name, like in model.state_dict().items():
        if like.dim() == 1:
            shards.write(name, torch.ones(like.shape, dtype=torch.bfloat16))
            continue
        turned = noise.roll(hash(name) % 4096)
        shards.write(name, turned.repeat(-(-like.numel() // turned.numel()))[: like.numel()].view(like.shape))
    shards.finish()
    return folder


def make_adapter(base: Path, folder: Path, rank: int = 16) -> Path:
    """A random LoRA adapter on every linear layer but the last."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    from studio.engine.layouts import Weights

    folder.mkdir(parents=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=targets).save_pretrained(folder)
    torch.manual_seed(1)
    tensors = {}
    for name, shape in Weights(base).shapes.items():
        if name.split(".")[-2] in targets:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, shape[1]) / shape[1] ** 0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(shape[0], rank) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def memory() -> dict[str, int]:
    """This process's memory in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


def peak_of_merge(settings: dict[str, Any], workspace: Path) -> dict[str, Any]:
    """Merge in this process, streamed; returns bytes, seconds and the proof. Linux only."""
    import studio.engine.merged_weights
    import studio.engine.proof  # noqa: F401 - what is imported before does not count as memory of the merge
    from studio.config import MergeConfig
    from studio.engine import merge, sides
    from studio.schema import build
    from studio.workspace import Workspace

    sides._free_memory = lambda device: 0  # whatever this machine has: the sides answer from their files
    run = Workspace(workspace).create_run(build(MergeConfig, settings))
    before, started = memory()["VmRSS"], time.monotonic()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM counts from here
    code = merge.main(str(run.path))
    peak = memory()["VmHWM"]
    report = run.read_report() or {}
    files = list(Path(report.get("out", settings["out"])).glob("*.safetensors"))  # an unproven one has another name
    sizes = [file.stat().st_size for file in files]
    return {
        "code": code,
        "error": (run.read_status() or run).error.message if code else "",  # type: ignore[union-attr]
        "seconds": round(time.monotonic() - started, 1),
        "before": before,
        "peak": peak,
        "whole": sum(sizes),
        "largest_file": max(sizes, default=0),
        "adapter": (Path(settings["adapter"]) / "adapter_model.safetensors").stat().st_size,
        "phases": list(_phases(run)),
        "bases": report.get("bases"),
        "proof": {name: value for name, value in report.get("proof", {}).items() if name != "rows"},
        "rows": report.get("proof", {}).get("rows"),
    }


def _phases(run: Any) -> Iterator[str]:
    events = list(run.read_events()[0])
    for event in events:
        if event.type in ("phase", "finished"):
            yield f"{event.t - events[0].t:.0f} s {getattr(event, 'name', 'end')}"


def main() -> None:
    """Make what is not there yet, merge, say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", nargs="?", default="7b", choices=sorted(SHAPES))
    parser.add_argument("--max-shard-size", default="2GB")
    parser.add_argument("--merge-base", default="original")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--folder", type=Path, default=None, help="where base and adapter are kept for the next time")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = arguments.folder or Path(tempfile.mkdtemp())
    base, adapter = folder / arguments.shape, folder / f"{arguments.shape}-adapter"
    for path, make in (
        (base, lambda: make_base(base, arguments.shape)),
        (adapter, lambda: make_adapter(base, adapter)),
    ):
        if not path.is_dir():
            make()
    out = folder / "merged"
    settings = {"base": str(base), "adapter": str(adapter), "out": str(out), "merge_base": arguments.merge_base}
    settings |= {"dtype": arguments.dtype}
    try:
        found = peak_of_merge(settings | {"max_shard_size": arguments.max_shard_size}, folder / "workspace")
        bound = 1.5 * found["largest_file"] + found["adapter"]
        found |= {"bound": bound, "held": found["peak"] < bound, "growth": found["peak"] - found["before"]}
        print(json.dumps(found, ensure_ascii=False, indent=1))
    finally:
        for made in folder.glob(f"{out.name}*"):  # and what did not pass the proof
            shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(folder if arguments.folder is None else folder / "workspace", ignore_errors=True)


if __name__ == "__main__":
    main()
