"""A name never seen is taught in Chinese alone, from the command line, with nothing faked.

In a file of its own: it takes as long as the whole real job (which teaches in both languages), and runs beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from studio import runner


def test_the_demo_passes_with_a_name_never_seen(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "studio.cli", "demo", "--json", "--workspace", str(tmp_path)]
    done = subprocess.run(
        [*argv, "--name", "龘靐小助理", "--author", "鑫淼垚", "--lang", "zh"],
        capture_output=True, text=True, encoding="utf-8", cwd=runner.ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-3000:]
    verdict = json.loads(done.stdout)["verdict"]
    assert verdict["learned"]["share"] >= 0.9
    assert verdict["leaked"]["share"] <= 0.05
    assert verdict["forgot"]["retained"] >= 0.95
