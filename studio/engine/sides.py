"""Base + adapter on one side, the merged model on the other: what each of them answers, for the proof of a merge.

A side that fits into memory is loaded as a chat would load it; one that does not answers with its weights left in their
files (`hollow.py`), so that a merge never needs more memory than its largest layer.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from studio.config import QuantizationSection
from studio.engine.dialogue import Turn
from studio.engine.hollow import Hollow, Unsuited
from studio.engine.journal import Journal
from studio.engine.loading import Holding, adapter_tokenizer, attach, blaming, count_parameters, load_base, quiet
from studio.engine.mergeplan import Plan
from studio.engine.model import Precision, quantization
from studio.engine.output_folder import refused
from studio.engine.questions import BUILT_IN, Trace, ask, compare
from studio.engine.questions_streamed import Reader
from studio.presets import ModelRef
from studio.prompts import texts

MOST_PROMPTS = 8
OWN_PROMPTS = 4
ROOM = 1.25  # of the weights' size: what a model needs to answer


@dataclass(frozen=True)
class How:
    """Where the sums are done and how the sides are held.

    `whole` says why the base cannot be taken apart, and is empty where it can. `streamed`: the sides do not fit into
    memory in `dtype` and answer from their files.
    """

    device: str
    dtype: torch.dtype
    whole: str
    streamed: bool


@dataclass(frozen=True)
class Comparison:
    """How a side answers what another one was asked: the largest difference between their logits, and the answers."""

    difference: float
    largest: float
    answers: list[str]
    equal: int
    same_prompts: bool

    def summary(self) -> dict[str, Any]:
        """For the report."""
        return {
            "max_logit_difference": self.difference,
            "answers_equal": self.equal,
            "prompts": len(self.answers),
        }


def choose_how(plan: Plan) -> How:
    """Look at the base and at this machine. Raises EngineError of kind config, field device, without the GPU wanted."""
    quiet()
    device = _device(plan.config.device)
    try:
        numbers = sum(parameter.numel() for parameter in Hollow(plan.base, device).model.parameters())
        whole = plan.in_one_piece
    except Unsuited as reason:
        whole = str(reason)
        with blaming("base"):
            numbers = count_parameters(plan.base)
    fits = numbers * 4 * ROOM < _free_memory(device)
    saved_as: torch.dtype = getattr(torch, plan.config.dtype)
    dtype = saved_as if whole and not fits else torch.float32
    return How(device, dtype, whole, streamed=not (fits or whole))


def _device(wanted: str) -> str:
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise refused("config", "device", "device: this machine has no GPU that can be used.", "Choose cpu or auto.")
    return "cuda" if there and wanted in ("cuda", "auto") else "cpu"


def _free_memory(device: str) -> int:
    """Bytes."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


class Side:
    """A model that answers, and how it is read."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, how: How, journal: Journal) -> None:
        self.model, self.tokenizer, self.how, self.journal = model, tokenizer, how, journal
        self._reader = Reader(model, tokenizer, how.device) if how.streamed else None

    def ask(self, prompts: list[tuple[Turn, ...]], label: str) -> list[Trace]:
        """Its likeliest answers."""
        if self._reader:
            return self._reader.ask(prompts, self.journal, label)
        return ask(self.model, self.tokenizer, prompts, self.journal, label)

    def compared(self, traces: list[Trace], label: str) -> Comparison:
        """Its answers to what another side was asked."""
        if self._reader is None:
            own = ask(self.model, self.tokenizer, [trace.turns for trace in traces], self.journal, label)
            difference, largest = compare(self.model, traces)
            given, prompts = [trace.answer_ids for trace in own], [trace.prompt_ids for trace in own]
        else:
            given, logits = self._reader.answers(traces)
            difference, largest = _apart(traces, logits)
            prompts = self._reader.prompts([trace.turns for trace in traces])
        return Comparison(
            difference,
            largest,
            [str(self.tokenizer.decode(answer, skip_special_tokens=True)) for answer in given],
            sum(trace.answer_ids == answer for trace, answer in zip(traces, given, strict=False)),
            [trace.prompt_ids for trace in traces] == prompts,
        )


def _apart(traces: list[Trace], logits: list[torch.Tensor]) -> tuple[float, float]:
    difference, largest = 0.0, 0.0
    for trace, found in zip(traces, logits, strict=True):
        gap = (found - trace.logits).abs().max().item()
        difference = max(difference, gap) if gap == gap else float("inf")  # NaN compares as nothing
        largest = max(largest, trace.logits.abs().max().item())
    return difference, largest


def probe_prompts(plan: Plan) -> list[tuple[Turn, ...]]:
    """About eight conversations: the run's own evaluation inputs first, under its system prompt, then built-in ones."""
    trained = plan.adapter.trained
    own = texts(trained.samples.evaluation_inputs)[:OWN_PROMPTS] if trained else []
    asked = list(dict.fromkeys([*own, *BUILT_IN]))[:MOST_PROMPTS]
    system = (Turn("system", trained.data.system),) if trained and trained.data.system else ()
    return [(*system, Turn("user", text)) for text in asked]


