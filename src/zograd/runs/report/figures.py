"""Draw panels as inline SVG in the colours of the page, and as one PNG.

The SVG holds no text of the user. In the PNG only the legend does, and it is not parsed as a formula.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from zograd.runs.report.panels import Curve, Panel
from zograd.runs.report.read import Recorded

MARK = "zograd report"
"""Written into each file: only files with this mark may be overwritten."""

LIGHT = ("#294989", "#ac350a", "#00a854", "#cc7895", "#00003a", "#6d3123", "#5714aa", "#5276ff")
DARK = ("#7fa0ff", "#e58900", "#14f08d", "#c78ab2", "#c7ffeb", "#c43529", "#8752ff", "#fff619")
"""Colours of runs, near those of Okabe and Ito (2008): any two differ by 25 in CIELAB for people with and without each
kind of colour blindness, and all stand out from the paper (contrast of 3)."""
DASHES = {"-": "solid", "--": "dashed", ":": "dotted"}
"""Line styles of matplotlib -> of CSS."""


@dataclass(frozen=True)
class Look:
    """The colours of text and of runs."""

    ink: str
    runs: tuple[str, ...]


PRINT = Look("#222222", LIGHT)
PLACES = Look("#0a0b0c", tuple(f"#0a0b1{k}" for k in range(len(LIGHT))))
"""Placeholders that `svg` replaces by the variables of the page."""


def colour(look: Look, run: int) -> str:
    """The colour of a run; colours repeat."""
    return look.runs[run % len(look.runs)]


def dashes(run: int) -> str:
    """The line style of a run: another one each time that the colours repeat."""
    return list(DASHES)[run // len(LIGHT) % len(DASHES)]


def letter(run: int) -> str:
    """The name of a run in figures and tables: A, B, ..., Z, AA, AB, ..."""
    return (letter(run // 26 - 1) if run >= 26 else "") + chr(ord("A") + run % 26)


def require_matplotlib() -> None:
    """Raise ImportError with the remedy if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ImportError('figures need matplotlib: pip install "zograd[bench]"') from None


@contextmanager
def plain_style(salt: str, ink: str) -> Iterator[None]:
    """Inside, matplotlib has its own defaults, not the user's, and ids depend on the figure alone."""
    from matplotlib import style

    ours = {
        "svg.hashsalt": f"zograd-{salt}", "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9, "axes.edgecolor": ink,
        "axes.labelcolor": ink, "text.color": ink, "xtick.color": ink, "ytick.color": ink, "axes.spines.top": False,
        "axes.spines.right": False, "axes.formatter.useoffset": False,
    }  # fmt: skip
    with style.context(["default", ours], after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the font lacks a letter
        yield


def svg(panel: Panel, number: int) -> str:
    """A figure as an <svg> element inside a page: without metadata and addresses, with ids of its own."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = io.StringIO()
    with plain_style(str(number), PLACES.ink):
        figure = Figure(figsize=(5.6, 3.1), facecolor="none")
        FigureCanvasSVG(figure)
        draw(figure.add_axes((0.14, 0.15, 0.84, 0.82)), panel, PLACES)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    for k, place in enumerate(PLACES.runs):
        text = text.replace(place, f"var(--run{k})")
    return re.sub(r"\s*\n\s*", "\n", text.replace(PLACES.ink, "currentColor")).strip()


def png(runs: Sequence[Recorded], panels: Sequence[Panel]) -> bytes:
    """All figures in one white picture, two in each row, with a legend of the runs at the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = [panel for panel in panels if not panel.empty]
    rows = max((len(drawn) + 1) // 2, 1)
    head = 0.35 + 0.2 * len(runs)
    out = io.BytesIO()
    with plain_style("png", PRINT.ink):
        figure = Figure(figsize=(11.5, head + 3.1 * rows), dpi=100)
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=(head, 3.1 * rows))
        top, body = parts
        handles = [Line2D([], [], color=colour(PRINT, i), ls=dashes(i), lw=2) for i in range(len(runs))]
        labels = [f"{letter(i)}  {clean(run.path)}" for i, run in enumerate(runs)]
        for text in top.legend(handles, labels, loc="center left", frameon=False).get_texts():
            text.set_parse_math(False)
        place = {"left": 0.08, "right": 0.98, "top": 1 - 0.12 / rows, "bottom": 0.15 / rows, "hspace": 0.42}
        grid = body.subplots(rows, 2, squeeze=False, gridspec_kw=place)
        for k, axes in enumerate(grid.flat):
            if k < len(drawn):
                draw(axes, drawn[k], PRINT)
                axes.set_title(drawn[k].title, fontsize=10, loc="left", parse_math=False)
            else:
                axes.set_axis_off()
        figure.savefig(out, format="png", metadata={"Software": MARK})
    return out.getvalue()


def clean(text: str, most: int = 110) -> str:
    """One printable line."""
    line = "".join(c if c.isprintable() else "?" for c in text)
    return line if len(line) <= most else "…" + line[1 - most :]


def draw(axes: Any, panel: Panel, look: Look) -> None:
    """The curves or bars of a panel."""
    from matplotlib.ticker import MaxNLocator

    if panel.bars:
        _bars(axes, panel, look)
        return
    _scale(axes, panel)
    for curve in panel.curves:
        _curve(axes, curve, look)
    if panel.level is not None:
        axes.axhline(panel.level, color=look.ink, lw=1.0, ls=(0, (5, 3)))
    if panel.x == "evaluations":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y, parse_math=False)
    axes.grid(color=look.ink, alpha=0.13, lw=0.6)


def _scale(axes: Any, panel: Panel) -> None:
    """Make the axis logarithmic if all values are positive and span a factor of 50 or more."""
    values = [v for c in panel.curves for v in (c.y, c.low, c.high) if v is not None and v.size]
    if values:
        low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
        if low > 0 and high >= 50 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")


def _curve(axes: Any, curve: Curve, look: Look) -> None:
    ink, dash = colour(look, curve.run), dashes(curve.run)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=ink, alpha=0.18, lw=0)
    marker = {"marker": "o", "ms": 3.5} if curve.dots or curve.x.size == 1 else {}
    axes.plot(curve.x, curve.y, color=ink, ls=dash, lw=1.4, **marker)
    if curve.crosses is not None and curve.crosses.size:
        height = np.full(curve.crosses.size, 0.03)
        axes.plot(curve.crosses, height, "x", color=ink, ms=5, transform=axes.get_xaxis_transform())


def _bars(axes: Any, panel: Panel, look: Look) -> None:
    for k, (run, inference, peak) in enumerate(panel.bars):
        axes.bar(k - 0.2, inference, 0.36, color=colour(look, run), alpha=0.4)
        axes.bar(k + 0.2, peak, 0.36, color=colour(look, run))
    axes.set_xticks(range(len(panel.bars)), [letter(run) for run, _, _ in panel.bars])
    axes.set_xlim(-0.8, len(panel.bars) - 0.2)
    axes.set_ylabel(panel.y)
    axes.grid(axis="y", color=look.ink, alpha=0.13, lw=0.6)
