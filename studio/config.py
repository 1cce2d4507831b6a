"""The only place where a hyper-parameter is declared.

Form, YAML, command line, validation, help texts and the docs table are derived from these fields. Names are those of
Hugging Face `TrainingArguments`, PEFT `LoraConfig` and `BitsAndBytesConfig`, so values pass through unmapped; the
course notes' (XTuner's) names are aliases on the field. A preset holds only what differs from the defaults here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from studio.schema import Section, Ui

Method = Literal["qlora", "lora", "full"]
ADAPTER_METHODS = ("qlora", "lora")
_LORA = ("method", ADAPTER_METHODS)
_QLORA = ("method", ("qlora",))

Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_8bit",
    "adafactor",
    "sgd",
]
Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]


class ModelSection(Section):
    """Which base model is trained and how it is loaded."""

    model_name_or_path: Annotated[
        str,
        Field(min_length=1, max_length=1000),
        Ui(label="Base model", aliases=("pretrained_model_name_or_path", "model_path")),
    ]
    """A built-in model (crucible/ember), a folder with a model in Hugging Face format, or a hub id such as
    Qwen/Qwen2.5-0.5B-Instruct."""
    chat_template: Annotated[
        str | None,
        Field(max_length=20000),
        Ui(label="Chat template", aliases=("prompt_template",), advanced=True, multiline=True),
    ] = None
    """Jinja template that turns messages into text. Empty: the model's own, which is nearly always right."""
    attn_implementation: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2"], Ui(label="Attention", advanced=True)
    ] = "auto"
    """How attention is computed. auto picks the fastest kernel that works on this machine."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Ui(label="Precision", aliases=("torch_dtype",), advanced=True),
    ] = "auto"
    """Number format for the computation. auto: bfloat16 where the hardware has it, else float32."""


class QuantizationSection(Section):
    """How QLoRA packs the frozen base weights into 4 bits (names of transformers' BitsAndBytesConfig)."""

    bnb_4bit_quant_type: Annotated[Literal["nf4", "fp4"], Ui(label="4-bit type", advanced=True, when=_QLORA)] = "nf4"
    """Number format of the packed weights. nf4 fits normally distributed weights and is the usual choice."""
    bnb_4bit_use_double_quant: Annotated[bool, Ui(label="Double quantisation", advanced=True, when=_QLORA)] = True
    """Also packs the scaling factors: saves about 0.4 bit per weight at no visible cost."""
    bnb_4bit_compute_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Ui(label="4-bit compute type", advanced=True, when=_QLORA)
    ] = "auto"
    """Number format the weights are unpacked to for each computation. auto follows the precision above."""


class LoraSection(Section):
    """The small trainable matrices beside the frozen weights (names of PEFT's LoraConfig)."""

    r: Annotated[int, Field(ge=1, le=1024), Ui(label="LoRA rank", aliases=("lora_r",), advanced=True, when=_LORA)] = 16
    """Width of the LoRA matrices. Higher learns more and takes more memory; 8 to 64 is usual."""
    lora_alpha: Annotated[int, Field(ge=1, le=4096), Ui(label="LoRA alpha", advanced=True, when=_LORA)] = 32
    """Strength of the adapter: its output is scaled by alpha / rank. Twice the rank is a good start."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1), Ui(label="LoRA dropout", advanced=True, when=_LORA)] = 0.05
    """Share of adapter inputs switched off at random in training; a little prevents memorising."""
    target_modules: Annotated[str | list[str], Ui(label="LoRA target modules", advanced=True, when=_LORA)] = (
        "all-linear"
    )
    """Which layers get an adapter. all-linear is what QLoRA uses; or a list of layer names."""
    use_rslora: Annotated[bool, Ui(label="Rank-stabilised LoRA", advanced=True, when=_LORA)] = False
    """Scales by alpha / sqrt(rank) instead: steadier at ranks above 64."""
    use_dora: Annotated[bool, Ui(label="DoRA", advanced=True, when=_LORA)] = False
    """Learns size and direction of weights apart: a little better, noticeably slower."""


class DataSection(Section):
    """What the model is trained on."""

    dataset: Annotated[
        str, Field(min_length=1, max_length=1000), Ui(label="Dataset", aliases=("data_path", "alpaca_en_path"))
    ]
    """A dataset saved in the Data tab, or the path of a .json or .jsonl file."""
    system: Annotated[
        str | None,
        Field(max_length=20000),
        Ui(label="System prompt", aliases=("SYSTEM",), advanced=True, multiline=True),
    ] = None
    """Put before every conversation that has no system prompt of its own; samples and chat use it too."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000), Ui(label="Maximum length (tokens)")] = 2048
    """Longest conversation in tokens; what is longer is cut at the end. Memory grows with it."""
    packing: Annotated[bool | None, Ui(label="Packing", aliases=("pack_to_max_length",), advanced=True)] = None
    """Joins short conversations into full rows: faster on big sets, too few updates on small ones.
    Empty: on from 2,000 conversations."""
    max_samples: Annotated[int | None, Field(ge=1), Ui(label="Use at most (rows)", advanced=True)] = None
    """Train on the first rows only, for a quick trial. Empty: all rows."""


