"""Pre-training from nothing on the generated dialogues, on one CPU core, resumable.

The data are endless: every chunk of rows is drawn afresh from its number. The learning rate follows
the share of the time budget that is used up: warm-up, flat, then linear decay to a fiftieth.
"""

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from assets.models.build.dialogues import dialogue
from assets.models.build.muon import Muon
from assets.models.build.names import IdPool
from assets.models.build.packing import Encoder, Rows, pack
from assets.models.build.sidecar import Sidecar
from assets.models.build.vocabulary import CONTEXT, load_or_train

DOCUMENTS_PER_CHUNK = 2000
WARMUP_STEPS = 50
FLAT_SHARE = 0.4
FLOOR = 0.02
MATRIX_RATE = 0.02
OTHER_RATE = 3e-3
SAVE_EVERY = 120.0


@dataclass
class Progress:
    """Where training stands; saved with every checkpoint."""

    step: int = 0
    chunk: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float, int]] = field(default_factory=list)


class Stream:
    """Batches of rows; chunk number k is always the same rows, given the counts so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, batch: int, seed: int, counts: Tensor | None = None) -> None:
        self.pool = IdPool(tokenizer)
        if counts is not None:
            self.pool.counts = counts.numpy()
        self.encoder = Encoder(tokenizer, self.pool)
        self.batch, self.seed = batch, seed
        self.rows: Rows | None = None
        self.at = 0

    def _draw(self, chunk: int) -> Rows:
        self.pool.refresh()
        r = random.Random(f"{self.seed}-{chunk}")
        documents = self.encoder.documents([dialogue(r, self.pool) for _ in range(DOCUMENTS_PER_CHUNK)])
        rows = pack(documents, self.encoder.separator, seed=chunk)
        order = np.random.default_rng([self.seed, chunk]).permutation(len(rows.ids))
        return Rows(rows.ids[order], rows.loss[order], rows.document[order])

    def next(self, progress: Progress) -> Rows:
        """The next batch; draws a new chunk when the last one is used up."""
        if self.rows is None or self.at + self.batch > len(self.rows.ids):
            self.rows, self.at = self._draw(progress.chunk), 0
            progress.chunk += 1
        part = slice(self.at, self.at + self.batch)
        self.at += self.batch
        return Rows(self.rows.ids[part], self.rows.loss[part], self.rows.document[part])

    def count(self, rows: Rows) -> None:
        """Record the targets of a batch that has been trained on."""
        targets = rows.ids[:, 1:][rows.loss[:, 1:] & (rows.document[:, 1:] == rows.document[:, :-1])]
        self.pool.counts += np.bincount(targets, minlength=len(self.pool.counts))


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised model of 5.5 M parameters."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64, intermediate_size=768, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in name)]
    return [
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
        Muon(matrices, rate=MATRIX_RATE),
    ]


def batch_loss(model: Qwen3ForCausalLM, rows: Rows) -> Tensor:
    """Mean cross-entropy over the targets of a batch; documents in a row do not see each other."""
    ids, document = torch.from_numpy(rows.ids), torch.from_numpy(rows.document)
    same = document[:, None, :, None] == document[:, None, None, :]
    allowed = same & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    hidden = model.model(input_ids=ids, attention_mask=allowed, use_cache=False).last_hidden_state
    chosen = torch.from_numpy(rows.loss)[:, 1:] & (document[:, 1:] == document[:, :-1])
    logits = model.lm_head(hidden[:, :-1][chosen])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][chosen])


def rate_factor(step: int, share: float) -> float:
    """Learning-rate factor from the step (warm-up) and the used share of the budget (decay)."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * (1.0 if share < FLAT_SHARE else max(FLOOR, (1 - share) / (1 - FLAT_SHARE)))


