"""The documentation is true: generated parts are current, links lead somewhere, the commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in ROOT.glob("*.md"))
LINK = re.compile(r"(?:\]\(|src=\"|href=\")([^)\"#\s]+)")


def test_generated_parts_are_current():
    done = subprocess.run(
        [sys.executable, str(ROOT / "assets" / "docs" / "make.py"), "--check"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nrun: python assets/docs/make.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readme_begins_with_the_two_commands(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.index("python launch.py ") < text.index("python launch.py test")


def test_every_verb_of_the_readme_exists():
    from studio.cli import build_parser

    verbs = set(build_parser()._subparsers._group_actions[0].choices)
    named = set(re.findall(r"python launch\.py ([a-z][a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named
    assert named <= verbs


def test_the_licence_is_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
