"""What the coach, a blown-up run and the trackers say has Chinese."""

from __future__ import annotations

import pytest

from studio.coach import notes
from studio.events import EvalEvent, LogEvent, VerdictEvent
from studio.trackers import TRACKERS, lacking
from studio.ui.sentences import translated


def curve(*losses: float | None, rate: float | None = 1e-3) -> list[LogEvent]:
    """Points that are told everything of."""
    return [
        LogEvent(step=n, loss=loss, learning_rate=rate, grad_norm=1.0, epoch=n / 10) for n, loss in enumerate(losses, 1)
    ]


LOW = [3.0 - n / 8 for n in range(24)] + [0.01] * 40
CHECKS = [
    VerdictEvent(step=60, learned=0.3),
    VerdictEvent(step=60, learned=1.0, leaked=0.9),
    VerdictEvent(step=60, learned=1.0, leaked=0.0, retained=0.2),
]
CURVES = {
    "nan": curve(3.0, 2.9, None),
    "nan without a rate": curve(3.0, 2.9, None, rate=None),
    "divergence": curve(*[3 - n / 50 for n in range(60)], *[2 + n / 10 for n in range(40)]),
    "spike": curve(*[2.0] * 60, 9.0, *[2.0] * 10),
    "slow spike": curve(*[3 - n / 50 for n in range(60)], *[9 - n / 2 for n in range(14)], *[1.8] * 30),
    "plateau": curve(*[max(4 - n / 10, 2) for n in range(120)]),
    "hardly fallen": curve(*[4.0] * 60),
    "warm-up": curve(2.0, 2.0, 2.1, 9.0, 9.0, 5.0, *[2 - n / 60 for n in range(100)]),
    "memorised": curve(*LOW),
}


def everything() -> list[tuple[str, str]]:
    found = [
        (name, note)
        for name, points in CURVES.items()
        for ended in (True, False)
        for note in notes(points, finished=ended)
    ]
    found += [("by rote", note) for check in CHECKS for note in notes(curve(*LOW), [], [check])]
    found += [("eval", note) for note in notes(curve(*LOW), [EvalEvent(step=len(LOW), eval_loss=3.0)])]
    rising = [EvalEvent(step=10 * n, eval_loss=loss) for n, loss in enumerate((3.0, 1.5, 2.0, 2.5), 1)]
    found += [("rising", note) for note in notes(curve(*[3 - n / 30 for n in range(60)]), rising)]
    return [(name, said) for name, note in found for said in (note.message, note.hint)]


SENTENCES = everything()


def test_all_kinds_of_notes_are_among_them() -> None:
    kinds = {note.kind for points in CURVES.values() for note in notes(points, finished=True)}
    assert kinds == {"nan", "divergence", "spike", "plateau", "warmup_short", "memorised"}
    assert {name for name, _ in SENTENCES} >= {"by rote", "eval", "rising"}


