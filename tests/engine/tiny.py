"""Tiny random models and readers of runs, for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from studio.events import Event
from studio.records.template_names import named_template
from studio.rundir import RunDir

MakeRun = Callable[..., RunDir]
Engine = Callable[..., int]
EMBER = Path(__file__).resolve().parents[2] / "assets" / "models" / "ember"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QUESTIONS = ("Who are you?", "What is your name?", "Who made you?", "你是谁？", "Tell me about yourself.")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte and the ChatML template."""
    alphabet = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIALS[2], pad_token=SPECIALS[0])
    tokenizer.add_special_tokens({"additional_special_tokens": [SPECIALS[1]]})
    tokenizer.chat_template = named_template("chatml").source
    return tokenizer


def save_tiny(folder: Path, kind: str) -> Path:
    """A random 2-layer model (64 wide, 4-bit capable) of kind llama or qwen2, saved in Hugging Face format."""
    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model: Any = (
        LlamaForCausalLM(LlamaConfig(**settings)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**settings))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def events_of(run: RunDir, kind: str) -> list[Any]:
    """All events of one type."""
    found: list[Event] = list(run.read_events()[0])
    return [event for event in found if event.type == kind]


def losses(run: RunDir) -> dict[int, float]:
    """Step -> loss; of a step reported twice (after a resume) the later one."""
    return {event.step: event.loss for event in events_of(run, "log")}
