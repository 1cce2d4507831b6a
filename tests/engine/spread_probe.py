"""Two real processes under DeepSpeed's stages: what each of them holds and sends in a step, in bytes, as one JSON line.

python spread_probe.py FILE: FILE holds {model: sizes of a Llama, batches, length, cases: {stage: settings}}.
Started once for each process, with torchrun's variables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sent = 0.0


def counting() -> None:
    """Count what this process sends: a ring of two sends half of what it gathers or scatters, all of what it sums."""

    def wrap(name: str, share: float) -> None:
        call = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            global sent  # noqa: PLW0603
            largest = max(map(nbytes, (*args, *kwargs.values())))
            sent += share * largest if largest > 4096 else 0  # no losses, norms and flags
            return call(*args, **kwargs)

        setattr(dist, name, counted)

    wrap("all_reduce", 1)
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "_all_gather_base", "_reduce_scatter_base"):
        wrap(name, 1 / 2)
    wrap("all_gather", 1 / 2)
    wrap("reduce_scatter", 1 / 2)


def nbytes(value: Any) -> int:
    """Bytes of a tensor or of a list of tensors; 0 for anything else."""
    if isinstance(value, list):
        return sum(map(nbytes, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def size_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, each counted once."""
    found = {one.data_ptr(): one.nbytes for one in tensors if isinstance(one, torch.Tensor) and one.numel()}
    return sum(found.values())


def model_of(job: dict[str, Any]) -> Any:
    """A small Llama in 16 bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**job["model"], use_cache=False)).to(torch.bfloat16)


def measure(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    """One update under a stage, after one that only warms up."""
    global sent  # noqa: PLW0603
    import deepspeed

    model = model_of(job)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained, lr=1e-4), config=settings
    )
    gradients = 0
    for _ in range(2):
        sent = 0.0
        for _ in range(job["batches"]):
            ids = torch.randint(0, job["model"]["vocab_size"], (1, job["length"]))
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            gradients = gradients_of(engine, optimizer, trained)
            engine.step()
    divided = settings["zero_optimization"]["stage"] == 3
    weights = [weight.ds_tensor if divided else weight.data for weight in engine.module.parameters()]
    groups = optimizer.fp32_partitioned_groups_flat if divided else optimizer.single_partition_of_fp32_groups
    states = [value for state in optimizer.optimizer.state.values() for value in state.values()]
    found = {
        "weights": sum(one.nbytes for one in weights),
        "optimizer": size_of([*groups, *states]),
        "gradients": gradients,
        "sent": sent,
    }
    engine.destroy()
    return found


def gradients_of(engine: Any, optimizer: Any, trained: list[Any]) -> int:
    """Bytes of gradients before the update."""
    if hasattr(optimizer, "grad_partitions_flat_buffer"):
        return int(optimizer.grad_partitions_flat_buffer.nbytes)
    if engine.zero_optimization_stage() == 1:
        return size_of(weight.grad for weight in trained) or sum(weight.nbytes for weight in trained)
    return size_of(one for group in optimizer.averaged_gradients.values() for one in group or ())


def main() -> None:
    """Command line."""
    counting()
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = {stage: measure(job, settings) for stage, settings in job["cases"].items()}
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write("FOUND " + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
