"""Models that see: their answers are those of transformers, also while others are answered in between."""

from __future__ import annotations

import inspect
import io
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import byte_tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from studio.engine.backend import open_backend
from studio.engine.dialogue import BASE, Options, Piece, PromptError, Request, Sampling, Speaker, Turn
from studio.engine.generation import Turns
from studio.engine.generation_pictures import Eyes
from studio.engine.generation_voice import Voice
from studio.engine.generation_weights import SharedWeights

TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{ m['role'] }}\n"
    "{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}"
    "{%- for part in m['content'] -%}{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "pad_token_id": 0,
}
QUESTION = "What is it?"
SHOWN = (("red",), ("blue", "white"), ())


def _tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _wild(model: Any) -> Any:
    """Random weights large enough for every picture to matter."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random LLaVA."""
    folder = tmp_path_factory.mktemp("models") / "llava"
    tokenizer = _tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor: Any = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    config: Any = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    _wild(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (84, 56), colour).save(file, "PNG")
    return file.getvalue()


def _images(colours: Sequence[str]) -> list[Any]:
    return [Image.open(io.BytesIO(_picture(colour))) for colour in colours]


def _written(model: Any, inputs: Any) -> list[float]:
    """How likely transformers' own `generate` finds each token of its greedy answer."""
    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=10,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    return [float(logits[0].log_softmax(-1).max()) for logits in out.logits]


def _ask(backend: Speaker, *all_turns: tuple[Turn, ...]) -> list[list[float]]:
    """The same of questions that are asked at the same time."""
    found: list[list[float]] = [[] for _ in all_turns]
    done = [threading.Event() for _ in all_turns]

    def listen(number: int, piece: Piece) -> None:
        assert piece.error is None
        found[number] += [chance.logprob for chance in piece.chances]
        if piece.last:
            done[number].set()

    for number, turns in enumerate(all_turns):
        asked = Request(BASE, turns, sampling=Sampling(temperature=0, max_tokens=10, logprobs=0))
        backend.begin(asked, lambda piece, number=number: listen(number, piece))  # type: ignore[misc]
    assert all(one.wait(120) for one in done)
    return found


def _questions() -> list[tuple[Turn, ...]]:
    return [(Turn("user", QUESTION, images=tuple(map(_picture, colours))),) for colours in SHOWN]


def _check(backend: Speaker, expected: list[list[float]]) -> None:
    alone = [_ask(backend, one)[0] for one in _questions()]
    for answers in (alone, _ask(backend, *_questions())):
        for answer, wanted in zip(answers, expected, strict=True):
            assert len(answer) > 2
            assert answer == pytest.approx(wanted[: len(answer)], abs=2e-4)
    for one, other in itertools.combinations(expected, 2):
        assert max(abs(x - y) for x, y in zip(one, other, strict=True)) > 0.01


def test_pictures_are_seen_as_transformers_shows_them(llava: Path) -> None:
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(llava)
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava)
    expected = []
    for colours in SHOWN:
        parts = [{"type": "image"} for _ in colours] + [{"type": "text", "text": QUESTION}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = processor(text=[text], images=_images(colours) or None, return_tensors="pt")
        expected.append(_written(model, inputs))
    backend = open_backend(Options(str(llava), {}, "127.0.0.1", 0, 32, None, None), lambda phase: None)
    assert backend.facts(BASE).images
    _check(backend, expected)
    many = (Turn("user", QUESTION * 40, images=(_picture("red"),) * 16),)
    with pytest.raises(PromptError, match="reads at most 512"):
        backend.begin(Request(BASE, many), lambda piece: None)
    backend.close()


class _Processor:
    """What Qwen's own processor does with pictures (that one wants torchvision, for videos)."""

    image_token = "<image>"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.images: Any = Qwen2VLImageProcessor(patch_size=14, merge_size=2, min_pixels=784, max_pixels=784 * 16)

    def __call__(self, *, text: list[str], images: list[Any], return_tensors: str, add_special_tokens: bool) -> Any:
        found = dict(self.images(images=images, return_tensors=return_tensors)) if images else {}
        whole = text[0]
        for grid in found.get("image_grid_thw", ()):
            whole = whole.replace(self.image_token, "\0" * (int(grid.prod()) // 4), 1)
        ids = self.tokenizer(whole.replace("\0", self.image_token), return_tensors=return_tensors)["input_ids"]
        kinds = (ids == self.tokenizer.convert_tokens_to_ids(self.image_token)).int()
        return found | {"input_ids": ids} | ({"mm_token_type_ids": kinds} if images else {})


def test_models_that_count_places_behind_pictures_apart_keep_their_answers_apart() -> None:
    tokenizer = _tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<image>", "(<image>)")  # pictures side by side would be one
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "fullatt_block_indexes": [1], "window_size": 56}
    config: Any = Qwen2_5_VLConfig(
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope, "eos_token_id": 2},
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    model = _wild(Qwen2_5_VLForConditionalGeneration(config))
    processor = _Processor(tokenizer)
    expected = []
    for colours in SHOWN:
        parts = [{"type": "image"} for _ in colours] + [{"type": "text", "text": QUESTION}]
        talk = [{"role": "user", "content": parts}]
        text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=[text], images=_images(colours), return_tensors="pt", add_special_tokens=False)
        expected.append(_written(model, inputs))
    eyes = Eyes(processor, frozenset(inspect.signature(model.forward).parameters) - {"input_ids", "attention_mask"})
    backend = Turns(SharedWeights(model, {}), {BASE: Voice(tokenizer, model, eyes=eyes)}, {})
    _check(backend, expected)
    backend.close()