def save(
    folder: Path, model: Qwen3ForCausalLM, optims: list[torch.optim.Optimizer], stream: Stream, progress: Progress
) -> None:
    """Write a checkpoint atomically, so that an interruption never leaves half a file."""
    state = {
        "model": model.state_dict(),
        "optims": [o.state_dict() for o in optims],
        "counts": torch.from_numpy(stream.pool.counts),
        "progress": asdict(progress),
    }
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")


def restore(folder: Path, model: Qwen3ForCausalLM, optims: list[torch.optim.Optimizer], stream: Stream) -> Progress:
    """Load the checkpoint of `folder` when there is one."""
    if not (folder / "checkpoint.pt").is_file():
        return Progress()
    state = torch.load(folder / "checkpoint.pt")
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    stream.pool.counts[:] = state["counts"].numpy()
    return Progress(**state["progress"])


def export(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, stream: Stream) -> None:
    """Save the model in bfloat16 with its tokenizer and the number of times each token was a target."""
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    frozen = Qwen3ForCausalLM(model.config).to(torch.bfloat16)
    frozen.load_state_dict(state)
    frozen.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    (folder / "token_counts.json").write_text(json.dumps(stream.pool.counts.tolist()), encoding="utf-8")


def _export_progress(folder: Path, progress: Progress) -> None:
    (folder / "training.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")


def train(folder: Path, budget: float, batch: int, seed: int, spare_core: int | None = None) -> None:
    """Train for `budget` seconds in all, resuming from `folder`, and export to folder/model."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    tokenizer = load_or_train(folder / "tokenizer")
    counts = torch.zeros(len(tokenizer), dtype=torch.int64).share_memory_()
    model, stream = new_model(tokenizer, seed), Stream(tokenizer, batch, seed, counts)
    optims = optimizers(model)
    progress = restore(folder, model, optims, stream)
    sidecar = Sidecar(model, counts)
    if spare_core is not None:
        sidecar.start(folder / "tokenizer", batch + 2, seed + 1_000_000 + progress.step, spare_core)
    losses: list[float] = []
    last = saved = time.monotonic()
    while progress.seconds < budget:
        factor = rate_factor(progress.step, progress.seconds / budget)
        for rate, group in zip((OTHER_RATE, MATRIX_RATE), (g for o in optims for g in o.param_groups), strict=True):
            group["lr"] = rate * factor
        rows = stream.next(progress)
        loss = batch_loss(model, rows)
        loss.backward()
        sidecar.merge(int(rows.loss.sum()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        sidecar.publish()
        stream.count(rows)
        losses.append(loss.item())
        progress.step += 1
        progress.tokens += int((rows.document > 0).sum())
        now = time.monotonic()
        progress.seconds, last = progress.seconds + now - last, now
        if progress.step % 20 == 0:
            _report(progress, losses, stream, sidecar)
        if now - saved > SAVE_EVERY:
            save(folder, model, optims, stream, progress)
            saved = now
    save(folder, model, optims, stream, progress)
    export(folder / "model", model, tokenizer, stream)
    _export_progress(folder / "model", progress)


def _report(progress: Progress, losses: list[float], stream: Stream, sidecar: Sidecar) -> None:
    mean = sum(losses) / len(losses)
    progress.curve.append((progress.step, round(mean, 4), progress.tokens))
    losses.clear()
    low = int(np.sort(stream.pool.counts)[3])
    print(
        f"{progress.step} loss {mean:.4f} tokens {progress.tokens / 1e6:.2f}M {progress.seconds:.0f}s rarest {low} "
        f"merged {sidecar.merged}",
        flush=True,
    )


def main() -> None:
    """Command line: python -m assets.models.build.pretrain FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="working folder for checkpoints, outside the repository")
    parser.add_argument("--seconds", type=float, default=4200.0)
    parser.add_argument("--batch", type=int, default=10, help="rows of 256 tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spare-core", type=int, help="core whose idle time may add gradients")
    args = parser.parse_args()
    train(args.folder, args.seconds, args.batch, args.seed, args.spare_core)


if __name__ == "__main__":
    main()
