"""Where the data that ships with the project lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "presets" / "datasets"
IDENTITY = ROOT / "assets" / "identity"
DATA = ROOT / "assets" / "data"
EMBER = ROOT / "assets" / "models" / "ember"
