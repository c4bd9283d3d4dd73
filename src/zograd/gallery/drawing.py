"""The figures of a finding as one PNG, side by side."""

from __future__ import annotations

import io

from zograd.gallery.finding import Figure
from zograd.runs.report.figures import PRINT, colour, dashes, plain_style, require_matplotlib

WIDTH, HEIGHT, DPI = 4.8, 3.6, 96


def png(figures: tuple[Figure, ...]) -> bytes:
    """The figures in a row. Raises ImportError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure as Canvas

    with plain_style("gallery", PRINT.ink):
        canvas = Canvas(figsize=(WIDTH * len(figures), HEIGHT), dpi=DPI, layout="constrained")
        for axes, figure in zip(canvas.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
            for k, line in enumerate(figure.lines):
                ink = colour(PRINT, k)
                if line.points:
                    axes.plot(line.x, line.y, ".", color=ink, label=line.name, markersize=5)
                else:
                    axes.plot(line.x, line.y, dashes(k), color=ink, label=line.name, linewidth=1.6)
                if len(line.low) and len(line.high):
                    axes.fill_between(line.x, line.low, line.high, color=ink, alpha=0.18, linewidth=0)
            axes.set(title=figure.title, xlabel=figure.x, ylabel=figure.y)
            if "x" in figure.log:
                axes.set_xscale("log")
            if "y" in figure.log:
                axes.set_yscale("log")
            if figure.equal:
                axes.set_aspect("equal", adjustable="datalim")
            axes.grid(alpha=0.25)
            if any(line.name for line in figure.lines):
                axes.legend(fontsize="small")
        out = io.BytesIO()
        canvas.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()
