"""The memory and the arithmetic of one training step, counted on tensors that hold nothing.

python -m studio.engine meter CONFIG [--target cuda|cpu] [--length N] [--no-mask]

The step is the run's own: transformers' model code, the engine's adapter, the engine's trainer. No weights are read and
no GPU is needed. Prints one JSON object, the fields of `studio.footprint.Measurement`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from studio.config import RunConfig
from studio.engine.failure import explain, model_failure
from studio.engine.quick_import import quickly
from studio.events import ExitCode
from studio.footprint import Measurement
from studio.layouts import read_layout
from studio.model_shape import shape_of
from studio.presets import ModelRef, resolve_model
from studio.records.order import Indices
from studio.schema import ConfigError, FieldError, build, parse_yaml

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from studio.engine.counter import Tally, Target
    from studio.engine.model import Loaded, Precision

MEASURED_STEPS = 1
TOKEN = 5  # any token: no value is ever looked at


@dataclass(frozen=True)
class Job:
    """What is counted: `length` tokens in each row; `masked` if rows are padded or packed."""

    config: RunConfig
    ref: ModelRef
    target: Target
    length: int
    masked: bool


def main(argv: list[str]) -> int:
    """Count, print, and return the exit code."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is ever downloaded to be counted
    try:
        job = _read(argv)
        _quiet()
        with quickly():
            import_module("studio.engine.trainer")  # and all that it needs
        print(json.dumps(asdict(measure(job, base_config(job)))))  # noqa: T201 - this is a command
    except Exception as error:
        found, code = explain(error)
        print(f"{found.message} {found.hint}".strip(), file=sys.stderr)  # noqa: T201
        return int(code)
    return int(ExitCode.FINISHED)


