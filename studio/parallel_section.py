"""How a training is spread over processes and machines: the fields, declared here and nowhere else.

Names are accelerate's (`num_processes` counts all machines), DeepSpeed's and `TrainingArguments`'; the environment
variables of the course notes (NPROC_PER_NODE, NNODES, NODE_RANK, ADDR, PORT) are read by `studio train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from studio.schema import Section, Ui

ZeroStage = Literal["none", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed divides among the processes, and what it keeps in main memory.

    `stage` 1: optimizer states; 2: gradients too; 3: parameters too; 0: nothing.
    """

    stage: int
    offload_optimizer: bool = False
    offload_parameters: bool = False


UNDIVIDED = Zero(0)
_STAGES: tuple[ZeroStage, ...] = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")


class ParallelSection(Section):
    """How the training is spread out."""

    num_processes: Annotated[
        int, Field(ge=1, le=8192), Ui(label="Processes (all machines)", aliases=("nproc",), advanced=True)
    ] = 1
    """How many processes train together, each with its own rows: one for each GPU. More finish sooner; the batch of
    an update grows with them. All machines counted."""
    deepspeed: Annotated[
        ZeroStage,
        Ui(
            label="DeepSpeed ZeRO",
            advanced=True,
            spellings=tuple((f"deepspeed_{name}", name) for name in _STAGES),
        ),
    ] = "none"
    """What the processes divide among them: zero1 the optimizer's states, zero2 also the gradients, zero3 also the
    parameters. Offload keeps the optimizer's states (zero3: the parameters too) in main memory, slower. One process has
    nothing to divide; there only offload saves GPU memory."""
    deepspeed_config: Annotated[str | None, Ui(label="Own DeepSpeed settings", advanced=True)] = None
    """A JSON file in DeepSpeed's own format, used in place of the choice above. Values of "auto" are filled in from
    this form. Empty: none."""
    fsdp: Annotated[Literal["none", "fsdp2"], Ui(label="FSDP", advanced=True)] = "none"
    """PyTorch's own way to divide parameters, gradients and optimizer states, an alternative to zero3 for the methods
    full and lora."""
    sequence_parallel_size: Annotated[
        int, Field(ge=1, le=64), Ui(label="Sequence parallel", aliases=("sp_size",), advanced=True)
    ] = 1
    """So many processes share each conversation, for texts too long for the memory of one GPU. Needs DeepSpeed ZeRO and
    a number of processes that it divides. 1: off."""
    num_machines: Annotated[int, Field(ge=1, le=1024), Ui(label="Machines", aliases=("nnodes",), advanced=True)] = 1
    """How many machines train together; each starts its part with its own command."""
    machine_rank: Annotated[
        int, Field(ge=0, le=1023), Ui(label="Number of this machine", aliases=("node_rank",), advanced=True)
    ] = 0
    """Machine 0 keeps the run and is the one the others connect to; the others are 1, 2 and so on."""
    main_process_ip: Annotated[
        str | None, Field(max_length=253), Ui(label="Address of machine 0", aliases=("master_addr",), advanced=True)
    ] = None
    """Name or IP address under which the other machines reach machine 0. Needed with several machines."""
    main_process_port: Annotated[
        int, Field(ge=0, le=65535), Ui(label="Port of machine 0", aliases=("master_port",), advanced=True)
    ] = 0
    """Port on machine 0 at which the machines meet, the same on all of them. 0 on one machine: a free one each time;
    on several: 29500."""
    ddp_timeout: Annotated[int, Field(ge=30, le=86_400), Ui(label="Longest wait (s)", advanced=True)] = 1800
    """How long processes wait for one that does not answer before the run ends with its name. Must be longer than the
    samples and the verdict take, for the others wait meanwhile."""

    @property
    def zero(self) -> Zero:
        """What the chosen stage divides; a file of one's own is read by `studio.deepspeed_settings`."""
        if self.deepspeed == "none":
            return UNDIVIDED
        stage, offload = int(self.deepspeed[4]), self.deepspeed.endswith("_offload")
        return Zero(stage, offload, offload and stage == 3)

    @property
    def processes_per_machine(self) -> int:
        """Processes on each machine."""
        return self.num_processes // self.num_machines

    @property
    def port(self) -> int:
        """Where machines meet; 0 for any free one."""
        return self.main_process_port or (29500 if self.num_machines > 1 else 0)
