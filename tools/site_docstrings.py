"""An extension of griffe: docstrings written as plain text become Markdown that shows what they say.

Docstrings hold formulas (`<m, s>`, `x <- x - lr g`), lines such as `budget: evaluations, at most`, and indented
examples. Entries of the menu say formula, source and memory in `@entry(...)`, which is not part of the docstring.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

NAMED = re.compile(r"^([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*):(?: |$)")
"""`budget: text` and `x, fun: text` at the start of a line."""

SAID = {"formula": "Formula", "source": "Source", "extra_memory": "Extra memory"}


def as_markdown(text: str, names: set[str]) -> str:
    """The docstring as Markdown; lines that begin with some of `names` and a colon become items of a list."""
    if names:  # names in the middle of a line begin one of their own
        text = re.sub(rf"(?<=[.;]) ({'|'.join(map(re.escape, sorted(names)))})(?=:\s)", r"\n\1", text)
    lines: list[str] = []
    item = False
    for line in text.splitlines():
        found = NAMED.match(line)
        if found and set(found[1].split(", ")) <= names:
            if not item and lines and lines[-1]:
                lines.append("")
            listed = ", ".join(f"`{name}`" for name in found[1].split(", "))
            lines.append(f"- {listed}: {escaped(line[found.end() :])}")
            item = True
        elif line.startswith("    ") and not item:
            lines.append(line)  # an example
        elif not line.strip():
            lines.append("")
            item = False
        else:
            lines.append(("  " if item else "") + escaped(line.strip() if item else line))
    return "\n".join(lines)


def escaped(line: str) -> str:
    """Text outside of backticks with nothing that Markdown or HTML would take for a sign of its own."""
    parts = line.split("`")
    return "`".join(
        part if k % 2 else re.sub(r"([*_|\[\]])", r"\\\1", part).replace("<", "&lt;").replace(">", "&gt;")
        for k, part in enumerate(parts)
    )


def said_by_entry(function: griffe.Function) -> list[str]:
    """Formula, source and memory of a function of the menu, from the keywords of its decorator."""
    for decorator in function.decorators:
        call = ast.parse(str(decorator.value), mode="eval").body
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "entry":
            given = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
            formula = f"\n\n    {given['formula']}\n" if "formula" in given else ""
            told = [f"**{SAID[key]}.** {escaped(given[key])}" for key in ("source", "extra_memory") if key in given]
            return [formula, "\n\n".join(told)]
    return []


class PlainDocstrings(griffe.Extension):
    """Rewrites each docstring when its object has been read."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        self._rewrite(func, {p.name for p in func.parameters}, said_by_entry(func))

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        self._rewrite(attr, set())

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        self._rewrite(mod, set())

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        self._rewrite(cls, {m for m in cls.members if m.isidentifier()} | self._arguments(cls))

    @staticmethod
    def _arguments(cls: griffe.Class) -> set[str]:
        made = cls.members.get("__init__")
        return {p.name for p in made.parameters} if isinstance(made, griffe.Function) else set()

    @staticmethod
    def _rewrite(thing: griffe.Object, names: set[str], more: list[str] | None = None) -> None:
        if thing.docstring is not None:
            thing.docstring.value = "\n".join([as_markdown(thing.docstring.value, names), *(more or [])])
