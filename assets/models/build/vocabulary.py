"""The tokenizer: byte-level BPE with 3072 entries, trained on the generated dialogues.

Hanzi are isolated before merging, so that no merge glues a name to its sentence; apart from that the
pre-tokenizer is Qwen2's, and on this vocabulary both give the same ids. The 13 bytes that occur in no
valid UTF-8 text are left out, because a token that can never occur could never be trained.
"""

import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from assets.models.build.dialogues import dialogue
from assets.models.build.phrases import HERE

SIZE = 3072
CONTEXT = 1024
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<tools>", "</tools>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IMPOSSIBLE_BYTES = (0xC0, 0xC1, *range(0xF5, 0x100))
ROLES = ("system", "user", "assistant")


def pre_tokenizer(*, isolate_hanzi: bool = True) -> pre_tokenizers.PreTokenizer:
    """Qwen2's splitting, with every Hanzi on its own unless told otherwise."""
    steps = [pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")] if isolate_hanzi else []
    steps.append(pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)


def train(documents: int = 60_000, seed: int = 7) -> PreTrainedTokenizerFast:
    """Train the vocabulary on freshly drawn dialogues; the role words are fed in to become single tokens."""
    r = random.Random(seed)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer()
    core.decoder = decoders.ByteLevel()
    # In the byte-level alphabet the bytes C0, C1 and F5-FF are written as the characters with the same number.
    alphabet = [c for c in pre_tokenizers.ByteLevel.alphabet() if c not in {chr(b) for b in IMPOSSIBLE_BYTES}]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    texts = (text for _ in range(documents) for message in dialogue(r) for text in message)
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = (HERE / "data" / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def load_or_train(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`, trained and saved there when missing."""
    if not (folder / "tokenizer.json").is_file():
        train().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)