class TrainSection(Section):
    """The optimisation (names and meanings of transformers' TrainingArguments)."""

    learning_rate: Annotated[float, Field(gt=0, lt=1), Ui(label="Learning rate", aliases=("lr",))] = 2e-4
    """Size of each optimizer step. Too low learns nothing, too high forgets everything; LoRA likes 1e-4 to 3e-4,
    full training 1e-5, the tiny built-in model 3e-3."""
    num_train_epochs: Annotated[float, Field(gt=0, le=10000), Ui(label="Epochs", aliases=("max_epochs",))] = 3.0
    """How often the whole dataset is gone through."""
    per_device_train_batch_size: Annotated[
        int, Field(ge=1, le=4096), Ui(label="Batch size", aliases=("batch_size",))
    ] = 4
    """Conversations computed at once on one device. Halve it when memory runs out."""
    gradient_accumulation_steps: Annotated[
        int, Field(ge=1, le=4096), Ui(label="Gradient accumulation", aliases=("accumulative_counts",))
    ] = 4
    """Batches added up before one update. Batch size x this x devices = effective batch size."""
    max_steps: Annotated[int, Field(ge=-1), Ui(label="Stop after (steps)", advanced=True)] = -1
    """End after this many optimizer updates, whatever the epochs say. -1: the epochs decide."""
    optim: Annotated[Optimizer, Ui(label="Optimizer", aliases=("optim_type", "optimizer"), advanced=True)] = (
        "adamw_torch"
    )
    """The update rule. The 8-bit and paged ones save GPU memory."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1), Ui(label="Adam beta 1", aliases=("betas.0",), advanced=True)] = 0.9
    """Memory of the running mean of gradients."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1), Ui(label="Adam beta 2", aliases=("betas.1",), advanced=True)] = (
        0.999
    )
    """Memory of the running mean of squared gradients."""
    weight_decay: Annotated[float, Field(ge=0, le=1), Ui(label="Weight decay", advanced=True)] = 0.0
    """Pulls weights towards zero at each step; 0 to 0.1."""
    max_grad_norm: Annotated[
        float, Field(ge=0, le=1000), Ui(label="Gradient clipping", aliases=("max_norm",), advanced=True)
    ] = 1.0
    """Gradients longer than this are shortened, so one odd batch cannot wreck the model. 0: no clipping."""
    lr_scheduler_type: Annotated[Scheduler, Ui(label="Learning-rate schedule", advanced=True)] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: Annotated[float, Field(ge=0), Ui(label="Warm-up", aliases=("warmup_ratio",), advanced=True)] = 0.03
    """The learning rate rises from zero first: below 1 a share of the training, else a number of steps."""
    logging_steps: Annotated[int, Field(ge=1), Ui(label="Log every (steps)", advanced=True)] = 1
    """How often a point is added to the curves."""
    save_steps: Annotated[int, Field(ge=1), Ui(label="Save every (steps)", advanced=True)] = 500
    """How often a checkpoint is written from which the run can be resumed."""
    save_total_limit: Annotated[int, Field(ge=1, le=1000), Ui(label="Checkpoints to keep", advanced=True)] = 2
    """Older checkpoints are deleted."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Ui(label="Seed", advanced=True)] = 42
    """Same seed, same data, same machine: same run."""
    gradient_checkpointing: Annotated[bool, Ui(label="Gradient checkpointing", advanced=True)] = False
    """Recomputes instead of storing: about a third slower, much less memory."""
    neftune_noise_alpha: Annotated[float | None, Field(ge=0, le=100), Ui(label="NEFTune noise", advanced=True)] = None
    """Adds noise to the embeddings in training; 5 helps on small chat sets. Empty: off."""
    dataloader_num_workers: Annotated[int, Field(ge=0, le=64), Ui(label="Data workers", advanced=True)] = 0
    """Processes that prepare batches; 0 is right for text."""


class SamplesSection(Section):
    """What the model is asked while it trains, so that you can watch it learn."""

    evaluation_inputs: Annotated[
        list[Annotated[str, Field(max_length=20000)]],
        Field(max_length=50),
        Ui(label="Evaluation inputs", multiline=True),
    ] = ["Who are you?", "你是谁？"]
    """Questions the model answers before, during and after the training; one per line."""
    evaluation_freq: Annotated[int, Field(ge=1), Ui(label="Ask every (steps)")] = 50
    """The evaluation inputs are answered every so many optimizer updates."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096), Ui(label="Longest answer (tokens)", advanced=True)] = 64
    """An answer is cut after this many tokens."""


