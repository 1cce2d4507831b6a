"""Writes the generated parts of the documentation: the file trees of both READMEs, the tables of fields, models and
of what dividing a training takes.

.venv/bin/python assets/docs/make.py            write
.venv/bin/python assets/docs/make.py --check    exit 1 if something is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

from scaling import scaling

from studio.config import RunConfig
from studio.layouts import layouts_table
from studio.preset_files import models_table
from studio.schema import docs_table

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ROOT / "assets" / "docs" / "config.md"
MODELS = ROOT / "assets" / "docs" / "models.md"
SCALING = ROOT / "assets" / "docs" / "scaling.md"
MODELS_INTRO = """# Which models load, and how

Generated from studio/layouts.py and presets/models. Loading:

* **native**: the installed transformers knows the architecture.
* **converted**: the folder is in a layout of its own, but what the model computes is a known architecture. It is
  converted exactly when it is first loaded and kept in `workspace/cache/converted`; training, 4 bits, chat and merge
  work as for every other model, and none of its own code runs. `merge --layout original` writes the old layout back.
* **remote code**: the model computes something no installed architecture does. It needs Python code of its own,
  which runs only if the studio was started with `--trust-remote-code`; else it is refused before anything starts.
* **no**: GGUF files, weights as pickle files (`.bin`), weights that are quantised already, and models that write
  no text.

## Families with a layout of their own

{layouts}
## Every model with a preset

Chat template: the name of ours, for models without one.

"""
REGION = re.compile(r"(<!-- files -->\n).*?(<!-- /files -->)", re.DOTALL)
FOLDERS = (
    "studio",
    "studio/records",
    "studio/foreign",
    "studio/cli",
    "studio/engine",
    "studio/ui",
    "studio/ui/tabs",
    "studio/ui/widgets",
)


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.][.]) (?=[A-Z`])", line)[0].rstrip(".")


def tree() -> str:
    """Every module of the package with what it is, folder by folder."""
    lines = ["```"]
    for folder in FOLDERS:
        lines.append(f"{folder}/")
        modules = sorted(p for p in (ROOT / folder).glob("*.py") if p.name != "__init__.py" or folder == "studio/cli")
        width = max(len(p.name) for p in modules) + 2
        lines += [f"  {p.name:<{width}}{first_sentence(p)}" for p in modules]
    return "\n".join([*lines, "```"]) + "\n"


def wanted() -> dict[Path, str]:
    """Every generated file with the text it must have."""
    texts = {
        FIELDS: f"# Every field of a run's configuration\n\nGenerated from studio/config.py.\n\n{docs_table(RunConfig)}"
    }
    texts[MODELS] = MODELS_INTRO.format(layouts=layouts_table()) + models_table()
    texts[SCALING] = scaling()
    for name in ("README.md", "README.zh.md"):
        path = ROOT / name
        texts[path] = REGION.sub(lambda m: m[1] + tree() + m[2], path.read_text(encoding="utf-8"))
    return texts


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is out of date")
    check = parser.parse_args().check
    stale = [p for p, text in wanted().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if check else 'writing'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted()[path], encoding="utf-8")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
