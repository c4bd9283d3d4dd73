"""Every file says in its first line what it is for, and docs/architecture.md names no file that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import files

ROOT = files.ROOT
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
NAMES = [str(path.relative_to(ROOT)) for path in files.sources()]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_what_it_is_for(name: str) -> None:
    purpose = files.purpose(ROOT / name)
    assert 10 < len(purpose) <= files.LONGEST, purpose
    assert "|" not in purpose, "it is a cell of a table"


def test_the_table_has_a_row_for_each_file() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| .+ \|$", files.table(), re.M)
    assert rows == NAMES
    assert {"src/zograd/core/run.py", "src/zograd/noise/_native.cpp", "tools/files.py"} <= set(rows)


def test_a_file_without_a_docstring_has_no_purpose(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.cpp").write_text("int x;\n// later\n")
    assert files.purpose(tmp_path / "a.py") == files.purpose(tmp_path / "b.cpp") == ""


def test_files_that_the_text_names_exist() -> None:
    """`lens/lens.py` and `llm/scoring/scorer.py::Batches` are below src/zograd, other paths below the project."""
    named = re.findall(r"`([\w./]+\.(?:py|cpp|md|yaml))(?:::\w+)?`", ARCHITECTURE)
    assert "lens/lens.py" in named
    for path in named:
        assert any((top / path).is_file() for top in (ROOT, ROOT / "src" / "zograd", ROOT / "src/zograd/data")), path
