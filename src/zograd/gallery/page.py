"""Pages of the gallery: one for each script, from what its full run found, and one that lists them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zograd.gallery.drawing import png
from zograd.gallery.index import About, Gallery, Ran
from zograd.gallery.machine import processor
from zograd.jsons import dumps

SOURCE = "src/zograd/{kind}/{name}.py"


def write(ran: Ran, kind: str, docs: Path) -> None:
    """Write NAME.json, NAME.png and NAME.md of a full run into docs/KIND. Raises ValueError where a claim fails."""
    about, folder = ran.about, docs / kind
    if ran.failure or ran.quick:
        raise ValueError(ran.failure or f"{about.name}: a page shows a full run, not a quick one")
    folder.mkdir(exist_ok=True)
    found = ran.finding
    said = {
        "script": about.sha256,
        "seed": ran.seed,
        "seconds": round(ran.seconds, 1),
        "processor": processor(),
        "numbers": dict(found.numbers),
        "claims": [claim.text for claim in found.claims],
        "figures": [figure.title for figure in found.figures],
    }
    result = json.loads(dumps(said))  # NaN becomes null
    (folder / f"{about.name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if found.figures:
        (folder / f"{about.name}.png").write_bytes(png(found.figures))
    (folder / f"{about.name}.md").write_text(page(about, kind, result), encoding="utf-8")


def write_index(gallery: Gallery, kind: str, docs: Path, introduction: Path) -> None:
    """Write docs/KIND.md, which lists the scripts that have a page, and their pages anew from what their runs found."""
    for name in gallery.names():
        about = gallery.about(name)
        result = read(about, kind, docs)
        if result is not None and result["script"] == about.sha256:
            (docs / kind / f"{name}.md").write_text(page(about, kind, result), encoding="utf-8")
    (docs / f"{kind}.md").write_text(
        index(gallery, kind, docs, introduction.read_text(encoding="utf-8")), encoding="utf-8"
    )


def read(about: About, kind: str, docs: Path) -> dict[str, Any] | None:
    """What `write` wrote of a script, or None."""
    path = docs / kind / f"{about.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def page(about: About, kind: str, result: Mapping[str, Any]) -> str:
    """The page of one script as Markdown."""
    source = SOURCE.format(kind=kind, name=about.name)
    rows = ", ".join(f"[{n}](../coverage.md)" for n in about.rows)
    lines = [
        f"<!-- Written by `zograd {kind} {about.name} --page` from the script and {about.name}.json. -->",
        "",
        f"# {about.title.rstrip('.')}",
        "",
    ]
    if result["figures"]:
        lines += [f"![{'; '.join(result['figures'])}]({about.name}.png)", ""]
    needs = f"pip install 'zograd[{','.join(about.needs)}]'" if about.needs else "pip install zograd"
    lines += [
        "<!-- not run: the tests of the gallery run it -->",
        "```sh",
        needs,
        f"zograd {kind} {about.name}",
        "```",
        "",
        "| | |",
        "|---|---|",
        *([f"| Systems | {rows} |"] if about.rows else []),
        f"| Paper | {cell(about.paper)} |",
        f"| Formula | {cell(about.formula)} |",
        f"| Compared with | {cell(about.evidence)} |",
        f"| What it does not show | {cell(about.extent)} |",
        f"| Time | {result['seconds']:g} s of one core ({cell(result['processor'])}), seed {result['seed']} |",
        "",
        "## What it found",
        "",
        "Each of these held in the run whose numbers stand below. A run in which one fails ends with exit code 1.",
        "",
        *(f"- {claim}" for claim in result["claims"]),
        "",
        "| number | value |",
        "|---|---:|",
        *(f"| {cell(name)} | {number(value)} |" for name, value in result["numbers"].items()),
        "",
        "## The script",
        "",
        f"[`{source}`](../../{source}), SHA-256 {about.sha256[:16]}.",
        "",
        "<!-- not run: the tests of the gallery run it -->",
        "```python",
        f'--8<-- "{source}"',
        "```",
        "",
    ]
    return "\n".join(lines)


def index(gallery: Gallery, kind: str, docs: Path, introduction: str) -> str:
    """The page that lists all scripts with a page of their own: picture, first line, time."""
    lines = [f"<!-- Written by `zograd {kind} --page`; its text is in docs/{kind}/introduction.txt. -->", ""]
    lines += [introduction.strip(), ""]
    rows = list(listed(gallery, kind, docs))
    lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def listed(gallery: Gallery, kind: str, docs: Path) -> Iterable[str]:
    """A row of the table for each script that has a page."""
    for name in gallery.names():
        about = gallery.about(name)
        result = read(about, kind, docs)
        if result is None:
            continue
        link = f"{kind}/{name}"
        picture = f'<img src="{link}.png" alt="{name}" width="300">' if result["figures"] else ""
        rows = f"Systems {', '.join(map(str, about.rows))}. " if about.rows else ""
        yield f"| {picture} | **[{name}]({link}.md)**<br>{cell(about.title)}<br>{rows}{result['seconds']:g} s |"


def cell(text: str) -> str:
    """A text in a cell of a table."""
    for mark in "|*_[":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split()).replace("<", "&lt;")


def number(value: float | None) -> str:
    """A number with four digits; JSON has no NaN, so `None` is what could not be measured."""
    if value is None:
        return "not measured"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.4g}"