class VerdictSection(Section):
    """The check at the end: did it learn, did it leak, did it forget?"""

    enabled: Annotated[bool, Ui(label="Verdict at the end", advanced=True)] = True
    """Asks held-out, unrelated and general questions before and after the training and compares."""
    max_probes: Annotated[int, Field(ge=1, le=1000), Ui(label="Questions per check", advanced=True)] = 100
    """At most so many questions of each kind; fewer is faster."""


class RunConfig(Section):
    """One training run, complete."""

    kind: Annotated[Literal["train"], Ui(label="Kind", advanced=True)] = "train"
    """What this configuration describes."""
    schema_version: Annotated[Literal[1], Ui(label="Format version", advanced=True)] = 1
    """Version of this file format."""
    name: Annotated[str, Field(max_length=120), Ui(label="Run name", aliases=("work_dir",))] = ""
    """A name to find the run again. Empty: built from model, method and dataset."""
    method: Annotated[Method, Ui(label="Method")] = "qlora"
    """qlora: 4-bit base + small adapter, least memory. lora: 16-bit base + adapter. full: every weight, most memory."""
    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    train: TrainSection = TrainSection()
    samples: SamplesSection = SamplesSection()
    verdict: VerdictSection = VerdictSection()

    @model_validator(mode="after")
    def check_targets_named(self) -> RunConfig:
        """An adapter needs at least one layer to sit beside."""
        if not self.lora.target_modules:
            raise ValueError("lora.target_modules must name at least one layer, or all-linear")
        return self

    @property
    def effective_batch_size(self) -> int:
        """Conversations per optimizer update on one device."""
        return self.train.per_device_train_batch_size * self.train.gradient_accumulation_steps


class MergeConfig(Section):
    """One merge of an adapter into its base model, complete."""

    kind: Annotated[Literal["merge"], Ui(label="Kind")] = "merge"
    """What this configuration describes."""
    schema_version: Annotated[Literal[1], Ui(label="Format version")] = 1
    """Version of this file format."""
    name: Annotated[str, Field(max_length=120), Ui(label="Name")] = ""
    """A name to find the merge again."""
    base: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Base model")]
    """Built-in model, folder or hub id the adapter was trained on."""
    adapter: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Adapter")]
    """Folder of the adapter (a run's adapter/ or a checkpoint)."""
    out: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Output folder")]
    """Where the merged model is written; must not exist yet."""
    merge_base: Annotated[Literal["original", "dequantized"], Ui(label="Merge into")] = "original"
    """original: the 16-bit weights (the convention). dequantized: the 4-bit weights the run really saw, unpacked."""
    max_shard_size: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(KB|MB|GB)$"), Ui(label="Largest file")] = "2GB"
    """Weights are split into files of at most this size."""
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], Ui(label="Precision")] = "bfloat16"
    """Number format of the merged weights."""


AnyConfig = RunConfig | MergeConfig
