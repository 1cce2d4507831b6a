"""Several processes share each conversation (sequence parallel), for texts too long for the memory of one GPU.

DeepSpeed's Ulysses does it, by way of accelerate's `ParallelismConfig`: each of `size` processes computes one part of
every row, and attention, which needs all of a row, is computed for a part of the heads in each. So activations are
divided by `size`, parameters and the optimizer's states by what ZeRO divides among all processes. The rest is here:

* the processes of a group get the same rows, cut by the collator (DeepSpeed's own loader would deal rows of several
  lengths, and knows no epochs);
* the loss counts the tokens of all processes alike and gradients are averaged over all of them, so an update is that of
  one process with the same rows (DeepSpeed's own would average over rows, and stages 1 and 2 would add gradients up);
* packed rows and sliding windows keep their masks, which DeepSpeed drops;
* outside of the training attention is what it always is: every process can evaluate and answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from studio.engine import ranks
from studio.engine.attention import Collator
from studio.engine.failure import EngineError
from studio.events import RunError
from studio.records.batches import IGNORED, Row, Shape
from studio.sequence_heads import FIELD, heads_conflict

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from studio.config import RunConfig

Batch = dict[str, torch.Tensor]
Attention = Callable[..., Any]


class SharedCollator(Collator):
    """Rows -> the part of their batch that process `part` of `size` computes, shape (rows, longest row / size)."""

    def __init__(self, shape: Shape, part: int, size: int) -> None:
        super().__init__(shape.pad_token_id, shape.packed, shape.flat)
        self.part, self.size = part, size

    def __call__(self, rows: list[Row]) -> Batch:
        whole = with_targets(super().__call__(rows), self.size, self.shape.pad_token_id)
        length = whole["input_ids"].shape[1] // self.size
        return {name: value.narrow(1, self.part * length, length).contiguous() for name, value in whole.items()}


def with_targets(batch: Batch, size: int, pad: int) -> Batch:
    """A batch made as long as `size` divides, with the position of each token, and for each the token that follows it.

    Its labels are shifted, so that a part needs nothing of the next one. There is no attention mask: padding stands
    behind everything that is looked at.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    rows, length = ids.shape
    more = -length % size
    positions = batch.get("position_ids")
    positions = torch.arange(length + more).expand(rows, -1) if positions is None else _longer(positions, more, 0)
    targets = _longer(torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED), more, IGNORED)
    ids = _longer(ids, more, pad)
    return {"input_ids": ids, "position_ids": positions, "labels": targets, "shift_labels": targets}


def _longer(values: torch.Tensor, more: int, filler: int) -> torch.Tensor:
    return torch.nn.functional.pad(values, (0, more), value=filler)


