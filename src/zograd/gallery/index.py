"""The scripts of a package: what their docstrings say, and how one is run."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from zograd.errors import UsageError
from zograd.gallery.finding import Claim, Finding

FIELDS = ("Rows", "Paper", "Formula", "Evidence", "Extent", "Needs", "Seconds")
"""What the docstring of a script says after its first line, in this order."""
NOTHING = "nothing more"
"""The value of `Needs` where zograd alone is enough."""


@dataclass(frozen=True, slots=True)
class About:
    """What the docstring of a script says.

    title: its first line. rows: systems of docs/coverage.md. needs: extras of zograd. seconds: of a full run on one
    core. sha256: of the script.
    """

    name: str
    title: str
    rows: tuple[int, ...]
    paper: str
    formula: str
    evidence: str
    extent: str
    needs: tuple[str, ...]
    seconds: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A run of a script: what it found, and the seconds of this process that it took."""

    about: About
    seed: int
    quick: bool
    finding: Finding
    seconds: float

    @property
    def judged(self) -> tuple[Claim, ...]:
        """The claims that this run can judge: a quick run cannot judge those that need the size of the full one."""
        return tuple(claim for claim in self.finding.claims if not (self.quick and claim.full_only))

    @property
    def failure(self) -> str | None:
        """The claims that do not hold, as one sentence; None if all hold."""
        failed = [claim.text for claim in self.judged if not claim.holds]
        return f"{len(failed)} of {len(self.judged)} claims do not hold: {'; '.join(failed)}" if failed else None


@dataclass(frozen=True)
class Gallery:
    """The scripts of a package. Listing them imports none of them."""

    package: str

    @cached_property
    def sources(self) -> dict[str, str]:
        """Name -> text of each script, in order."""
        found = [p for p in files(self.package).iterdir() if p.name.endswith(".py") and not p.name.startswith("_")]
        return {p.name[:-3]: p.read_text(encoding="utf-8") for p in sorted(found, key=lambda p: p.name)}

    def names(self) -> tuple[str, ...]:
        """The names of the scripts."""
        return tuple(self.sources)

    def about(self, name: str) -> About:
        """What a script says of itself. Raises UsageError for an unknown name, ValueError where a field is missing."""
        if name not in self.sources:
            what = self.package.rpartition(".")[2]
            raise UsageError(f"there is no {what[:-1]} {name!r}; `zograd {what}` lists {len(self.sources)} of them")
        return parsed(name, self.sources[name])

    def run(self, name: str, *, seed: int = 0, quick: bool = False) -> Ran:
        """Run a script. Raises ImportError with the extra that holds a missing package."""
        about = self.about(name)
        try:
            module: Any = importlib.import_module(f"{self.package}.{name}")
            start = time.process_time()
            finding = module.run(seed=seed, quick=quick)
        except ImportError as e:
            if not about.needs or (e.name or "").partition(".")[0] == "zograd":
                raise
            extras = ",".join(about.needs)
            raise ImportError(f"{name} needs the package {e.name}: pip install 'zograd[{extras}]'") from e
        return Ran(about, seed, quick, finding, time.process_time() - start)


def parsed(name: str, source: str) -> About:
    """`About` of a script from its text."""
    doc = ast.get_docstring(ast.parse(source)) or ""
    title, _, rest = doc.partition("\n")
    said: dict[str, str] = {}
    last = ""
    for line in rest.strip().splitlines():
        match = re.match(rf"({'|'.join(FIELDS)})\s+(\S.*)", line)
        if match:
            last = match[1]
            said[last] = match[2].strip()
        elif last and line.strip():
            said[last] += " " + line.strip()
    missing = [word for word in FIELDS if word not in said]
    if missing or not title:
        raise ValueError(f"the docstring of {name} has no {', '.join(missing) or 'first line'}")
    needs = () if said["Needs"] == NOTHING else tuple(re.split(r"[,\s]+", said["Needs"]))
    return About(
        name=name,
        title=title.strip(),
        rows=tuple(int(n) for n in re.findall(r"\d+", said["Rows"])),
        paper=said["Paper"],
        formula=said["Formula"],
        evidence=said["Evidence"],
        extent=said["Extent"],
        needs=needs,
        seconds=float(said["Seconds"]),
        sha256=hashlib.sha256(source.encode()).hexdigest(),
    )