def _read(argv: list[str]) -> Job:
    parser = argparse.ArgumentParser(prog="python -m studio.engine meter")
    parser.add_argument("config", type=Path)
    parser.add_argument("--target", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--length", type=int, default=0)
    parser.add_argument("--no-mask", action="store_true")
    given = parser.parse_args(argv)
    try:
        config = build(RunConfig, parse_yaml(given.config.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError([FieldError("config", f"{given.config} cannot be read: {error.strerror}")]) from None
    ref = resolve_model(config.model.model_name_or_path)
    return Job(config, ref, given.target, given.length or config.data.max_length, not given.no_mask)


def _quiet() -> None:
    """Only the result is printed; nothing slow is imported that a step does not need."""
    sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    from transformers.utils import logging as messages

    messages.set_verbosity_error()  # type: ignore[no-untyped-call]


def base_config(job: Job) -> PretrainedConfig:
    """The architecture: config.json of a folder or of the hub's cache, else what the model preset says of its shape."""
    from transformers import AutoConfig

    known: Any = AutoConfig
    original = read_layout(Path(job.ref.path_or_id)) if job.ref.local else None
    if original is not None:
        converted = original.converted_config()
        return known.for_model(converted.pop("model_type"), **converted)  # type: ignore[no-any-return]
    try:
        return known.from_pretrained(job.ref.path_or_id, local_files_only=True)  # type: ignore[no-any-return]
    except OSError:
        shape = shape_of(job.config)
        if shape is None:
            raise model_failure(
                f"model.model_name_or_path: the shape of {job.ref.ref} is not known on this machine.",
                "Download the model, or give a folder that holds it.",
            ) from None
        return known.for_model(shape.model_type, **shape.to_config())  # type: ignore[no-any-return]


def measure(job: Job, base: PretrainedConfig) -> Measurement:
    """Count one optimizer update of `job` on a model of architecture `base`."""
    from studio.engine.counter import counting

    model = _empty_model(job, base)
    vocabulary = base.get_text_config().vocab_size
    with counting(job.target, vocabulary) as tally, tempfile.TemporaryDirectory() as output, _masks(job.masked):
        loaded = _loaded(job, model)
        trainer = _trainer(job, loaded, Path(output))
        gc.collect()
        static, prime = tally.live, _Prime(tally)
        trainer.add_callback(prime.callback(accumulates=job.config.train.gradient_accumulation_steps > 1))
        trainer.train()
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    return Measurement(
        peak_bytes=tally.peak,
        static_bytes=static,
        optimizer_bytes=prime.states,
        gradient_bytes=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        trainable=sum(parameter.numel() for parameter in trained),
        flops=tally.flops,
        calls=tally.calls,
        rows=job.config.train.per_device_train_batch_size,
        length=job.length,
        target=job.target,
    )


def _precision(job: Job) -> Precision:
    """What the engine would choose on the target. The device is always the CPU: fake tensors know no other here."""
    import torch

    from studio.engine.model import Precision, choose_precision

    wanted = job.config.model.dtype
    if job.target == "cpu":
        return choose_precision(wanted, job.ref)
    # float16 and bfloat16 take the same room, and only the latter is known to the CPU's autocast
    return Precision("cpu", torch.float32 if wanted == "float32" else torch.bfloat16)


def _empty_model(job: Job, base: PretrainedConfig) -> Any:
    """The model with its layers as the engine would load them, without any memory."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    from studio.engine.model import quantization

    kind: Any = AutoModelForCausalLM
    attention = "eager" if job.config.model.attn_implementation == "eager" else "sdpa"
    precision = _precision(job)
    dtype = torch.float32 if job.config.method == "full" else precision.dtype
    with torch.device("meta"):
        try:
            model = kind.from_config(copy.deepcopy(base), dtype=dtype, attn_implementation=attention)
        except ValueError:  # an architecture without fused attention
            model = kind.from_config(base, dtype=dtype)
    if job.config.method == "qlora":
        quantizer: Any = AutoHfQuantizer.from_config(quantization(job.config.quantization, precision))
        quantizer.preprocess_model(model, device_map={"": "cpu"})
        model.hf_quantizer, model.is_loaded_in_4bit, model.is_quantized = quantizer, True, True
    return model


def _loaded(job: Job, model: Any) -> Loaded:
    """The model as `studio.engine.model.load` returns it, its tensors fake."""
    import torch

    from studio.engine.model import Loaded, add_adapter, keep_weights_unpacked

    precision = _precision(job)
    for module in model.modules():
        _fill(module, precision.dtype)
    model.tie_weights()
    keep_weights_unpacked(model)
    if job.config.method != "full":
        model = add_adapter(model, job.config.lora, job.config.train.seed)
    return Loaded(job.ref, model, any_tokenizer(), precision, torch.float32)


def _fill(module: Any, dtype: Any) -> None:
    """Fake tensors in place of empty ones; a 4-bit layer gets its packed weight and its scaling factors."""
    import torch
    from bitsandbytes.nn.modules import Linear4bit

    if isinstance(module, Linear4bit):
        module.weight = _packed(module, dtype)
    for store in (module._parameters, module._buffers):
        for name, old in store.items():
            if old is None or old.device.type != "meta":
                continue
            new = torch.empty(old.shape, dtype=old.dtype)
            wanted = isinstance(old, torch.nn.Parameter)
            store[name] = torch.nn.Parameter(new, requires_grad=old.requires_grad) if wanted else new


def _packed(layer: Any, dtype: Any) -> Any:
    import torch
    from bitsandbytes import functional

    old = layer.weight
    full = torch.empty(layer.out_features, layer.in_features, dtype=dtype)
    packed, state = functional.quantize_4bit(
        full, blocksize=old.blocksize, compress_statistics=old.compress_statistics, quant_type=old.quant_type
    )
    weight: Any = torch.nn.Parameter(packed, requires_grad=False)  # a Params4bit cannot be fake
    weight.quant_state, weight.bnb_quantized = state, True
    for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage"):
        setattr(weight, name, getattr(old, name))
    layer.quant_state = state
    return weight


def any_tokenizer() -> PreTrainedTokenizerBase:
    """The trainer wants one; nothing is tokenised."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=backend, pad_token="<pad>", eos_token="<pad>")  # type: ignore[no-any-return]


class SameRows:
    """Rows of one length, as many as a step takes."""

    def __init__(self, count: int, length: int) -> None:
        self.count = count
        self.row = {"input_ids": [TOKEN] * length, "labels": [TOKEN] * length, "seq_lengths": [length]}

    def __len__(self) -> int:
        return self.count

    @property
    def sizes(self) -> Indices:
        """Tokens of each row."""
        return np.full(self.count, len(self.row["input_ids"]))

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        return self.row


def _trainer(job: Job, loaded: Loaded, output: Path) -> Any:
    from studio.engine.attention import Collator
    from studio.engine.trainer import TrainingData, build_trainer, training_arguments

    arguments = training_arguments(job.config, output, loaded, validate=False)
    arguments.max_steps, arguments.gradient_accumulation_steps = MEASURED_STEPS, 1
    arguments.save_strategy = arguments.logging_strategy = "no"
    arguments.dataloader_num_workers = 0
    rows: Any = SameRows(job.config.train.per_device_train_batch_size, job.length)
    data = TrainingData(rows, SameRows(0, 1), Collator(0))  # type: ignore[arg-type]
    return build_trainer(arguments, loaded, data, [])


class _Prime:
    """Makes the optimizer's states before the step that is counted, as every step but the first finds them."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.states = tally, 0

    def callback(self, *, accumulates: bool) -> Any:
        """A TrainerCallback; with accumulation, the gradients of earlier batches are there as well."""
        import torch
        from transformers import TrainerCallback

        prime = self

        class Callback(TrainerCallback):
            def on_step_begin(self, *_: Any, **given: Any) -> None:
                before, optimizer = prime.tally.live, given["optimizer"]
                trained = [p for group in optimizer.param_groups for p in group["params"]]
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
                optimizer.step()
                if not accumulates:
                    optimizer.zero_grad()
                gc.collect()
                gradients = sum(p.numel() * p.element_size() for p in trained) if accumulates else 0
                prime.states = prime.tally.live - before - gradients
                prime.tally.restart()

        return Callback()


@contextlib.contextmanager
def _masks(masked: bool) -> Iterator[None]:
    """Fake values cannot say whether a row is padded or packed: `masked` does."""
    from unittest.mock import patch

    with patch("transformers.masking_utils.is_tracing", lambda *_: masked):
        yield
