"""docs/coverage.md from docs/coverage.yaml: what zograd has of each published system, and the test that proves it.

    python tools/coverage.py            # writes the page
    python tools/coverage.py --check    # only says whether table and page are right; exit code 1 if not

A table that names something that does not exist is refused.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE, PAGE = ROOT / "docs" / "coverage.yaml", ROOT / "docs" / "coverage.md"
SYSTEMS = 66
NOTHING, CITATION = "nothing yet", "citation"
LACKS = "Missing: "
"""How the sentence of a note begins that says what keeps a row from being whole."""
FIELDS = {"number", "name", "source", "extent", "has", "tests", "compared", "note"}
EXTENTS = {
    "whole": "what the work proposes can be run",
    "part": "a piece of it, which the last column names",
    "mechanism": "what it proposes runs at a size where it can be checked against an exact answer; nothing is said "
    "about the setting of the work itself",
    CITATION: "outside of what zograd is for; named here and nowhere else",
    NOTHING: "where the last column says more, it says where it would belong",
}

RUNS = ("whole", "part", "mechanism")
"""Extents of rows of which something can be run."""

Row = Mapping[str, Any]


# ---- does it exist? --------------------------------------------------------------------------------------------------


def exported(*modules: str) -> Callable[[str], bool]:
    """Whether a name is public in one of these modules: in `__all__`, or defined there where there is none."""

    def exists(name: str) -> bool:
        for module in map(importlib.import_module, modules):
            own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
            if name in getattr(module, "__all__", own) and not name.startswith("_"):
                return True
        return False

    return exists


def command(name: str) -> bool:
    """Whether the command line has it: "plan", "bench step"."""
    import typer

    from zograd.cli import app

    group: Any = typer.main.get_command(app)
    for word in name.split():
        group = getattr(group, "commands", {}).get(word)
    return group is not None


def benchmark(name: str) -> bool:
    """Whether `python -m benchmarks.NAME` exists."""
    return in_file(f"benchmarks/{name}.py::app")


def interface(name: str) -> bool:
    import zograd

    return name in zograd.__all__ and callable(getattr(zograd, name))


def script(package: str) -> Callable[[str], bool]:
    """Whether a gallery has a script of this name."""
    return lambda name: name in importlib.import_module(package).GALLERY.names()


def menu(name: str) -> bool:
    from zograd import methods

    return name in methods.MENU


def problem(name: str) -> bool:
    """A name of `zograd bench geometry`, or a public name of a module of `zograd.problems`."""
    import zograd.problems as problems

    modules = (f"zograd.problems.{m.name}" for m in pkgutil.iter_modules(problems.__path__))
    return name in problems.PROBLEMS or exported(*modules)(name)


THINGS: dict[str, Callable[[str], bool]] = {
    "method": menu,
    "law": exported("zograd.laws"),
    "estimator": exported("zograd.estimators"),
    "rule": exported("zograd.rules"),
    "space": exported("zograd.spaces"),
    "set": exported("zograd.sets"),
    "schedule": exported("zograd.core.schedules"),
    "diagnostic": exported("zograd.diagnostics"),
    "control": exported("zograd.learning_rate", "zograd.control"),
    "interface": interface,
    "oracle": exported("zograd.oracles", "zograd.oracles.feature_reuse"),
    "command": command,
    "benchmark": benchmark,
    "problem": problem,
    "example": script("zograd.examples"),
    "figure": script("zograd.figures"),
    "objective": exported("zograd.objectives"),
    "design": exported("zograd.design"),
}
"""Kinds of what a row may have, and whether a name of that kind exists."""


@lru_cache
def defined(path: str) -> frozenset[str]:
    """Functions, methods ("Class::name") and assigned names of a Python file of the project."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return frozenset(found)


def in_file(reference: str) -> bool:
    """Whether "path.py::name" exists."""
    path, _, name = reference.partition("::")
    return name in defined(path)


def pytest_node(reference: str) -> bool:
    last = reference.rpartition("::")[2]
    return reference.startswith("tests/") and last.startswith("test_") and in_file(reference)


