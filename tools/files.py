"""A table of every file of the package with its purpose, from the docstrings: `make files`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("src/zograd", "benchmarks", "tools")
LONGEST = 118


def sources() -> Iterator[Path]:
    """The files that hold code, in order."""
    for part in PARTS:
        yield from sorted(p for p in (ROOT / part).rglob("*") if p.suffix in (".py", ".cpp", ".h"))


def purpose(path: Path) -> str:
    """The first line of the docstring of a Python file, or of the comment that begins a C++ file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    comment = re.match(r"(?:// ?(.*)\n)|(?:/\*+\s*(.*?)\s*(?:\*/|\n))", text)
    return next(filter(None, comment.groups()), "") if comment else ""


def table() -> str:
    """Path and purpose of each file, as a Markdown table."""
    rows = (f"| `{path.relative_to(ROOT)}` | {purpose(path)} |" for path in sources())
    return "\n".join(["| file | purpose |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    print(table(), end="")
