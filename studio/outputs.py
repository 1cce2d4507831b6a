"""The configurations of everything that is made of trained models: merges, imported adapters, exports, answers.

Each of them is a run like a training: its `kind` is the verb of the engine that does it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from studio.schema import Section, Ui

MergeBase = Literal["original", "dequantized"]
Dtype = Literal["bfloat16", "float16", "float32"]
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def _bytes(size: str) -> int:
    return int(float(size[:-2]) * _UNITS[size[-2:]])


def _size(text: str) -> str:
    """A size as transformers reads it. Raises for one that is none, or nothing."""
    written = text.replace(" ", "").upper()
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?(KB|MB|GB)", written) or _bytes(written) < 1:
        raise PydanticCustomError("string_pattern_mismatch", "must be a size like 500MB or 2GB")
    return written


def _some(weight: float) -> float:
    """Raises for a weight with which nothing is added."""
    if weight == 0:
        raise ValueError("with weight 0 nothing of the adapter is added; choose another weight, or leave it out")
    return weight


ShardSize = Annotated[str, Field(max_length=20), AfterValidator(_size), Ui(label="Largest file")]
StopWord = Annotated[str, Field(min_length=1, max_length=1000)]
_REPOSITORY = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"


class WeightedAdapter(Section):
    """One more adapter of a merge, and how much of it is added."""

    path: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Adapter")]
    """Folder of the adapter, or the run that made it."""
    weight: Annotated[float, Field(ge=-10, le=10), AfterValidator(_some), Ui(label="Weight")] = 1.0
    """How much of it is added; 1 is all of it."""


class OutputConfig(Section):
    """What all of them have. `PATHS` are the fields that may hold a path, `SUBJECT` the one a list shows."""

    PATHS: ClassVar[tuple[str, ...]] = ()
    SUBJECT: ClassVar[str] = ""

    schema_version: Annotated[Literal[1], Ui(label="Format version", advanced=True)] = 1
    """Version of this file format."""
    name: Annotated[str, Field(max_length=120), Ui(label="Name")] = ""
    """A name to find this run again. Empty: built from what it does."""
    out: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Output folder")]
    """Where the result is written; must not exist yet."""

    @property
    def subject(self) -> str:
        """The model or file it is about."""
        return str(getattr(self, self.SUBJECT))

    @property
    def references(self) -> list[str]:
        """Everything it reads that may be a folder on this machine."""
        return [str(value) for name in self.PATHS if (value := getattr(self, name))]

    @property
    def default_name(self) -> str:
        """The name of a run that got none."""
        return f"{self.model_dump()['kind']}_{Path(self.out).name}"[:120]


class MergeConfig(OutputConfig):
    """One merge of adapters into their base model, complete."""

    PATHS = ("base", "adapter")
    SUBJECT = "base"

    kind: Annotated[Literal["merge"], Ui(label="Kind")] = "merge"
    """What this configuration describes."""
    base: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Base model")]
    """Built-in model, folder or hub id the adapter was trained on."""
    adapter: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Adapter")]
    """Folder of the adapter (a run's adapter/ or a checkpoint)."""
    weight: Annotated[float, Field(ge=-10, le=10), AfterValidator(_some), Ui(label="Weight", advanced=True)] = 1.0
    """How much of the adapter is added; 1 is what was trained."""
    more_adapters: Annotated[list[WeightedAdapter], Field(max_length=8), Ui(label="More adapters", advanced=True)] = []
    """Other adapters of the same base that are added too, each with its weight."""
    merge_base: Annotated[MergeBase, Ui(label="Merge into")] = "original"
    """The original 16-bit weights (the convention), or the 4-bit weights the run really saw, unpacked (dequantized)."""
    max_shard_size: ShardSize = "2GB"
    """Weights are split into files of at most this size."""
    dtype: Annotated[Dtype, Ui(label="Precision")] = "bfloat16"
    """Number format of the merged weights."""
    layout: Annotated[Literal["converted", "original"], Ui(label="Layout")] = "converted"
    """Names of the weights. converted: those every tool reads. original: those of the base that was converted."""
    device: Annotated[Literal["cpu", "cuda", "auto"], Ui(label="Device")] = "cpu"
    """Where the sums are done. cpu: anywhere, with the memory of the machine. auto: a GPU if there is one."""

    @property
    def shard_bytes(self) -> int:
        """The largest file, in bytes."""
        return _bytes(self.max_shard_size)

    @property
    def references(self) -> list[str]:
        """Base and all adapters."""
        return [*super().references, *(one.path for one in self.more_adapters)]


class ConvertConfig(OutputConfig):
    """One import of an adapter that other tools made, or one of our own made ready to be given away."""

    PATHS = ("source", "base", "settings")
    SUBJECT = "source"

    kind: Annotated[Literal["convert"], Ui(label="Kind")] = "convert"
    """What this configuration describes."""
    source: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Adapter or checkpoint")]
    """A .pth file or folder of XTuner, a .bin adapter, ZeRO shards, an adapter's folder, or a run."""
    base: Annotated[str | None, Field(max_length=1000), Ui(label="Base model")] = None
    """The base model it was trained on. Empty: the one it names itself."""
    settings: Annotated[str | None, Field(max_length=1000), Ui(label="Settings", aliases=("config",))] = None
    """The configuration it was trained with (XTuner's .py, an adapter_config.json); empty: the one beside it."""
    lora_alpha: Annotated[float | None, Field(gt=0, le=100_000), Ui(label="LoRA alpha")] = None
    """Scale of the adapter where no settings say it."""
    prompt_template: Annotated[str | None, Field(max_length=200), Ui(label="Chat template")] = None
    """Name of the chat template it was trained with. Empty: that of the settings, else the base model's own."""


class ExportConfig(OutputConfig):
    """One export: a model, with an adapter merged into it if one is named, written in another format."""

    PATHS = ("model", "adapter")
    SUBJECT = "model"

    kind: Annotated[Literal["export"], Ui(label="Kind")] = "export"
    """What this configuration describes."""
    format: Annotated[Literal["bitsandbytes", "gguf", "ollama", "hub"], Ui(label="Format")]
    """bitsandbytes: packed in 4 or 8 bits. gguf: llama.cpp and its relatives. ollama: GGUF with a Modelfile.
    hub: upload to Hugging Face or ModelScope."""
    model: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Model")]
    """Built-in model, folder, hub id or run."""
    adapter: Annotated[str | None, Field(max_length=1000), Ui(label="Adapter")] = None
    """Adapter to merge into it first (for hub: to upload as it is)."""
    merge_base: Annotated[MergeBase, Ui(label="Merge into")] = "original"
    """The original 16-bit weights (the convention), or the 4-bit weights the run really saw, unpacked (dequantized)."""
    bits: Annotated[Literal[4, 8], Ui(label="Bits")] = 4
    """Bits per weight of a bitsandbytes export."""
    gguf_type: Annotated[Literal["f32", "f16", "bf16", "q8_0"], Ui(label="GGUF type")] = "q8_0"
    """Number format of the large weights in a GGUF file."""
    max_shard_size: ShardSize = "2GB"
    """Weights are split into files of at most this size (not GGUF)."""
    system: Annotated[str | None, Field(max_length=20_000), Ui(label="System prompt")] = None
    """System prompt written into a Modelfile. Empty: the one the run was trained with."""
    hub: Annotated[Literal["huggingface", "modelscope"], Ui(label="Hub")] = "huggingface"
    """Where an upload goes."""
    repo_id: Annotated[str | None, Field(max_length=200), Ui(label="Repository")] = None
    """owner/name on the hub. The token comes from the environment (HF_TOKEN, MODELSCOPE_API_TOKEN), never from here."""
    private: Annotated[bool, Ui(label="Private")] = True
    """Whether only the owner sees the repository."""
    endpoint: Annotated[str | None, Field(max_length=500), Ui(label="Mirror", advanced=True)] = None
    """Address of the hub, if it is not the public one."""

    out: Annotated[str, Field(max_length=1000), Ui(label="Output folder")] = ""
    """Where the result is written; must not exist yet. An upload writes nothing here."""

    @field_validator("endpoint")
    @classmethod
    def check_endpoint(cls, value: str | None) -> str | None:
        """No name and password in it: a configuration is no place for secrets."""
        if value and "@" in value:
            raise ValueError("write it as https://host, without a name and password in it")
        return value

    @model_validator(mode="after")
    def check_goal_named(self) -> ExportConfig:
        """An upload needs a repository to go to, everything else a folder."""
        if self.format == "hub":
            if not re.fullmatch(_REPOSITORY, self.repo_id or ""):
                raise ValueError("repo_id: name the repository an upload goes to as owner/name")
        elif not self.out:
            raise ValueError("out: name the folder the export is written to")
        return self

    @property
    def default_name(self) -> str:
        """The format, and where it goes."""
        return f"{self.format}_{Path(self.out or self.repo_id or '').name}"[:120]


class AnswersConfig(OutputConfig):
    """A file of prompts, answered by the base model and by the trained one."""

    PATHS = ("prompts", "model", "adapter")
    SUBJECT = "model"

    kind: Annotated[Literal["answer"], Ui(label="Kind")] = "answer"
    """What this configuration describes."""
    prompts: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Prompts")]
    """File of prompts: .txt with one per line, .jsonl, .json, .csv or .xlsx; rows may be whole conversations."""
    model: Annotated[str, Field(min_length=1, max_length=1000), Ui(label="Model")]
    """Built-in model, folder, hub id or run."""
    adapter: Annotated[str | None, Field(max_length=1000), Ui(label="Adapter")] = None
    """Adapter whose answers are wanted beside those of the base model."""
    compare: Annotated[bool, Ui(label="Ask the base too")] = True
    """Whether the base model is asked the same."""
    bits: Annotated[Literal[4, 8, 16, 32], Ui(label="Bits per weight")] = 16
    """How the base weights are held."""
    system: Annotated[str | None, Field(max_length=20_000), Ui(label="System prompt")] = None
    """System prompt of every question. Empty: the one the run was trained with."""
    temperature: Annotated[float, Field(ge=0, le=5), Ui(label="Temperature")] = 0.0
    """0: always the likeliest word."""
    top_p: Annotated[float, Field(gt=0, le=1), Ui(label="Top p")] = 1.0
    """Only the likeliest words that make up this share."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000), Ui(label="Top k")] = 0
    """Only so many of the likeliest words. 0: all."""
    min_p: Annotated[float, Field(ge=0, le=1), Ui(label="Min p")] = 0.0
    """No words less likely than this share of the likeliest. 0: all."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10), Ui(label="Repetition penalty")] = 1.0
    """Above 1: words already said become less likely. 1: off."""
    stop_words: Annotated[list[StopWord], Field(max_length=16), Ui(label="Stop words")] = []
    """Texts an answer ends before."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Ui(label="Seed")] = 0
    """Same seed, same answers."""
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000), Ui(label="Longest answer")] = 512
    """Tokens an answer has at most."""
    chat_template: Annotated[str | None, Field(max_length=200), Ui(label="Chat template")] = None
    """How the questions are written, by name. Empty: as the model was trained."""
