"""The sections of a run's configuration: the only place where a hyper-parameter is declared.

Form, YAML, command line, validation, help texts and the docs table are derived from these fields. Names are those of
Hugging Face `TrainingArguments`, PEFT `LoraConfig` and `BitsAndBytesConfig`, so values pass through unmapped; the
course notes' (XTuner's) names are aliases on the field. A preset holds only what differs from the defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from studio.optimizers import (
    OPTIMIZER_SPELLINGS,
    SCHEDULER_SPELLINGS,
    Optimizer,
    Scheduler,
    read_settings,
)
from studio.prompts import Prompt, as_line, messages_of, read_prompt
from studio.schema import Section, Ui

Method = Literal["qlora", "lora", "full"]
ADAPTER_METHODS = ("qlora", "lora")
_LORA = ("method", ADAPTER_METHODS)
_QLORA = ("method", ("qlora",))

TrackerName = Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"]
Init = Literal["default", "gaussian", "pissa", "pissa_niter_16", "olora"]
CHANGES_BASE: tuple[Init, ...] = ("pissa", "pissa_niter_16", "olora")
"""Ways to begin an adapter that move a part of the base weights into it."""


class ModelSection(Section):
    """Which base model is trained and how it is loaded."""

    model_name_or_path: Annotated[
        str,
        Field(min_length=1, max_length=1000),
        Ui(label="Base model", aliases=("pretrained_model_name_or_path", "model_path")),
    ]
    """A built-in model (crucible/ember), a folder with a model in Hugging Face format, or a hub id such as
    Qwen/Qwen2.5-0.5B-Instruct; or an earlier run that trained every weight, to go on from its model."""
    adapter: Annotated[
        str | None,
        Field(max_length=1000),
        Ui(label="Continue from", aliases=("adapter_name_or_path",), advanced=True, when=_LORA),
    ] = None
    """An adapter to go on training: an earlier run (its id, or last), the folder of an adapter, or a checkpoint. Rank,
    alpha and layers are then those of that adapter, and the base model must be the one it was trained on.
    Empty: a new adapter."""
    chat_template: Annotated[
        str | None,
        Field(max_length=20000),
        Ui(label="Chat template", aliases=("prompt_template",), advanced=True, multiline=True),
    ] = None
    """What turns messages into text: the name of a chat template, or a Jinja text. Empty: the model's own, which is
    nearly always right."""
    attn_implementation: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2"], Ui(label="Attention", advanced=True)
    ] = "auto"
    """How attention is computed. auto picks the fastest kernel that works on this machine; eager is the slow textbook
    form, flash_attention_2 needs a GPU and a package of its own. The result is the same."""
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
    """Learns size and direction of weights apart: a little better at low ranks, noticeably slower."""
    init_lora_weights: Annotated[Init, Ui(label="LoRA start", advanced=True, when=_LORA)] = "default"
    """What the matrices hold before the first step. default changes nothing at first; gaussian is the same with other
    random numbers; pissa begins with the strongest directions of the weights and often learns faster, pissa_niter_16
    finds them quicker on large models, olora begins with orthogonal ones. What is saved fits the original model."""
    modules_to_save: Annotated[list[str], Ui(label="Train whole layers", advanced=True, when=_LORA)] = []
    """Layers trained completely beside the adapter and saved with it, such as embed_tokens and lm_head when a model is
    to learn new tokens. Each takes as much memory as in full training. Empty: none."""


class SourceSection(Section):
    """One dataset and what is taken from it."""

    dataset: Annotated[
        str, Field(min_length=1, max_length=1000), Ui(label="Dataset", aliases=("data_path", "alpaca_en_path"))
    ]
    """A dataset saved in the Data tab, or the path of a file or folder: JSON, JSONL, CSV, Excel, Parquet, plain text
    or a folder written by save_to_disk."""
    subset: Annotated[str | None, Field(max_length=200), Ui(label="Subset", advanced=True)] = None
    """Which part of a hub dataset that comes in several (its configuration name). Empty: the only one."""
    split: Annotated[str | None, Field(max_length=200), Ui(label="Split", advanced=True)] = None
    """Which split of a dataset that has several, such as train or test. Empty: train, or the only one."""
    mapping: Annotated[
        str | None, Field(max_length=2000), Ui(label="Column mapping", aliases=("dataset_map_fn",), advanced=True)
    ] = None
    """How its columns are read: the name of a mapping such as alpaca, or columns like instruction=question,
    output=answer. Empty: found by looking at the rows."""
    system: Annotated[
        str | None,
        Field(max_length=20000),
        Ui(label="System prompt", aliases=("SYSTEM",), advanced=True, multiline=True),
    ] = None
    """Put before every conversation that has no system prompt of its own; samples and chat use the one of the first
    dataset."""
    max_samples: Annotated[int | None, Field(ge=1), Ui(label="Use at most (rows)", advanced=True)] = None
    """Train on that many of its rows, the first ones. Empty: all rows."""
    weight: Annotated[float, Field(gt=0, le=1000), Ui(label="Weight", advanced=True)] = 1.0
    """How often its rows are seen in one epoch: 2 sees each row twice, 0.5 sees half of them, drawn by the seed."""


class ExtraSource(SourceSection):
    """A further dataset, mixed with the first; a bare name stands for the dataset alone."""

    @model_validator(mode="before")
    @classmethod
    def check_bare_name(cls, value: Any) -> Any:
        """`- alpaca_zh` in a list of sources is short for `- dataset: alpaca_zh`."""
        return {"dataset": value} if isinstance(value, str) else value


class DataSection(SourceSection):
    """What the model is trained on."""

    sources: Annotated[list[ExtraSource], Field(max_length=50), Ui(label="More datasets", advanced=True)] = []
    """Further datasets mixed with the first one, each with its own weight, row limit, split, mapping and system
    prompt."""
    validation_share: Annotated[float, Field(ge=0, le=0.5), Ui(label="Validation share", advanced=True)] = 0.0
    """Share of the rows kept apart, never trained on, to draw an evaluation loss; 0.05 to 0.1 is usual."""
    validation_dataset: Annotated[str | None, Field(max_length=1000), Ui(label="Validation dataset", advanced=True)] = (
        None
    )
    """A dataset or file of its own for the evaluation loss, in place of a share. Empty: none."""
    max_length: Annotated[int, Field(ge=16, le=1_000_000), Ui(label="Maximum length (tokens)")] = 2048
    """Longest conversation in tokens; what is longer is cut at the end, plain texts are cut into pieces instead.
    Memory grows with it."""
    packing: Annotated[bool | None, Ui(label="Packing", aliases=("pack_to_max_length",), advanced=True)] = None
    """Joins short conversations into full rows: faster on big sets, too few updates on small ones.
    Empty: on from 2,000 conversations."""
    strict: Annotated[bool, Ui(label="Refuse bad rows", advanced=True)] = False
    """Refuse to start while any row cannot be used. Off: such rows are left out and named."""
    self_replay: Annotated[int | None, Field(ge=0, le=10_000), Ui(label="Self-replay (rows)", advanced=True)] = None
    """The base model first answers so many general questions, and its answers are mixed in, so that it keeps what it
    could do. Empty: as many as the dataset asks for."""

    @property
    def all_sources(self) -> tuple[SourceSection, ...]:
        """The first dataset and all further ones, in order."""
        return (self, *self.sources)


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
    """Batches added up before one update. Batch size x this x devices = effective batch size; 8 to 64 is usual, more
    gives steadier but fewer updates."""
    max_steps: Annotated[int, Field(ge=-1), Ui(label="Stop after (steps)", advanced=True)] = -1
    """End after this many optimizer updates, whatever the epochs say. -1: the epochs decide."""
    optim: Annotated[
        Optimizer,
        Ui(
            label="Optimizer",
            aliases=("optim_type", "optimizer"),
            advanced=True,
            spellings=OPTIMIZER_SPELLINGS,
        ),
    ] = "adamw_torch"
    """The update rule. adamw is nearly always right; its 8-bit form saves GPU memory, a paged one moves its memory to
    the main memory when the GPU is full. lion wants a tenth of the learning rate, sgd a hundred times as much."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1), Ui(label="Adam beta 1", aliases=("betas.0",), advanced=True)] = 0.9
    """Memory of the running mean of gradients; 0.9 is usual, higher is smoother and slower to turn."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1), Ui(label="Adam beta 2", aliases=("betas.1",), advanced=True)] = (
        0.999
    )
    """Memory of the running mean of squared gradients; 0.95 to 0.999, lower follows sudden changes faster."""
    weight_decay: Annotated[float, Field(ge=0, le=1), Ui(label="Weight decay", advanced=True)] = 0.0
    """Pulls weights towards zero at each step; 0 to 0.1."""
    max_grad_norm: Annotated[
        float, Field(ge=0, le=1000), Ui(label="Gradient clipping", aliases=("max_norm",), advanced=True)
    ] = 1.0
    """Gradients longer than this are shortened, so one odd batch cannot wreck the model. 0: no clipping."""
    lr_scheduler_type: Annotated[
        Scheduler, Ui(label="Learning-rate schedule", advanced=True, spellings=SCHEDULER_SPELLINGS)
    ] = "cosine"
    """How the learning rate falls after the warm-up: cosine and linear to zero, constant never, cosine_with_min_lr to a
    tenth, warmup_stable_decay only in the last tenth of the training."""
    lr_scheduler_kwargs: Annotated[str | None, Field(max_length=500), Ui(label="Schedule settings", advanced=True)] = (
        None
    )
    """Numbers of the schedule as name=value, with commas between: num_cycles=3 for cosine_with_restarts,
    min_lr_rate=0.1 for cosine_with_min_lr, num_decay_steps=50 for warmup_stable_decay, power=2 for polynomial.
    Empty: its usual ones."""
    warmup_steps: Annotated[float, Field(ge=0), Ui(label="Warm-up", aliases=("warmup_ratio",), advanced=True)] = 0.03
    """The learning rate rises from zero first: below 1 a share of the training, else a number of steps. 0.03 to 0.1 is
    usual; more is gentler to the model."""
    logging_steps: Annotated[int, Field(ge=1), Ui(label="Log every (steps)", advanced=True)] = 1
    """How often a point is added to the curves."""
    eval_steps: Annotated[int | None, Field(ge=1), Ui(label="Evaluate every (steps)", advanced=True)] = None
    """How often the loss on the validation rows is measured, if there are any. Empty: as often as the evaluation
    inputs are asked."""
    save_steps: Annotated[int, Field(ge=1), Ui(label="Save every (steps)", advanced=True)] = 500
    """How often a checkpoint is written from which the run can be resumed."""
    save_total_limit: Annotated[int, Field(ge=-1, le=1000), Ui(label="Checkpoints to keep", advanced=True)] = 2
    """Older checkpoints are deleted. -1: keep all."""
    load_best_model_at_end: Annotated[bool, Ui(label="Keep the best", advanced=True)] = False
    """Save what had the lowest loss on the validation rows, not what came last. A checkpoint is written whenever that
    loss is the lowest so far. Needs validation rows."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Ui(label="Seed", advanced=True)] = 42
    """Same seed, same data, same machine: same run."""
    gradient_checkpointing: Annotated[bool, Ui(label="Gradient checkpointing", advanced=True)] = False
    """Recomputes instead of storing: about a third slower, much less memory."""
    neftune_noise_alpha: Annotated[float | None, Field(ge=0, le=100), Ui(label="NEFTune noise", advanced=True)] = None
    """Adds noise to the embeddings in training; 5 to 15 helps on small chat sets, more blurs. Empty: off."""
    dataloader_num_workers: Annotated[int, Field(ge=0, le=64), Ui(label="Data workers", advanced=True)] = 0
    """Processes that prepare batches; 0 is right for text."""

    report_to: Annotated[list[TrackerName], Ui(label="Also report to", advanced=True)] = []
    """Services that follow the training besides this page: tensorboard, wandb, swanlab, mlflow, trackio. Each needs its
    package, and those on the web their key in the environment (WANDB_API_KEY, SWANLAB_API_KEY); what tensorboard and
    mlflow write lies in the folder trackers of the run. Empty: none."""

    @field_validator("report_to", mode="before")
    @classmethod
    def check_none_is_none(cls, value: Any) -> Any:
        """`none`, as in TrainingArguments, is an empty list, and a bare name a list of one; no name counts twice."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return [] if names is None else names
        return list(dict.fromkeys(name for name in names if name != "none"))

    @field_validator("save_total_limit")
    @classmethod
    def check_something_is_kept(cls, value: int) -> int:
        """0 could mean all or none."""
        if value == 0:
            raise ValueError("must be at least 1, or -1 to keep all checkpoints")
        return value

    @field_validator("lr_scheduler_kwargs", mode="before")
    @classmethod
    def check_settings_readable(cls, value: Any) -> Any:
        """A mapping, as in TrainingArguments, is written as text; text must be name=value."""
        if isinstance(value, Mapping):
            value = ", ".join(f"{name}={number}" for name, number in value.items()) or None
        if isinstance(value, str):
            read_settings(value)
        return value


class EarlyStoppingSection(Section):
    """When to end before the epochs are over (names of transformers' EarlyStoppingCallback)."""

    early_stopping_patience: Annotated[
        int | None, Field(ge=1, le=1000), Ui(label="Stop early after (evaluations)", advanced=True)
    ] = None
    """End once the loss on the validation rows has not fallen for so many evaluations in a row; 3 is usual, higher
    waits longer. Needs validation rows. Empty: never."""
    early_stopping_threshold: Annotated[float, Field(ge=0, le=100), Ui(label="Least improvement", advanced=True)] = 0.0
    """By how much that loss must fall to count as better; 0.001 ignores what is only noise, higher stops sooner."""


class SamplesSection(Section):
    """What the model is asked while it trains, so that you can watch it learn."""

    evaluation_inputs: Annotated[
        list[Prompt],
        Field(max_length=50),
        Ui(label="Evaluation inputs", multiline=True),
    ] = ["Who are you?", "你是谁？"]
    """Questions the model answers before, during and after the training; one per line. A line may also be a whole
    conversation that ends with the user, as JSON: [{"role": "user", "content": "Hi"}, ...]."""
    evaluation_freq: Annotated[int, Field(ge=1), Ui(label="Ask every (steps)")] = 50
    """The evaluation inputs are answered every so many optimizer updates."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096), Ui(label="Longest answer (tokens)", advanced=True)] = 64
    """An answer is cut after this many tokens."""


class OwnProbe(Section):
    """A question of your own for the verdict."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000), Ui(label="Question")]
    """What the trained model is asked; it should not be among the rows it is trained on. A conversation that ends with
    the user may be written as JSON."""
    expect: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=2000)]],
        Field(min_length=1, max_length=20),
        Ui(label="Expected in the answer", multiline=True),
    ]
    """Texts that must all be in the answer, one per line; | stands between texts of which one is enough. Upper and
    lower case do not matter."""

    @field_validator("prompt", mode="before")
    @classmethod
    def check_conversation(cls, value: Any) -> Any:
        """Messages are kept as one line of JSON, as the form shows them."""
        found = read_prompt(value)
        return as_line(found) if isinstance(found, list) else found

    @property
    def messages(self) -> list[dict[str, str]]:
        """What is sent."""
        return messages_of(read_prompt(self.prompt))


class VerdictSection(Section):
    """The check at the end: did it learn, did it leak, did it forget?"""

    enabled: Annotated[bool, Ui(label="Verdict at the end", advanced=True)] = True
    """Asks held-out, unrelated and general questions before and after the training and compares."""
    max_probes: Annotated[int, Field(ge=1, le=1000), Ui(label="Questions per check", advanced=True)] = 100
    """At most so many questions of each kind; fewer is faster."""
    probes: Annotated[list[OwnProbe], Field(max_length=200), Ui(label="Own questions", advanced=True)] = []
    """Questions of your own with what must be in their answers, asked beside those of the dataset. Without any, and
    without questions of the dataset, short answers among the validation rows are asked."""
    check_while_training: Annotated[bool, Ui(label="Check while training", advanced=True)] = True
    """Asks a few of the questions as often as the evaluation inputs, and draws the shares. The training does not feel
    it."""
    stop_at_best: Annotated[bool, Ui(label="Stop at the best", advanced=True)] = False
    """Ends the training once two such checks in a row are passed, or once three in a row are worse than the best, and
    saves the best step. A checkpoint is written whenever a check is the best so far."""