def before(plan: Plan, how: How, journal: Journal) -> tuple[list[Trace], dict[str, Any]]:
    """What base + adapter answers, in the base that is merged into; and, of a 4-bit run, what either base changes.

    The second is {"original": …, "dequantized": …}: each compared to what was trained, the packed base + adapter.
    """
    prompts = probe_prompts(plan)
    if not plan.trained_in_4_bits:
        with base_and_adapters(plan, how, 16, journal) as side:
            return side.ask(prompts, "base + adapter"), {}
    with base_and_adapters(plan, how, 4, journal) as side:
        trained = side.ask(prompts, "4-bit base + adapter")
        if not how.streamed:  # streamed, each layer is unpacked where it is: the same model
            side.model = unpack(plan, side.model, how)
        unpacked = side.compared(trained, "unpacked base + adapter")
    with base_and_adapters(plan, how, 16, journal) as side:
        plain = side.compared(trained, "original base + adapter")
        merged_into_plain = plan.config.merge_base == "original"
        traces = side.ask(prompts, "base + adapter") if merged_into_plain else trained
    return traces, {"original": plain.summary(), "dequantized": unpacked.summary()}


@contextlib.contextmanager
def base_and_adapters(plan: Plan, how: How, bits: int, journal: Journal) -> Iterator[Side]:
    """The base with the adapters on it, not merged. `bits`: 4 as in the training, or 16 for the original weights."""
    tokenizer = adapter_tokenizer(plan.base, plan.adapter.folder)
    with contextlib.ExitStack() as stack:
        stack.callback(gc.collect)
        if how.streamed:
            hollow = Hollow(plan.base, how.device, packing(plan) if bits == 4 else None)
            model = with_adapters(plan, hollow.model, hollow=True)
            stack.enter_context(hollow.breathing(model))
        else:
            holding = Holding(bits, how.dtype, _section(plan))
            model = with_adapters(plan, load_base(plan.base, holding, device=how.device))
        yield Side(model, tokenizer, how, journal)


@contextlib.contextmanager
def saved_model(plan: Plan, how: How, tokenizer: PreTrainedTokenizerBase, journal: Journal) -> Iterator[Side]:
    """What was merged, read back from its folder."""
    ref = ModelRef(str(plan.work), str(plan.work), local=True)
    with contextlib.ExitStack() as stack:
        if how.streamed:
            hollow = Hollow(ref, how.device, field="out")
            model = hollow.model
            stack.enter_context(hollow.breathing(model))
        else:
            model = load_base(ref, Holding(16, how.dtype), "out", device=how.device)
        yield Side(model, tokenizer, how, journal)


def with_adapters(plan: Plan, model: Any, *, hollow: bool = False) -> Any:
    """Put the adapters on their base, each with its weight, all of them active.

    Raises EngineError when one of them does not fit.
    """
    from peft.tuners.lora import LoraLayer

    named = {f"merging_{number}": one for number, one in enumerate(plan.adapters)}
    wrapped: Any = attach(model, {name: one.files for name, one in named.items()}, hollow=hollow)
    if len(named) > 1:
        wrapped.base_model.set_adapter(list(named))
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            for name, one in named.items():
                if name in layer.scaling:
                    layer.scaling[name] *= one.weight
    return wrapped.eval()


def _section(plan: Plan) -> QuantizationSection:
    """4 bits as in the training, computed in the format of everything else here."""
    section = plan.adapter.trained.quantization if plan.adapter.trained else QuantizationSection()
    return section.model_copy(update={"bnb_4bit_compute_dtype": "auto"})


def packing(plan: Plan) -> BitsAndBytesConfig:
    """How the base was packed in the training."""
    return quantization(_section(plan), Precision("cpu", torch.float32))


def unpack(plan: Plan, model: Any, how: How) -> Any:
    """The same model with its 4-bit layers written out, the adapters on it again."""
    plain = model.unload()
    plain = plain.dequantize(dtype=how.dtype)
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    return with_adapters(plan, plain)