@dataclass
class Sequences:
    """How the processes of one run share rows: groups of `size` processes, which follow each other."""

    size: int
    attention: str
    packed: bool = False
    _whole: Attention | None = None

    @property
    def part(self) -> int:
        """Which part of each row this process computes."""
        return ranks.rank() % self.size

    def collator(self, whole: Collator) -> Collator:
        """What cuts the batches of the training."""
        self.packed = whole.shape.packed
        return SharedCollator(whole.shape, self.part, self.size)

    def deal(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader of the training, made to deal the same rows to all processes of a group."""
        dealt: Any = loader.batch_sampler
        dealt.num_processes = ranks.world() // self.size
        dealt.process_index = ranks.rank() // self.size
        dealt.even_batches = False  # where they would not be, the order ends with fillers
        return loader

    def begin(self, trainer: Any) -> None:
        """Before the trainer prepares the model: the rows are shared already, attention is remembered."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self._whole = ALL_ATTENTION_FUNCTIONS[self.attention]
        trainer.accelerator.deepspeed_ulysses_dl_adapter = lambda loader, model: loader
        trainer.model_accepts_loss_kwargs = True  # it sums the loss over the tokens of all processes

    def take_over(self, trainer: Any) -> None:
        """After the trainer prepared the model. Raises EngineError if DeepSpeed does not divide gradients."""
        from accelerate import ParallelismConfig
        from deepspeed.utils import groups
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        zero: Any = getattr(trainer.model_wrapped, "optimizer", None)
        if not hasattr(zero, "sequence_parallel_size"):
            hint = "Choose stage 1, 2 or 3, or set it to 1."
            raise _refused("processes can share conversations only under DeepSpeed's ZeRO", hint)
        zero.sequence_parallel_size = 1  # gradients are averaged over all processes, like any others
        trainer.accelerator.state.parallelism_config = ParallelismConfig()
        group = groups._get_sequence_parallel_group()
        ALL_ATTENTION_FUNCTIONS[self.attention] = self._shared(trainer.model.config.get_text_config(), group)

    def _shared(self, model: Any, group: Any) -> Attention:
        """Attention over the rows of all of the group while training, and as it was otherwise."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        whole, known = self._whole, dict[int, Attention]()
        assert whole is not None
        heads, key_value_heads = _heads(model)
        make = partial(
            UlyssesSPAttentionHF,
            attn=WholeRows(whole, self.attention == "sdpa", self.packed),
            attn_head_count=heads,
            attn_head_size=getattr(model, "head_dim", None) or model.hidden_size // heads,
            kv_head_count=key_value_heads,
            num_hidden_layers=model.num_hidden_layers,
            process_group=group,
            seq_length_is_variable=True,
        )

        def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
            if not module.training:
                return whole(module, query, key, value, mask, *args, **kwargs)
            rows = query.shape[0]
            if rows not in known:  # it is made for one number of rows, and the last batch may have fewer
                known[rows] = make(batch_size=rows)
            groups = module.num_key_value_groups
            try:
                return known[rows](module, query, key, value, None, *args, **kwargs)
            finally:
                module.num_key_value_groups = groups  # changed where there are fewer key heads than processes

        return attend


@dataclass(frozen=True)
class WholeRows:
    """Attention over whole rows, with the mask their positions ask for; FlashAttention reads the positions itself."""

    attention: Attention
    masks: bool
    packed: bool

    def __call__(self, module: Any, query: Any, key: Any, value: Any, _: Any, **kwargs: Any) -> Any:
        window, mask = kwargs.get("sliding_window"), None
        if self.masks and (self.packed or (window and query.shape[2] > window)):
            mask = seen(kwargs["position_ids"], window)[:, None]
        return self.attention(module, query, key, value, mask, **kwargs)


def seen(positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Which token (second axis) looks at which (third) in rows whose examples begin at position 0."""
    length = positions.shape[1]
    example = (positions == 0).cumsum(1)
    place = torch.arange(length, device=positions.device)
    distance = place[:, None] - place[None, :]
    near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return (example[:, :, None] == example[:, None, :]) & near


def parallelism(config: RunConfig, model: Any) -> Any:
    """What `TrainingArguments.parallelism_config` gets, None where no rows are shared.

    Raises EngineError for a model whose rows cannot be shared.
    """
    size = config.parallel.sequence_parallel_size
    if size == 1:
        return None
    from accelerate.utils import DeepSpeedSequenceParallelConfig, ParallelismConfig

    attention, text = model.config._attn_implementation, model.config.get_text_config()
    problem = heads_conflict(size, *_heads(text))
    if problem:
        raise _refused(problem[0], f"{problem[1].capitalize()}.")
    if attention == "eager" or hasattr(text, "kv_lora_rank"):
        kind = "eager" if attention == "eager" else "multi-head latent attention"
        raise _refused(f"this model's attention ({kind}) cannot be divided by heads", "Set it to 1.")
    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation=attention)
    groups = ranks.world() // size
    return ParallelismConfig(sp_backend="deepspeed", sp_size=size, dp_replicate_size=groups, sp_handler=handler)


def sequences_of(parallelism: Any) -> Sequences | None:
    """How rows are shared, from what `parallelism` gave."""
    if parallelism is None:
        return None
    return Sequences(parallelism.sp_size, parallelism.sp_handler.sp_attn_implementation)


def _heads(model: Any) -> tuple[int, int]:
    heads = int(model.num_attention_heads)
    return heads, int(getattr(model, "num_key_value_heads", None) or heads)


def _refused(reason: str, hint: str) -> EngineError:
    return EngineError(RunError(kind="config", message=f"{FIELD}: {reason}.", hint=hint, field=FIELD))
