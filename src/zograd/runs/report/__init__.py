"""`zograd report`: one self-contained HTML page about one or several runs. Equal runs give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zograd.files import atomic_write
from zograd.runs.errors import RunError
from zograd.runs.report.figures import MARK, png, require_matplotlib
from zograd.runs.report.page import page
from zograd.runs.report.panels import panels_of
from zograd.runs.report.read import read

__all__ = ["report"]


def report(runs: Sequence[str | Path], out: str | Path = "report.html", *, image: bool = False) -> dict[str, Any]:
    """Write a page about run folders to `out`; with `image`, its figures to `out` with the suffix .png.

    Returns what `zograd report --json` prints. Cost: one read of every tape; no model is loaded.

    Raises RunError for a folder without a run and for an `out` that exists and is not a report, TapeError for a damaged
    tape, ImportError without matplotlib. Nothing is written then.

        report(["runs/a", "runs/b"], "compared.html")
    """
    require_matplotlib()
    target = Path(out)
    picture = target.with_suffix(".png") if image else None
    if picture == target:
        raise RunError(
            f"--out {target} names the page, and --png needs that name for the picture; give the page the suffix .html"
        )
    for file in filter(None, (target, picture)):
        _check_free(file)
    data = [read(folder) for folder in dict.fromkeys(map(Path, runs))]
    panels = panels_of(data)
    files = {target: page(data, panels).encode("utf-8", "backslashreplace")}
    if picture is not None:
        files[picture] = png(data, panels)
    for file, contents in files.items():
        atomic_write(file, contents)
    result = {"html": str(target), "bytes": target.stat().st_size, "runs": [run.summary() for run in data]}
    return result | ({"png": str(picture)} if picture is not None else {})


def _check_free(file: Path) -> None:
    """Raise RunError unless `file` is new or a report, in an existing folder."""
    if file.is_dir():
        raise RunError(f"{file} is a folder; --out names the file of the page, for example {file / 'report.html'}")
    if not file.parent.is_dir():
        raise RunError(f"there is no folder {file.parent} for {file.name}; create it first, or choose another --out")
    if file.exists() and MARK.encode() not in file.read_bytes()[:4096]:
        raise RunError(f"{file} exists and is not a report of zograd, so it is not overwritten; choose another --out")
