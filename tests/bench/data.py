"""How fast rows become packed tokens, and in how much memory: ours, and TRL's own preparation of the same rows.

    python tests/bench/data.py [ROWS ...]      default: 100000 rows both ways, then ours with 10k, 100k and 1M rows

Each measurement is a process of its own. No test: timings are for side-by-side reading only.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "assets" / "models" / "ember"
MAX_LENGTH = 1024
WORDS = (ROOT / "assets" / "models" / "ember" / "README.md").read_text(encoding="utf-8").split()


def write_rows(path: Path, count: int) -> None:
    """Alpaca-like rows: a question of about 20 words, every third with an input, an answer of about 60."""
    rng = random.Random(count)

    def words(mean: int) -> str:
        return " ".join(rng.choices(WORDS, k=max(1, round(rng.expovariate(1 / mean)))))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {"instruction": words(20), "input": words(15) if number % 3 == 0 else "", "output": words(60)}
            file.write(json.dumps(row) + "\n")


def report(start: float, **numbers: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - start, "cpu": time.process_time(), "peak_mb": peak, **numbers}))


def ours(path: Path, cache: Path) -> None:
    """Read, map, render, tokenise with mask, pack."""
    from studio.config import DataSection
    from studio.records import DatasetStore
    from studio.records.chat_tokenizer import ChatTokenizer
    from studio.records.counts import Numbers, counts_of, prepare
    from studio.records.sources import Tables, mixed

    start = time.monotonic()
    data = DataSection(dataset=str(path), max_length=MAX_LENGTH)
    found, _ = mixed(data, DatasetStore(cache), ChatTokenizer.from_folder(MODEL), Tables(cache / "tokens"))
    numbers = Numbers(MAX_LENGTH, packing=True)
    counts = counts_of(prepare(found, numbers), numbers)
    report(start, tokens=counts.tokens, packs=counts.packs, trained=counts.trained_tokens)


def trl(path: Path, cache: Path, processes: int) -> None:
    """TRL's SFTTrainer: chat template, tokenise with assistant mask, pack. The map to messages is done before."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    disable_progress_bar()

    def to_messages(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
        question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        turns = (("user", question), ("assistant", row["output"]))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    rows = rows.map(to_messages, remove_columns=rows.column_names)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    settings = SFTConfig(
        output_dir=str(cache), packing=True, max_length=MAX_LENGTH, assistant_only_loss=True, use_cpu=True, bf16=False,
        report_to=[], dataset_num_proc=processes if processes > 1 else None, disable_tqdm=True, padding_free=False,
    )  # fmt: skip
    start = time.monotonic()
    trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    report(start, packs=len(trainer.train_dataset))


def measure(what: str, count: int, folder: Path) -> dict[str, float]:
    """One measurement in a process of its own; its last line is the result."""
    path = folder / f"{count}.jsonl"
    if not path.exists():
        write_rows(path, count)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        command = [sys.executable, __file__, "--measure", what, str(path), cache]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(
        f"{what:<16}{count:>9,} rows  {found['seconds']:7.1f} s ({found['cpu']:.1f} CPU s)  "
        f"{count / found['seconds']:9,.0f} rows/s  {found['peak_mb']:6.0f} MB  {found['packs']:,.0f} packs",
        flush=True,
    )
    return found


def main(counts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder, count = Path(temporary), counts[0] if counts else 100_000
        mine = measure("ours", count, folder)
        for other in ("trl", "trl-2-processes"):
            theirs = measure(other, count, folder)
            print(f"{'':14}ours takes {mine['seconds'] / theirs['seconds']:.2f} times as long", flush=True)
        for count in counts[1:] or ([] if counts else [10_000, 100_000, 1_000_000]):
            measure("ours", count, folder)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--measure" in sys.argv:
        what, path, cache = sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
        ours(path, cache) if what == "ours" else trl(path, cache, 2 if "2" in what else 1)
    else:
        main([int(word) for word in sys.argv[1:]])
