"""Tokens per second of the chat server, of plain `generate` and of `transformers serve`, in one run.

`python tests/bench/serve.py [--layers N --width N] [--tokens N] [--rounds N] [--contender=OPTIONS]` makes a model that
never ends an answer (the built-in one, or a random Llama of the given size), asks every contender in turn, so that a
busy machine is busy for all, and prints medians: tokens per second, per CPU second, and the wait for the first.
OPTIONS are more options of `transformers serve`, such as --continuous-batching.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
EMBER = ROOT / "assets" / "models" / "ember"
END = "<image>"  # a token neither model ever writes
AT_ONCE = (1, 4)
QUESTIONS = ("Who are you?", "What is the capital of France?", "Tell me about the sea.", "你是谁？")


@dataclass
class Taken:
    """What one contender took for one set of questions: seconds, CPU seconds, tokens, seconds to the first token."""

    wall: float
    cpu: float
    tokens: int
    first: float | None = None


@dataclass
class Contender:
    """`ask(n)` answers n questions at once."""

    name: str
    ask: Callable[[int], Taken]
    taken: dict[int, list[Taken]] = field(default_factory=lambda: {count: [] for count in AT_ONCE})


def make_model(folder: Path, layers: int, width: int) -> None:
    """The built-in model, or a random Llama, with an end token that does not come."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(EMBER)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", END)
    tokenizer.eos_token = END
    model: Any = AutoModelForCausalLM.from_pretrained(EMBER, dtype=torch.float32)
    if layers:
        settings = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
        heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256)}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **settings, **heads))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_generate(folder: Path, tokens: int) -> Contender:
    """transformers' own generate in this process; several questions are one padded batch that begins together."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="<|endoftext|>")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def ask(count: int) -> Taken:
        talks = [[{"role": "user", "content": text}] for text in QUESTIONS[:count]]
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": True}
        began, cpu = time.perf_counter(), time.process_time()
        inputs = tokenizer.apply_chat_template(talks, **options)
        out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        tokenizer.batch_decode(out)
        written = out.shape[1] - inputs["input_ids"].shape[1]
        return Taken(time.perf_counter() - began, time.process_time() - cpu, count * written)

    return Contender("generate", ask)


class Asked:
    """A server of the OpenAI protocol, started and waited for, and what it takes to answer."""

    def __init__(self, argv: list[str], port: int, model: str, tokens: int) -> None:
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        self.url, self.model, self.tokens = f"http://127.0.0.1:{port}/v1/chat/completions", model, tokens
        while True:
            try:
                self.one("Hi", [])
                return
            except httpx.HTTPError:  # not yet
                time.sleep(0.5)
            if self.process.poll() is not None:
                raise SystemExit(f"a server ended: {shlex.join(argv)}")

    def one(self, text: str, found: list[tuple[float, int]]) -> None:
        """One answer: (seconds to its first text, tokens) is added to `found`."""
        talk = [{"role": "user", "content": text}]
        body = {"model": self.model, "messages": talk, "temperature": 0, "max_tokens": self.tokens, "stream": True}
        body["stream_options"] = {"include_usage": True}
        began, first, usage = time.perf_counter(), 0.0, 0
        with httpx.stream("POST", self.url, json=body, timeout=900, trust_env=False) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not first and '"content":"' in line.replace('": "', '":"'):
                    first = time.perf_counter() - began
                if '"completion_tokens":' in line:
                    usage = json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"]
        found.append((first, usage))

    def ask(self, count: int) -> Taken:
        """So many answers at once."""
        watched = psutil.Process(self.process.pid)
        found: list[tuple[float, int]] = []
        threads = [threading.Thread(target=self.one, args=(text, found)) for text in QUESTIONS[:count]]
        began, before = time.perf_counter(), watched.cpu_times()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = watched.cpu_times()
        cpu = after.user + after.system - before.user - before.system
        first = statistics.mean(first for first, _ in found)
        return Taken(time.perf_counter() - began, cpu, sum(count for _, count in found), first)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def servers(folder: Path, tokens: int, contenders: list[str]) -> dict[str, Asked]:
    """Ours, and transformers' with each set of options."""
    port = free_port()
    argv = [sys.executable, "-m", "studio.engine", "serve", "--base", str(folder), "--port", str(port)]
    found = {"crucible": Asked(argv, port, "base", tokens)}
    for options in contenders:
        port = free_port()
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port)]
        argv = [*command, "--dtype", "float32", "--device", "cpu", *shlex.split(options)]
        found[f"transformers serve {options}".strip()] = Asked(argv, port, str(folder), tokens)
    return found


def report(contenders: list[Contender], tokens: int) -> None:
    """Medians."""
    for count in AT_ONCE:
        for contender in contenders:
            taken = contender.taken[count]
            row = {
                "contender": contender.name,
                "at_once": count,
                "tokens_per_s": round(statistics.median(one.tokens / one.wall for one in taken), 1),
                "tokens_per_cpu_s": round(statistics.median(one.tokens / one.cpu for one in taken), 1),
                "all_tokens_came": all(one.tokens == count * tokens for one in taken),
            }
            firsts = [one.first for one in taken if one.first is not None]
            if firsts:
                row["first_token_s"] = round(statistics.median(firsts), 3)
            sys.stdout.write(json.dumps(row) + "\n")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=0, help="of a random model; 0: the built-in one")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", action="append", default=[], help="more options of transformers serve")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder, given.layers, given.width)
        running = servers(folder, given.tokens, ["", *given.contender])
        contenders = [plain_generate(folder, given.tokens)]
        contenders += [Contender(name, asked.ask) for name, asked in running.items()]
        try:
            for number in range(given.rounds + 1):  # the first does not count
                for count, contender in itertools.product(AT_ONCE, contenders):
                    taken = contender.ask(count)
                    if number:
                        contender.taken[count].append(taken)
            report(contenders, given.tokens)
        finally:
            for asked in running.values():
                asked.process.kill()


if __name__ == "__main__":
    main()
