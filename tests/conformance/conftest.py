"""Puts the shared problems and the papers' recurrences (`tests/reference`) on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reference"))
