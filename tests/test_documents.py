"""docs/architecture.md has a line for every file, and names none that is gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
COMPILED = {".pyc", ".so"}


def described(text: str) -> dict[str, str]:
    """path -> purpose, from the table at the end."""
    _, table = text.split("\n## Every file\n")
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", table, re.M)
    assert len(rows) == len(dict(rows)) == table.strip().count("\n") - 1, "one path a row, no path twice"
    return dict(rows)


def sources() -> set[str]:
    """Every file of the package and of tools, but for compiled ones and the marker of types."""
    files = (file for top in ("src/zograd", "tools") for file in (ROOT / top).rglob("*") if file.is_file())
    return {str(f.relative_to(ROOT)) for f in files if f.suffix not in COMPILED and f.name != "py.typed"}


def missing(purposes: dict[str, str]) -> set[str]:
    """Files and folders of tests without a line. Files that are no code may be covered by their folder."""
    code = {f for f in sources() if f.endswith((".py", ".cpp"))}
    data = {f for f in sources() - code if f"{Path(f).parent}/" not in purposes}
    tests = {f"{file.parent.relative_to(ROOT)}/" for file in (ROOT / "tests").rglob("*.py")}
    return (code | data | tests) - set(purposes)


def test_every_file_has_a_line() -> None:
    assert missing(described(ARCHITECTURE)) == set()


def test_every_line_has_a_file() -> None:
    for path in described(ARCHITECTURE):
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    "path", ["src/zograd/run.py", "src/zograd/noise/_native.cpp", "src/zograd/data/", "tests/llm/"]
)
def test_a_line_that_is_gone_is_missed(path: str) -> None:
    text = re.sub(rf"^\| `{re.escape(path)}` .*\n", "", ARCHITECTURE, flags=re.M)
    assert missing(described(text))


def test_files_that_the_text_names_exist() -> None:
    """`stores/lens.py` and `llm/task.py::Batches` are below src/zograd, other paths below the project."""
    named = re.findall(r"`([\w./]+\.(?:py|cpp|md|yaml))(?:::\w+)?`", ARCHITECTURE)
    assert "stores/lens.py" in named
    for path in named:
        assert any((top / path).is_file() for top in (ROOT, ROOT / "src" / "zograd", ROOT / "src/zograd/data")), path