def dotted(name: str) -> bool:
    """Whether "package.module.name" can be imported."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False


COMPARED: dict[str, Callable[[str], bool]] = {
    "numpy": lambda reference: reference.startswith("tests/reference/") and in_file(reference),
    "torch": lambda name: name.startswith("torch.") and dotted(name),
    "solver": dotted,
    "autograd": bool,
    "closed form": bool,
    "exact": bool,
    "measured": bool,
}
"""What a row may have been compared with: a recurrence in NumPy, an implementation of torch, a solver of another
library, or in words the gradient of autograd, a formula, an exact solution, a measurement."""


# ---- the table -------------------------------------------------------------------------------------------------------


def pairs(items: Any) -> Iterator[tuple[str, str]]:
    """(kind, name) of each entry: a mapping of one key, or a bare word."""
    for item in items or ():
        if isinstance(item, Mapping):
            yield from ((str(kind), str(name)) for kind, name in item.items())
        else:
            yield str(item), ""


def faults(table: Mapping[str, Any]) -> list[str]:
    """What is wrong with the table, a line each."""
    found = []
    numbers = Counter(row.get("number") for row in table["systems"])
    found += [f"system {n} is missing" for n in range(1, SYSTEMS + 1) if n not in numbers]
    found += [f"system {n} has {times} rows" for n, times in numbers.items() if times > 1]
    found += [f"there is no system {n}" for n in numbers if n not in range(1, SYSTEMS + 1)]
    for row in (*table["systems"], *table["also"]):
        found += [f"{row.get('name', row)}: {fault}" for fault in faults_of(row)]
    listed = {
        name for row in (*table["systems"], *table["also"]) for kind, name in pairs(row["has"]) if kind == "method"
    }
    from zograd import methods

    found += [f"menu entry {name} is in no row" for name in methods.names() if name not in listed]
    return found


def faults_of(row: Row) -> list[str]:
    found = [f"unknown field {field!r}" for field in row.keys() - FIELDS]
    found += [f"no {field}" for field in ("name", "source", "has", "note") if not row.get(field)]
    has, compared = list(pairs(row.get("has"))), list(pairs(row.get("compared")))
    empty = [kind for kind, _ in has if kind in (NOTHING, CITATION)]
    if empty:
        found += ["there cannot be more beside " + empty[0]] if len(has) > 1 else []
        found += [f"{empty[0]}, but there are {field}" for field in ("extent", "tests", "compared") if row.get(field)]
    else:
        found += [] if row.get("tests") else ["no test proves it"]
        found += [] if row.get("extent", "whole") in RUNS else [f"unknown extent {row['extent']!r}"]
        found += [] if compared else ["it was compared with nothing"]
    if row.get("extent", "whole") != "whole" and LACKS not in (row.get("note") or ""):
        found.append(f"it is a {row['extent']}, and its note has no sentence {LACKS + '...'!r}")
    for kind, name in has:
        if kind in THINGS and not THINGS[kind](name):
            found.append(f"there is no {kind} {name!r}")
        elif kind not in (*THINGS, NOTHING, CITATION):
            found.append(f"{kind!r} is no kind of thing; use one of {', '.join(THINGS)}")
    found += [f"there is no test {test}" for test in row.get("tests") or () if not pytest_node(test)]
    for kind, name in compared:
        if kind not in COMPARED:
            found.append(f"{kind!r} is no kind of reference; use one of {', '.join(COMPARED)}")
        elif not COMPARED[kind](name):
            found.append(f"there is no {kind} reference {name!r}")
    return found


def extent(row: Row) -> str:
    """whole, part, citation or nothing yet."""
    ((first, _), *_) = pairs(row["has"])
    return first if first in EXTENTS else str(row.get("extent", "whole"))


# ---- the page --------------------------------------------------------------------------------------------------------


def page(table: Mapping[str, Any]) -> str:
    """The page as text."""
    systems = sorted(table["systems"], key=lambda row: row["number"])
    counts = Counter(extent(row) for row in systems)
    lines = [
        "<!-- Written by `make coverage` from docs/coverage.yaml: edit that file. -->",
        "",
        "# What zograd has of the field",
        "",
        *table["introduction"].strip().splitlines(),
        "",
        "| extent | systems | meaning |",
        "|---|---:|---|",
        *(f"| {name} | {counts[name]} | {meaning} |" for name, meaning in EXTENTS.items()),
        "",
        f"## The {SYSTEMS} systems",
        "",
        "| # | system | extent | zograd has | proved by | compared with | ours, different, missing |",
        "|---:|---|---|---|---|---|---|",
        *(f"| {row['number']} {cells(row)}" for row in systems),
        "",
        "## Also on the menu",
        "",
        *table["also_introduction"].strip().splitlines(),
        "",
        "| work | extent | zograd has | proved by | compared with | ours, different, missing |",
        "|---|---|---|---|---|---|",
        *(cells(row) for row in table["also"]),
        "",
    ]
    return "\n".join(lines)


def cells(row: Row) -> str:
    name = f"**{row['name']}**<br>{row['source']}"
    has = "<br>".join(
        f"{kind} " + ", ".join(f"`{name}`" for _, name in group)
        for kind, group in groupby(pairs(row["has"]), key=lambda pair: pair[0])
        if kind not in (NOTHING, CITATION)
    )
    tests = "<br>".join(linked(test) for test in row.get("tests") or ())
    compared = "<br>".join(
        {"numpy": f"NumPy {linked(what)}", "torch": f"`{what}`", "solver": f"`{what}`"}.get(kind, f"{kind}: {what}")
        for kind, what in pairs(row.get("compared"))
    )
    columns = (name, extent(row), has, tests, compared, " ".join(row["note"].split()))
    return "| " + " | ".join(column.replace("|", r"\|") for column in columns) + " |"


def linked(reference: str) -> str:
    path, _, name = reference.partition("::")
    return f"[{name.replace('::', '.')}](../{path})"


def main(arguments: list[str]) -> int:
    table = yaml.safe_load(TABLE.read_text())
    wrong = faults(table)
    text = "" if wrong else page(table)
    if not wrong and arguments == ["--check"] and PAGE.read_text() != text:
        wrong = [f"{PAGE.name} is not what the table gives; run make coverage"]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    if arguments != ["--check"]:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
