"""The shape of the code, held by machine: who imports what, how long things get, what they may be called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "launch.py", *sorted((ROOT / "studio").rglob("*.py"))]
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "deepspeed"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "handler", "handlers", "misc"}
LONGEST_FUNCTION = 60
LONGEST_TAB_BUILDER = 80
MEAN_FUNCTION = 15
LONGEST_FILE = 350
MOST_ARGUMENTS = 6
MACHINE_PATH = re.compile(r"""(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp)/\w""")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file, methods and inner ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def place(path: Path, function: Function | None = None) -> str:
    """Where something is, for a message."""
    return f"{path.relative_to(ROOT)}" + (f":{function.lineno} {function.name}" if function else "")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after a statement, run in a new process."""
    program = f"import sys\n{statement}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["studio.ui.app", "studio.ui.server", "studio.cli", "studio.runner", "studio.demo"])
def test_the_heavy_libraries_stay_out_of_the_studio_process(module: str) -> None:
    assert not loaded_by(f"import {module}") & HEAVY


@pytest.mark.parametrize("module", ["studio.cli", "studio.runner", "studio.records", "studio.presets"])
def test_only_the_browser_side_loads_gradio(module: str) -> None:
    assert "gradio" not in loaded_by(f"import {module}")


def test_every_verb_builds_its_parser_without_heavy_libraries() -> None:
    assert not loaded_by("from studio.cli import build_parser; build_parser()") & (HEAVY | {"gradio"})


def test_unit_tier_loads_neither_torch_nor_gradio() -> None:
    code = "import pytest; assert pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider', 'tests/unit']) == 0"
    collected = loaded_by(f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n    {code}")
    assert not collected & (HEAVY | {"gradio"})


def test_import_contracts_hold() -> None:
    run = "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("runner.py", "import torch"),
        ("ui/app.py", "from studio.engine import train"),
        ("records/store.py", "import gradio"),
        ("config.py", "import studio.runner"),
    ],
)
def test_import_contracts_can_fail(tmp_path: Path, where: str, line: str) -> None:
    """Each contract, broken on purpose in a copy: a contract that accepts everything would go unnoticed."""
    for source in SOURCES[1:]:
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    broken = tmp_path / "studio" / where
    broken.write_text(f"{broken.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    run = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    run += "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "BROKEN" in done.stdout


def test_functions_are_short() -> None:
    too_long = [
        f"{place(path, function)}: {length(function)} lines"
        for path in SOURCES
        for function in functions(path)
        if length(function) > (LONGEST_TAB_BUILDER if "tabs" in path.parts else LONGEST_FUNCTION)
    ]
    assert not too_long


def test_functions_are_short_on_average() -> None:
    lengths = [length(function) for path in SOURCES for function in functions(path)]
    assert sum(lengths) / len(lengths) <= MEAN_FUNCTION


def test_files_are_short() -> None:
    """Lines that are neither empty, comment nor docstring."""
    too_long = {place(path): count for path in SOURCES if (count := code_lines(path)) > LONGEST_FILE}
    assert not too_long


def code_lines(path: Path) -> int:
    """Lines of code of a file."""
    text = path.read_text(encoding="utf-8")
    lines = {n for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_functions_take_few_arguments() -> None:
    greedy = [
        place(path, function)
        for path in SOURCES
        for function in functions(path)
        if len([a for a in arguments(function) if a.arg not in ("self", "cls")]) > MOST_ARGUMENTS
    ]
    assert not greedy


def arguments(function: Function) -> list[ast.arg]:
    """Every named argument."""
    given = function.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]


def test_every_function_is_typed() -> None:
    untyped = [
        place(path, function)
        for path in SOURCES
        for function in functions(path)
        if function.returns is None
        or any(a.annotation is None for a in arguments(function) if a.arg not in ("self", "cls"))
    ]
    assert not untyped


def test_every_module_says_what_it_is() -> None:
    silent = [place(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [place(path) for path in SOURCES if {path.stem, *path.relative_to(ROOT).parts} & FORBIDDEN_NAMES]


def tracked_text() -> Iterator[tuple[Path, str]]:
    """Every file of the project that is text (as git lists them; a copy without git has none to check)."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, cwd=ROOT, check=True).stdout
    for name in filter(None, listed.decode("utf-8").split("\0")):
        path = ROOT / name
        if not path.is_file() or path.stat().st_size > 1_000_000:
            continue
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_file_names_a_path_of_some_machine() -> None:
    named = [
        f"{place(path)}: {found.group()}"
        for path, text in tracked_text()
        if path != Path(__file__) and path.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".js", ".css"}
        for found in MACHINE_PATH.finditer(text)
    ]
    assert not named


def test_old_pythons_can_read_the_launcher() -> None:
    """It has to parse there to be able to say that it is too old there."""
    ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_the_launcher_needs_the_standard_library_only() -> None:
    tree = ast.parse((ROOT / "launch.py").read_text(encoding="utf-8"))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= set(sys.stdlib_module_names)
