"""Asks llama.cpp what it reads in a GGUF file: its token ids, its rendering of the chat template, its answers.

llama.cpp ends its process when a file is not as it expects, so it runs in a child that lives for one list of questions:
`python -m studio.engine.formats.llama_cpp`, questions as JSON on standard input, answers on standard output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studio.processes import bare_environment

MODULE = "xllamacpp"
NOT_ASKED = (
    "format: llama.cpp was not asked whether it reads the file as it was meant; the file is only read back. To have it "
    f"asked, install its Python module and export again: pip install {MODULE}"
)
TOP = 8  # likeliest tokens that are told at each place
_SECONDS = 120  # for one answer over the loopback; loading has no limit
_LONGEST = 400
_ROOT = Path(__file__).resolve().parents[3]


class Refused(Exception):
    """llama.cpp does not take the file; the text is what it said."""


def available() -> bool:
    """Whether llama.cpp's Python module is installed."""
    return find_spec(MODULE) is not None


def ask(questions: dict[str, Any]) -> dict[str, Any]:
    """The answers to `questions`: `file`, `context` and `tokens` (most of one answer), and lists to work through.

    `texts` ([text, whether the begin token may be added]) gives `ids`, `conversations` (lists of messages) gives
    `rendered`, `prompts` (token ids) gives `answers`: for each token its id and {id: log probability} of the likeliest.

    Raises Refused when llama.cpp does not take the file.
    """
    environment = {**bare_environment(), "PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    child = subprocess.run(
        [sys.executable, "-m", "studio.engine.formats.llama_cpp"],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        check=False,
    )
    if child.returncode != 0:
        raise Refused(_reason(child.stderr))
    answers: dict[str, Any] = json.loads(child.stdout)
    return answers


def _reason(said: str) -> str:
    """The line of llama.cpp's log that says why."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error|assert|failed", line, re.IGNORECASE)]
    return (telling or lines or ["it gave no reason"])[0][-_LONGEST:]


def _answer(questions: dict[str, Any]) -> dict[str, Any]:
    server = _load(Path(questions["file"]), int(questions["context"]))
    address = server.listening_address
    return {
        "build": _version(),
        "ids": [_ids(address, text, begin) for text, begin in questions["texts"]],
        "rendered": [
            _post(address, "/apply-template", {"messages": talk})["prompt"] for talk in questions["conversations"]
        ],
        "answers": [_continue(address, prompt, int(questions["tokens"])) for prompt in questions["prompts"]],
    }


def _load(file: Path, context: int) -> Any:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.n_parallel, settings.port = context, 1, 0
    settings.n_gpu_layers, settings.warmup = 0, False
    settings.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
    # As precisely as it can: what is compared are the weights, not how the past is remembered.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def _version() -> str:
    from importlib.metadata import version

    return f"{MODULE} {version(MODULE)}"


def _ids(address: str, text: str, begin: bool) -> list[int]:
    found = _post(address, "/tokenize", {"content": text, "add_special": begin, "parse_special": True})["tokens"]
    return [int(number) for number in found]


def _post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_SECONDS) as response:
        return json.load(response)


def _continue(address: str, prompt: list[int], tokens: int) -> list[dict[str, Any]]:
    """The likeliest continuation, token by token.

    Each is asked for alone: of several, it leaves out the chances of those that end within a character.
    """
    found: list[dict[str, Any]] = []
    body = {"n_predict": 1, "temperature": 0.0, "n_probs": TOP, "cache_prompt": True, "return_tokens": True}
    for _ in range(tokens):
        so_far = [*prompt, *(token["id"] for token in found)]
        result = _post(address, "/completion", body | {"prompt": so_far})
        if not result["tokens"]:
            break
        chances = result.get("completion_probabilities") or [{}]
        top = {str(other["id"]): other["logprob"] for other in chances[0].get("top_logprobs", ())}
        found.append({"id": int(result["tokens"][0]), "top": top})
    return found


def main() -> int:
    """Answer what is asked on standard input; llama.cpp's own words go to standard error."""
    questions = json.load(sys.stdin)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever llama.cpp prints must not get between the answers
    json.dump(_answer(questions), out)
    out.close()
    sys.stderr.flush()
    os._exit(0)  # its threads need not be waited for


if __name__ == "__main__":
    raise SystemExit(main())
