"""The stop words of a chat template end answers in samples and chat, and stay with what was trained."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import save_adapter
from tiny import Engine, MakeRun, byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_outputs import CausalLMOutputWithPast

from studio.config import MergeConfig
from studio.engine import merge
from studio.engine.answers import Respondent
from studio.engine.backend import open_backend
from studio.engine.dialogue import Options, Piece, Request, Sampling, Turn
from studio.engine.model import Precision
from studio.engine.resident import Resident
from studio.engine.stopping import Endings, add_to_saved, cut, endings, remember, saved_endings
from studio.records.chat_tokenizer import ChatTokenizer
from studio.records.template_names import named_template
from studio.schema import build
from studio.workspace import Workspace

IM_END, END_OF_TEXT = 2, 0


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return found


def says(model: Any, text: str) -> None:
    """Make a model write this text, whatever it is asked, and then only letters x."""
    script = iter(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])
    x = byte_tokenizer()("x")["input_ids"][0]

    def forward(input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> CausalLMOutputWithPast:
        logits = torch.zeros(*input_ids.shape, model.config.vocab_size)
        logits[:, -1, next(script, x)] = 1.0
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)

    model.forward = forward


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    ("name", "tokens", "texts"),
    [
        ("internlm_chat", [IM_END], ["<eoa>"]),  # no token of this tokenizer
        ("qwen_chat", [END_OF_TEXT, IM_END], None),
        ("mistral", IM_END, None),  # has no stop words: nothing changes
    ],
)
def test_template_and_stop_words_are_saved(
    make_run: MakeRun, engine: Engine, method: str, name: str, tokens: Any, texts: Any
) -> None:
    run = make_run(method, **{"model.chat_template": name, "train.max_steps": 1})
    assert engine(run) == 0
    folder = run.model if method == "full" else run.adapter
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == named_template(name).source
    assert settings_of(folder)["eos_token_id"] == tokens
    assert settings_of(folder).get("stop_strings") == texts
    assert saved_endings(folder) == Endings(
        frozenset(tokens if isinstance(tokens, list) else [tokens]), tuple(texts or ())
    )


def test_samples_end_at_a_stop_word(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    chat = ChatTokenizer.from_folder(tiny_llama, "internlm_chat")
    respondent = Respondent(model, byte_tokenizer(), chat, Precision("cpu", torch.float32))
    says(model, "Hello there<eoa>\n<|User|>:and more")
    assert respondent.answer(["Hi"], 60) == ["Hello there"]


@pytest.mark.parametrize("name", ["adapter", "model"])
def test_chat_ends_at_the_stop_word_that_was_saved(tiny_llama: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if name == "adapter":
        save_adapter(tiny_llama, folder, template=named_template("internlm_chat").source)
    else:
        shutil.copytree(tiny_llama, folder)
    add_to_saved(folder, Endings(texts=("<eoa>",)))
    base, adapters = (tiny_llama, {"tuned": str(folder)}) if name == "adapter" else (folder, {})
    turns = open_backend(Options(str(base), adapters, "127.0.0.1", 0, 32, None, None), lambda phase: None)
    assert answer(turns, "tuned" if adapters else "base") == ("Hello <eo> there", "stop")
    if adapters:  # its base knows nothing of stop words
        text, reason = answer(turns, "base")
        assert text.startswith("Hello <eo> there<eoa>more")
        assert reason == "length"


def answer(backend: Resident, model: str) -> tuple[str, str | None]:
    """What a chat shows of a model that says more than it should, and why it ended."""
    turns: Any = backend._loaded.speaker if backend._loaded else None
    says(turns.weights.model, "Hello <eo> there<eoa>more")
    pieces: list[Piece] = []
    over = threading.Event()

    def take(piece: Piece) -> None:
        pieces.append(piece)
        if piece.last:
            over.set()

    turns.begin(Request(model, (Turn("user", "Hi"),), sampling=Sampling(temperature=0, max_tokens=40)), take)
    assert over.wait(60)
    return "".join(piece.text for piece in pieces), pieces[-1].finish


def test_a_merged_model_keeps_them(tiny_llama: Path, workspace: Workspace, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_llama, tmp_path / "adapter", strength=0.2, template=named_template("qwen_chat").source)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    remember(model, byte_tokenizer(), [*named_template("qwen_chat").stop_words, "###"])
    model.generation_config.save_pretrained(adapter)
    out = workspace.exports / "merged"
    settings = {"base": str(tiny_llama), "adapter": str(adapter), "out": str(out), "dtype": "float32"}
    run = workspace.create_run(build(MergeConfig, settings))
    assert merge.main(str(run.path)) == 0
    assert settings_of(out)["eos_token_id"] == [END_OF_TEXT, IM_END]
    assert settings_of(out)["stop_strings"] == ["###"]
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == named_template("qwen_chat").source
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert endings(tokenizer, merged) == Endings(frozenset({END_OF_TEXT, IM_END}), ("###",))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"stop_strings": 3, "eos_token_id": "x"}', '{"stop_strings": [1, ""]}']
)
def test_settings_that_say_nothing_useful(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, encoding="utf-8")
    assert saved_endings(tmp_path) == Endings()
    add_to_saved(tmp_path, Endings(texts=("###",)))
    assert saved_endings(tmp_path).texts == (("###",) if text.startswith('{"') else ())


def test_where_an_answer_is_cut() -> None:
    assert cut("a###b</x>", ["</x>", "###", ""]) == "a"
    assert cut("a", []) == "a"
