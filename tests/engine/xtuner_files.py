"""Files as XTuner leaves them: its configuration as it is written beside a checkpoint, its .pth file, and, run as a
program in two processes, the directories DeepSpeed writes for it.

    python xtuner_files.py BASE OUT      with RANK and WORLD_SIZE in the environment
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

STAGES = (2, 3)
CONFIG = """\
pretrained_model_name_or_path = '{base}'
prompt_template = 'xtuner.utils.PROMPT_TEMPLATE.internlm2_chat'
SYSTEM = 'xtuner.utils.SYSTEM_TEMPLATE.alpaca'
evaluation_inputs = ['请给我介绍五个上海的景点']
lora = dict(
    bias='none',
    lora_alpha={alpha},
    lora_dropout=0.1,
    r={r},
    task_type='CAUSAL_LM',
    type='peft.LoraConfig')
model = dict(
    llm=dict(
        pretrained_model_name_or_path='{base}',
        quantization_config=dict(
            bnb_4bit_compute_dtype='torch.float16', load_in_4bit=True, type='transformers.BitsAndBytesConfig'),
        torch_dtype='torch.float16',
        trust_remote_code=True,
        type='transformers.AutoModelForCausalLM.from_pretrained'),
    lora=dict(
        bias='none',
        lora_alpha={alpha},
        lora_dropout=0.1,
        r={r},
        task_type='CAUSAL_LM',
        type='peft.LoraConfig'),
    type='xtuner.model.SupervisedFinetune')
train_dataloader = dict(
    batch_size=1,
    dataset=dict(
        dataset=dict(path='tatsu-lab/alpaca', type='datasets.load_dataset'),
        dataset_map_fn='xtuner.dataset.map_fns.alpaca_map_fn',
        max_length=2048,
        pack_to_max_length=True,
        template_map_fn=dict(
            template='xtuner.utils.PROMPT_TEMPLATE.internlm2_chat',
            type='xtuner.dataset.map_fns.template_map_fn_factory'),
        type='xtuner.dataset.process_hf_dataset'))
custom_hooks = [
    dict(
        evaluation_inputs=['请给我介绍五个上海的景点'],
        every_n_iters=500,
        prompt_template='xtuner.utils.PROMPT_TEMPLATE.internlm2_chat',
        system='xtuner.utils.SYSTEM_TEMPLATE.alpaca',
        type='xtuner.engine.hooks.EvaluateChatHook')
]
"""


def config_text(base: Path | str, *, r: int = 4, alpha: float = 8) -> str:
    """The configuration of a QLoRA training, with names from elsewhere as texts."""
    return CONFIG.format(base=base, r=r, alpha=alpha)


def as_xtuner(tensors: Mapping[str, torch.Tensor], prefix: str = "llm.") -> OrderedDict[str, torch.Tensor]:
    """Tensors of a PEFT file under the names they have in XTuner's model."""
    found = OrderedDict()
    for name, tensor in tensors.items():
        if "lora_magnitude_vector" in name:
            found[f"{prefix}{name}.default.weight"] = tensor
        elif "lora_embedding" in name:
            found[f"{prefix}{name}.default"] = tensor
        elif ".lora_" in name:
            found[prefix + name.replace(".weight", ".default.weight")] = tensor
        else:
            path, _, kind = name.rpartition(".")
            found[f"{prefix}{path}.modules_to_save.default.{kind}"] = tensor
    return found


def save_pth(path: Path, tensors: Mapping[str, torch.Tensor], config: str = "", **more: Any) -> Path:
    """One file with everything the runner of XTuner saves: weights, losses, the configuration, the optimizer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "meta": {"cfg": config, "seed": 42, "epoch": 1, "iter": 10, "experiment_name": "demo"},
        "state_dict": tensors,
        "message_hub": {"runtime_info": OrderedDict(iter=10)},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
        "param_schedulers": [],
    }
    torch.save(content | more, path)
    return path


def write_shards(base: Path, out: Path) -> None:
    """`out`/zero2/iter_1.pth, zero3, full3 (every weight trained), and beside each what was trained, put together."""
    from studio.engine import zero

    zero.prepare_process()
    import deepspeed
    import torch.distributed
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    for stage, method in ((2, "zero"), (3, "zero"), (3, "full")):
        torch.manual_seed(stage)
        model: Any = torch.nn.Module()
        language: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model.llm = get_peft_model(language, lora) if method == "zero" else language
        model.forward = lambda ids, llm=model.llm: llm(input_ids=ids, labels=ids, use_cache=False).loss
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=settings)
        engine.backward(engine(torch.tensor([[5, 6, 7, 8]])))
        engine.step()
        folder = out / f"{method}{stage}"
        state = {"meta": {"cfg": config_text(base), "iter": 1}, "message_hub": {}}
        engine.save_checkpoint(
            str(folder), tag="iter_1.pth", client_state=state, save_latest=False, exclude_frozen_parameters=True
        )
        with deepspeed.zero.GatheredParameters(trained, enabled=stage == 3):
            if torch.distributed.get_rank() == 0:
                names = {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}
                save_file(names, folder / "expected.safetensors")
        torch.distributed.barrier()


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    write_shards(Path(sys.argv[1]), Path(sys.argv[2]))