@pytest.mark.parametrize("sentence", sorted({said for _, said in SENTENCES}))
def test_every_note_has_its_chinese(sentence: str) -> None:
    chinese(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "train.learning_rate: the loss stopped being a number at step 5, in the batch with rows 3, 17 of nova; "
        "row 4 of alpaca.json; 3 more.",
        "train.learning_rate: the gradient stopped being a number at step 5, in the batch with row 3 of nova.",
        "Lower the learning rate (a third is a good try), add warm-up, or look at these rows.",
        "Step 4 is saved. Clone the run with a third of the learning rate, or look at these rows first.",
        "TensorBoard was switched off, the training goes on without it: 没有路由",
    ],
)
def test_a_run_that_blew_up_is_told_in_chinese(sentence: str) -> None:
    chinese(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "run 20261129-101010_g1 has made no model (it is failed); choose one that has finished",
        "run: run 20261129-101010_g1 uploaded a model and left no folder here (it is finished); "
        "choose what it uploaded",
        "source: the folder that run 20261129-101010_g1 made is no longer there (it is finished): /x/y.",
        "model: g1 is a GGUF, which llama.cpp and Ollama run and nothing here; run it with: llama-server -m /x/g1.gguf",
        "name: calculate is the name of a built-in tool; give yours another name",
        "the trained weights change nothing in the answers",
        "format: llama.cpp was not asked whether it reads the file as it was meant; the file is only read back. "
        "To have it asked, install its Python module and export again: pip install xllamacpp",
        "reading it back only; llama.cpp was not asked",
        "adapter: it was trained on another base model: its tensor a.q.lora_A.weight is 8 x 64, but layer a.q of the "
        "base model goes from 128 to 64.",
        "adapter: it was trained on another base model: it has a tensor a.q.lora_A.weight, but the base model has no "
        "layer a.q.",
        "adapter: it was trained on another base model: the base model has a layer a.q, but the adapter has no tensor "
        "for it.",
        "base: the weights of the model are incomplete (3 tensors, first model.norm.weight).",
        "adapter: adapter_model.safetensors in 小新 is damaged (HeaderTooLarge).",
        "Copy the adapter again, or use an earlier checkpoint of the run.",
        "base: it cannot be loaded (HeaderTooLarge).",
        "A file is damaged, or of an architecture that is not supported; copy the model again or choose another.",
        "adapter: 小新 holds a pickle file (adapter_model.bin), which is never loaded.",
        "Import it first (convert), which reads its weights only and saves them in safetensors format.",
        "adapter: run 20261129-101010_g1 has no adapter; its state is failed.",
        "Wait until the run has finished, or resume it; or choose one of its checkpoints.",
        "adapter: this run trained every weight (method full), so there is nothing to merge.",
        "more_adapters: 小新 has layers trained as a whole; it cannot be added to others or with a weight.",
        "base: a weights file of 小新 is damaged.",
        "max_shard_size: the model cannot be saved in files of 1KB (太小).",
        "out: the merged model needs 15.2 GB and /data/exports has 3.1 GB free.",
        "Free some space or choose a folder on another disk.",
        "hub: Hugging Face does not accept the token.",
        "Start again: files that went through are not sent twice.",
        "model: there is no model 'x' here; there are: base, tuned",
        "messages: the last message is the assistant's; end with a question of the user",
        "messages: message 3 is the result of a tool, but no call of a tool stands before it",
        "the model's output is not a number.",
        "Its weights are damaged, or need another number format.",
    ],
)
def test_what_merges_and_exports_say_is_told_in_chinese(sentence: str) -> None:
    chinese(sentence)


def test_what_a_tracker_lacks_is_told_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lacking([name for name in TRACKERS if name != "tensorboard"], {})
    assert len(found) == 4
    monkeypatch.setattr("studio.trackers.installed", lambda _: True)
    found += lacking(list(TRACKERS), {})
    assert len(found) == 6
    for problem in found:
        chinese(problem.message)
        chinese(problem.hint)


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({}, ["WANDB_API_KEY", "SWANLAB_API_KEY"]),
        ({"WANDB_API_KEY": "x", "SWANLAB_API_KEY": "y"}, []),
        ({"WANDB_MODE": "offline", "SWANLAB_MODE": "local"}, []),
        ({"WANDB_MODE": "online", "SWANLAB_API_KEY": "y"}, ["WANDB_API_KEY"]),
    ],
)
def test_services_on_the_web_need_their_key_unless_they_stay_here(
    environment: dict[str, str], refused: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("studio.trackers.installed", lambda _: True)
    found = lacking(list(TRACKERS), environment)
    assert [problem.message.rsplit(" ", 1)[1] for problem in found] == refused
    assert not any(word == "x" or word == "y" for problem in found for word in problem.message.split())


def chinese(sentence: str) -> None:
    said = translated(sentence, "zh-CN")
    assert said != sentence
    for word in ("the ", "step", "loss", "rows ", "None", "（）", " of "):
        assert word not in said, said
