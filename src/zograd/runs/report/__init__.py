"""`zograd report`: one self-contained HTML page about one or several runs. Equal runs give equal bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zograd.core.tape import never_began
from zograd.files import atomic_write
from zograd.runs.errors import RunError
from zograd.runs.report.figures import MARK, png, require_matplotlib
from zograd.runs.report.page import page, waiting
from zograd.runs.report.panels import panels_of
from zograd.runs.report.read import read

__all__ = ["live", "report"]


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


def live(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    image: bool = False,
    every: float = 5.0,
    pause: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Keep the page of `report` up to date while runs are under way, and return what `report` returns at the end.

    The file loads itself again in a browser, also from a disk, and needs no server. A run may not have begun yet. Ends
    when all runs have finished, or by Ctrl-C; the last page stays as it is.

    every: seconds between two pages. pause: waits so long. say: told the address of the page.

    Raises as `report` does, but for a run that has not begun.

        live(["runs/a"], "a.html")
    """
    require_matplotlib()
    target, paths = Path(out), list(dict.fromkeys(map(Path, runs)))
    _check_free(target)
    said = False
    try:
        while True:
            begun = all(_began(path / "tape.zo") for path in paths)
            data = [read(path) for path in paths] if begun else []
            if begun and all(run.finished for run in data):
                break
            text = page(data, panels_of(data), every) if begun else waiting([str(path) for path in paths], every)
            atomic_write(target, text.encode("utf-8", "backslashreplace"))
            if not said:
                say(target.resolve().as_uri())
            said = True
            pause(every)
    except KeyboardInterrupt:
        pass
    return report(runs, out, image=image)


def _began(tape: Path) -> bool:
    return tape.exists() and not never_began(tape)


def _check_free(file: Path) -> None:
    """Raise RunError unless `file` is new or a report, in an existing folder."""
    if file.is_dir():
        raise RunError(f"{file} is a folder; --out names the file of the page, for example {file / 'report.html'}")
    if not file.parent.is_dir():
        raise RunError(f"there is no folder {file.parent} for {file.name}; create it first, or choose another --out")
    if file.exists() and MARK.encode() not in file.read_bytes()[:4096]:
        raise RunError(f"{file} exists and is not a report of zograd, so it is not overwritten; choose another --out")
