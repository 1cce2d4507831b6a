"""Writes the generated parts of the documentation: the file trees of both READMEs and the table of all fields.

.venv/bin/python assets/docs/make.py            write
.venv/bin/python assets/docs/make.py --check    exit 1 if something is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

from studio.config import RunConfig
from studio.schema import docs_table

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ROOT / "assets" / "docs" / "config.md"
REGION = re.compile(r"(<!-- files -->\n).*?(<!-- /files -->)", re.DOTALL)
FOLDERS = (
    "studio",
    "studio/records",
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
