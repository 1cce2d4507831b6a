"""What would stop or spoil a run and can be known before a process is started: model, data, packages, memory, disk.

Nothing here loads torch: folders are looked into, packages are looked up, the driver is asked for the GPUs.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

from studio import hardware, trackers
from studio.availability import ATTENTION, COMPUTE, DTYPE, Machine, installed, options, usable
from studio.chains import adapter_settings, other_base
from studio.config import RunConfig
from studio.estimate import MODEL_FIELD, Advice, Plan, plan, zone
from studio.hardware import Hardware
from studio.layouts import read_layout
from studio.model_cache import cached_model, hub_folder, offline
from studio.model_files import CONFIG, Fault, faults, read_object
from studio.model_files import facts as model_facts
from studio.preflight_memory import about_division, weights_here
from studio.preflight_network import about_network
from studio.preflight_parallel import about_processes, about_zero
from studio.presets import ModelError, ModelRef, model_named, resolve_model
from studio.records.errors import DataError
from studio.records.sources import NotCounted
from studio.records.store import DatasetStore
from studio.records.template import choose_template
from studio.remote_code import NO_CODE, allowed
from studio.run_size import run_size
from studio.sequence_heads import about_heads
from studio.workspace import Workspace, slug

MIN_FREE_BYTES = 200 * 1024 * 1024
BUSY_SHARE = 0.25
"""A GPU of which other programs hold more than this is worth a word."""
_MACHINE_FOR_S = 4.0  # asking the driver takes a moment, and a form asks at every change
_BITS16, _BITS4 = 2, 0.5
_LEVELS = ("error", "warning", "info")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def preflight(config: RunConfig, workspace: Workspace, machine: Hardware | None = None) -> list[Advice]:
    """Everything that would stop or spoil the run and can be known now; errors first."""
    machine = machine or _machine(workspace.path, int(monotonic() // _MACHINE_FOR_S))
    frozen = workspace.freeze(config)
    model, found = _about_model(frozen)
    found += _about_adapter(config, frozen) + _about_choices(frozen, usable(machine))
    found += about_processes(frozen, machine, usable(machine).gpus) + about_network(frozen)
    found += [Advice("error", trackers.FIELD, it.message, it.hint) for it in trackers.lacking(config.train.report_to)]
    found += about_zero(frozen) + about_heads(frozen)
    counted = None
    if model is not None:
        found += _about_memory(frozen, model, machine)
        counted, about_data = _about_data(frozen, workspace)
        found += about_data + about_division(frozen, machine, usable(machine).gpu, counted)
    found += _about_disk(frozen, workspace, machine, counted) + _about_name(config, workspace)
    return sorted(found, key=lambda advice: _LEVELS.index(advice.level))


@lru_cache(maxsize=2)
def _machine(path: Path, _moment: int) -> Hardware:
    return hardware.detect(path)


def gigabytes(amount: float) -> str:
    """Bytes as people say them."""
    return f"{amount / 1e9:.1f} GB"


# ---- the model -------------------------------------------------------------------------------------------------------


def _about_model(config: RunConfig) -> tuple[ModelRef | None, list[Advice]]:
    """The model, unless it cannot be used at all, and what there is to say about it."""
    try:
        model = resolve_model(config.model.model_name_or_path)
    except ModelError as error:
        return None, [Advice("error", MODEL_FIELD, error.message, error.hint)]
    if not model.local:
        found = _about_download(model.ref) + _about_template(config)
        return (None if any(advice.level == "error" for advice in found) else model), found
    folder = Path(model.path_or_id)
    layout, name = read_layout(folder), Path(model.ref).name
    found = [Advice("info", MODEL_FIELD, f"{name} is {layout.sentence}")] if layout else []
    return model, found + _about_packed_weights(config, folder, name) + _about_experts(config, folder, name)


def _about_download(model_id: str) -> list[Advice]:
    """A hub id that is not on this machine, or only in part."""
    preset = model_named(model_id)
    if preset and preset.loading == "remote_code" and not allowed():
        return [Advice("error", MODEL_FIELD, f"{model_id} needs Python code of its own, which is not run", NO_CODE)]
    part = cached_model(model_id)
    lacking = next(faults(part), None) if part else None
    if offline():
        state = f"is on this machine only in part ({lacking.message})" if lacking else "is not on this machine"
        message = f"{model_id} {state}, and the hub is switched off (HF_HUB_OFFLINE)"
        return [Advice("error", MODEL_FIELD, message, "give the folder of a model, or switch the hub on")]
    size = round(preset.parameters * 1e9 * _BITS16) if preset and preset.parameters else 0
    free = hardware.disk_free_bytes(hub_folder())
    if size > free:
        message = f"downloading {model_id} takes {gigabytes(size)}, and {gigabytes(free)} are free in {hub_folder()}"
        return [Advice("error", MODEL_FIELD, message, "free some space, or name another disk with HF_HOME")]
    fix = f"the first start downloads {gigabytes(size)}" if size else "the first start downloads it"
    return [Advice("info", MODEL_FIELD, f"{model_id} is loaded from the hub", fix)]


def _about_template(config: RunConfig) -> list[Advice]:
    """The name of a chat template; with the tokenizer at hand the plan tries the template itself."""
    if not config.model.chat_template:
        return []
    try:
        choose_template({}, config.model.chat_template, config.model.model_name_or_path)
    except DataError as error:
        return [Advice("error", error.field, str(error))]
    return []


_READERS = {"gptq": "gptqmodel", "awq": "gptqmodel", "compressed-tensors": "compressed_tensors"}


def _about_packed_weights(config: RunConfig, folder: Path, name: str) -> list[Advice]:
    """Weights that were quantised by somebody before."""
    settings = read_object(folder, CONFIG)
    quantised = None if isinstance(settings, Fault) else settings.get("quantization_config")
    if not isinstance(quantised, dict):
        return []
    how = str(quantised.get("quant_method", "unknown"))[:40]
    if config.method in ("full", "qlora") and not (config.method == "qlora" and how == "bitsandbytes"):
        message = f"the weights of {name} are quantised already ({how}), and {config.method} needs them in 16 bits"
        return [Advice("error", MODEL_FIELD, message, "choose the original model, or the method lora")]
    package = _READERS.get(how, "")
    if package and not installed(package):
        message = f"{name} ({how}) needs the package {package}, which is not installed"
        return [Advice("error", MODEL_FIELD, message, f"install {package}, or choose the original model")]
    return []


def _about_experts(config: RunConfig, folder: Path, name: str) -> list[Advice]:
    """PEFT cannot drop out the input of an adapter that sits on the joint weight of all experts."""
    settings = read_object(folder, CONFIG)
    experts = 0 if isinstance(settings, Fault) else max((_whole(settings.get(key)) for key in _EXPERTS), default=0)
    everywhere = config.lora.target_modules == "all-linear"
    if experts < 2 or config.method == "full" or not config.lora.lora_dropout or not everywhere:
        return []
    message = f"{name} has {experts} experts, and their adapters cannot have dropout"
    return [Advice("error", "lora.lora_dropout", message, "set it to 0, or name the attention layers as targets")]


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _about_adapter(config: RunConfig, frozen: RunConfig) -> list[Advice]:
    """The adapter a run goes on from: there, of the same base model, and what it decides."""
    path, field = frozen.model.adapter, "model.adapter"
    if not path:
        return []
    settings = adapter_settings(path)
    if settings is None:
        fix = "choose a run that has finished, one of its checkpoints, or the folder of an adapter"
        return [Advice("error", field, f"{config.model.adapter} holds no adapter", fix)]
    base = other_base(settings, frozen.model.model_name_or_path)
    if base:
        return [Advice("error", field, f"it was trained on {base}, not on this base model", f"choose {base}")]
    if frozen.lora == config.lora:
        return []
    lora = frozen.lora
    return [Advice("info", field, f"rank {lora.r}, alpha {lora.lora_alpha} and layers are those of the adapter")]


# ---- the machine -----------------------------------------------------------------------------------------------------


def _about_choices(config: RunConfig, machine: Machine) -> list[Advice]:
    """Values that this machine cannot offer, from the table the form greys them out by."""
    found = []
    for path, reasons in options(machine).items():
        reason = reasons.get(str(_value(config, path)))
        if reason and (path != COMPUTE or config.method == "qlora"):
            found.append(Advice(reason.level, path, reason.text, reason.fix))
    flash = config.model.attn_implementation == "flash_attention_2"
    if flash and config.model.dtype == "float32" and not any(advice.field == ATTENTION for advice in found):
        message = "flash_attention_2 computes in 16 bits only, and the precision is float32"
        found.append(Advice("error", DTYPE, message, "choose auto or bfloat16"))
    if config.train.optim.startswith("paged_") and machine.gpu is None:
        found.append(Advice("info", "train.optim", "paged optimizers do not page on a CPU", "adamw_torch is faster"))
    return found


def _value(config: RunConfig, path: str) -> Any:
    found: Any = config
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _about_memory(config: RunConfig, model: ModelRef, machine: Hardware) -> list[Advice]:
    """Whether the bare weights fit, and a GPU that is idle or held by somebody else."""
    needed = _least_memory(config, model)
    here = needed * config.parallel.processes_per_machine  # without GPUs, all of them take from one memory
    if machine.gpus and not hardware.torch_has_cuda():
        message = f"the {machine.gpus[0].name} stays idle: the installed PyTorch is a build without CUDA"
        return [Advice("warning", "method", message, "run python launch.py install"), *_in_memory(here, machine)]
    gpu = usable(machine).gpu
    if gpu is None:
        return _in_memory(here, machine)
    needed = round(needed * weights_here(config))
    smaller = "choose a smaller model" if config.method == "qlora" else "choose the method qlora, or a smaller model"
    if needed > gpu.memory_bytes > 0:
        message = f"the weights alone need {gigabytes(needed)}, and {gpu.name} has {gigabytes(gpu.memory_bytes)}"
        return [Advice("error", MODEL_FIELD, message, smaller)]
    held = gpu.memory_bytes - gpu.free_bytes
    if needed > gpu.free_bytes and gpu.memory_bytes:
        free = gigabytes(gpu.free_bytes)
        message = f"the weights alone need {gigabytes(needed)}, and only {free} of {gpu.name} are free"
        return [Advice("error", MODEL_FIELD, message, "end the programs that use the GPU (nvidia-smi names them)")]
    if held > BUSY_SHARE * gpu.memory_bytes:
        message = f"other programs hold {gigabytes(held)} of {gpu.name}"
        return [Advice("warning", MODEL_FIELD, message, "end them (nvidia-smi names them): the run may need it")]
    return []


def _in_memory(needed: int, machine: Hardware) -> list[Advice]:
    if needed > machine.memory_bytes:
        message = f"the weights alone need {gigabytes(needed)}, and this machine has {gigabytes(machine.memory_bytes)}"
        return [Advice("error", MODEL_FIELD, message, "choose a smaller model")]
    if needed > machine.memory_free_bytes:
        free = gigabytes(machine.memory_free_bytes)
        message = f"the weights alone need {gigabytes(needed)}, and only {free} of memory are free"
        return [Advice("warning", MODEL_FIELD, message, "close other programs")]
    return []


def _least_memory(config: RunConfig, model: ModelRef) -> int:
    """Bytes the base weights take at least under the method; 0 when nothing is known of the model."""
    if model.local:
        known = model_facts(Path(model.path_or_id))
        parameters = known.weight_bytes / (4 if known.dtype == "float32" else _BITS16)
    else:
        preset = model_named(model.ref)
        parameters = (preset.parameters or 0) * 1e9 if preset else 0
    return round(parameters * {"qlora": _BITS4, "lora": _BITS16, "full": 4}[config.method])


def _about_disk(config: RunConfig, workspace: Workspace, machine: Hardware, counted: Plan | None) -> list[Advice]:
    free = machine.disk_free_bytes
    fix = "free some space or choose another folder with --workspace"
    if free < MIN_FREE_BYTES:
        return [Advice("error", "workspace", f"only {free // 2**20} MB are free in {workspace.path}", fix)]
    updates = counted.counts.updates if counted else None
    size = run_size(config, DatasetStore(workspace.datasets), updates)
    if size.total + MIN_FREE_BYTES <= free:
        return []
    message = (
        f"the run writes about {gigabytes(size.total)} ({size.kept} checkpoints of {gigabytes(size.checkpoint)} and "
        f"the result), and {gigabytes(free)} are free in {workspace.path}"
    )
    return [Advice("error", "workspace", message, f"keep fewer checkpoints, {fix}")]


def _about_name(config: RunConfig, workspace: Workspace) -> list[Advice]:
    """An earlier run of that name; nothing is ever overwritten, but the two are easily taken for each other."""
    name = slug(config.name, "")
    try:
        taken = bool(name) and any(path.name.partition("_")[2] == name for path in workspace.runs.iterdir())
    except OSError as error:
        message = f"{workspace.runs} cannot be read ({error.strerror})"
        return [Advice("error", "workspace", message, "choose another folder with --workspace")]
    if not os.access(workspace.runs, os.W_OK | os.X_OK):
        message = f"{workspace.runs} cannot be written"
        return [Advice("error", "workspace", message, "choose another folder with --workspace")]
    message = f"there is a run named {config.name[:80]} already; this one gets a folder of its own"
    return [Advice("info", "name", message, "give it another name to tell them apart")] if taken else []


# ---- the data --------------------------------------------------------------------------------------------------------


def _about_data(config: RunConfig, workspace: Workspace) -> tuple[Plan | None, list[Advice]]:
    try:
        found = plan(config, workspace)
    except DataError as error:
        return None, [Advice("error", error.field, str(error))]
    except ModelError as error:
        return None, [Advice("error", MODEL_FIELD, error.message, error.hint)]
    except OSError as error:
        message = f"the file cannot be read ({error.strerror})"
        return None, [Advice("error", "data.dataset", message, "check the path")]
    except NotCounted:
        message = "the dataset is large and has not been counted yet"
        return None, [Advice("info", "data.dataset", message, "the run counts it when it starts")]
    return (None, []) if found is None else (found, _about_counts(config, found))


def _about_counts(config: RunConfig, found: Plan) -> list[Advice]:
    counts, advice = found.counts, []
    if zone(counts) == "few":
        message = f"only {counts.updates} optimizer updates: too few to learn anything"
        advice.append(Advice("warning", "train.num_train_epochs", message, "raise the epochs or lower the batch size"))
    if zone(counts) == "parrot":
        message = (
            f"{counts.updates} updates on {counts.distinct} different rows: the model will repeat them whatever it "
            "is asked"
        )
        advice.append(Advice("warning", "train.num_train_epochs", message, "lower the epochs, or add different rows"))
    if counts.rows_skipped:
        message = f"{counts.rows_skipped} of {counts.rows_read} rows cannot be used"
        advice.append(Advice("warning", "data.dataset", message, "`data inspect` says which and why"))
    if counts.truncated:
        message = f"{counts.truncated} conversations are longer than {config.data.max_length} tokens and are cut"
        advice.append(Advice("warning", "data.max_length", message, "raise the maximum length to keep them whole"))
    if config.data.packing and not counts.packed:
        message = "nothing can be packed: no two conversations fit into one row"
        advice.append(Advice("info", "data.packing", message, "raise the maximum length to pack"))
    return advice + _about_validation(config, found)


def _about_validation(config: RunConfig, found: Plan) -> list[Advice]:
    """Validation rows that were asked for and are not there."""
    own = config.data.validation_dataset
    if found.counts.validation or not (own or config.data.validation_share):
        return []
    field = "data.validation_dataset" if own else "data.validation_share"
    message = "no row is left for the evaluation loss"
    if config.train.load_best_model_at_end or config.early_stopping.early_stopping_patience is not None:
        fix = "add different rows, or turn off early stopping and the best checkpoint"
        return [Advice("error", field, message, fix)]
    return [Advice("warning", field, message, "add different rows, or name a validation dataset")]
