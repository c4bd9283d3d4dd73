"""docs/methods.md and its figures, as a function of the results file alone."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.methods import KINDS, REFUSED, WORSE
from benchmarks.results import Line, WithRuns, load

BASELINE = "mezo"


@dataclass(frozen=True)
class Cell(WithRuns):
    """One method on one problem: its runs under the latest setup that the file has."""

    problem: str
    kind: str
    method: str
    budget: int
    tuning: Line
    runs: tuple[Line, ...]

    @property
    def quartiles(self) -> tuple[float, float]:
        """Order statistics at or outside of the quartiles."""
        values, last = sorted(self.values), len(self.runs) - 1
        return values[math.floor(0.25 * last)], values[math.ceil(0.75 * last)]

    @property
    def diverged(self) -> int:
        return sum(run["diverged"] for run in self.runs)

    @property
    def start(self) -> float:
        return float(statistics.median(run["start"] for run in self.runs))

    @property
    def evaluations_per_step(self) -> float:
        """As they were spent, in forward passes: less than one where a step takes a few terms of a sum."""
        return float(sum(run["evaluations"] for run in self.runs) / max(sum(run["steps"] for run in self.runs), 1))

    @property
    def at_edge(self) -> bool:
        """Whether the tuned learning rate is the smallest or largest that was tried."""
        rates = [float(lr) for lr in self.tuning["grid"]]
        return bool(rates) and self.tuning["lr"] in (min(rates), max(rates))

    def evaluations_to(self, target: float) -> float:
        """Median over the runs of the first mark of the budget at which the value is at the target or below."""
        return statistics.median(
            next(
                (
                    (k + 1) / len(run["curve"]) * self.budget
                    for k, value in enumerate(run["curve"])
                    if value is not None and value <= target
                ),
                math.inf,
            )
            for run in self.runs
        )


def cells_of(lines: Sequence[Line]) -> list[Cell]:
    """Cells with at least one run; of several setups for a method, problem and budget the one that came last."""
    latest: dict[tuple[str, str, int], str] = {}
    for line in lines:
        latest[line["problem"], line["method"], line["budget"]] = line["setup"]
    cells = []
    for (problem, method, budget), setup in latest.items():
        mine = [x for x in lines if x["setup"] == setup and x["problem"] == problem and x["method"] == method]
        runs = {x["seed"]: x for x in mine if x["type"] == "run"}
        tuning = [x for x in mine if x["type"] == "tuning"]
        if runs and tuning:
            ordered = tuple(runs[seed] for seed in sorted(runs))
            cells.append(Cell(problem, tuning[-1]["kind"], method, budget, tuning[-1], ordered))
    return cells


@dataclass(frozen=True)
class Column:
    """One problem at one budget: cells from best to worst median, ties by name; methods that have no place on it."""

    problem: str
    kind: str
    budget: int
    cells: tuple[Cell, ...]
    skipped: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return f"{self.problem}, {self.budget:,} evaluations"

    def cell(self, method: str) -> Cell | None:
        return next((c for c in self.cells if c.method == method), None)

    def rank(self, method: str) -> int | None:
        """1 for the best; the number of better medians plus 1."""
        mine = self.cell(method)
        return None if mine is None else 1 + sum(c.median < mine.median for c in self.cells)


def columns_of(cells: Sequence[Cell], lines: Sequence[Line] = ()) -> list[Column]:
    """By group and name, in the order of the file; `lines` of the file say which methods were skipped."""
    skips = {(x["problem"], x["budget"], x["method"]) for x in lines if x["type"] == "skip"}
    keys = dict.fromkeys((c.kind, c.problem, c.budget) for c in cells)
    columns = [
        Column(
            problem,
            kind,
            budget,
            tuple(
                sorted(
                    (c for c in cells if c.problem == problem and c.budget == budget),
                    key=lambda c: (c.median, c.quartiles[1], c.method),
                )
            ),
            frozenset(method for p, b, method in skips if (p, b) == (problem, budget)),
        )
        for kind, problem, budget in keys
    ]
    return sorted(columns, key=lambda c: c.kind)


def number(value: float) -> str:
    return "diverged" if math.isinf(value) else f"{value:.3g}"


def shown(cell: Cell) -> str:
    """median [lower quartile, upper quartile], with remarks such as "1 of 5 diverged"."""
    low, high = cell.quartiles
    text = number(cell.median) if math.isinf(cell.median) else f"{number(cell.median)} [{number(low)}, {number(high)}]"
    if cell.diverged:
        text += f", {cell.diverged} of {len(cell.runs)} diverged" if not math.isinf(cell.median) else ""
        text += f" ({cell.diverged} of {len(cell.runs)})" if math.isinf(cell.median) else ""
    if math.isfinite(cell.median) and cell.median >= cell.start:
        text += ", no better than the start"
    return text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


def best_for(columns: Sequence[Column]) -> list[str]:
    """The summary: the best method on each problem, by how much, and the best without extra memory."""
    rows = []
    for column in columns:
        best = column.cells[0]
        equal = [c.method for c in column.cells[1:] if c.quartiles[0] <= best.quartiles[1]]
        lean = next((c for c in column.cells if not c.tuning["slots"]), None)
        base = column.cell(BASELINE)
        early = best.evaluations_to(base.median) if base is not None and math.isfinite(base.median) else math.inf
        share = f"{early / column.budget:.0%}" if math.isfinite(early) else "-"
        rows.append(
            [
                column.title,
                f"**{best.method}** {shown(best)}",
                ", ".join(equal[:4]) + (f" and {len(equal) - 4} more" if len(equal) > 4 else "") or "-",
                "the same" if lean is best else f"{lean.method} {number(lean.median)}" if lean else "-",
                "-" if base is None else f"{number(base.median)}, rank {column.rank(BASELINE)} of {len(column.cells)}",
                share,
            ]
        )
    header = [
        "problem",
        "best",
        "quartiles overlap",
        "best without slots",
        BASELINE,
        f"best reaches {BASELINE}'s final value after",
    ]
    return table(header, rows)


def group_ranks(columns: Sequence[Column]) -> list[tuple[float, str]]:
    """(mean share of the field that is better, method) over the problems of a group on which the method ran."""
    names = dict.fromkeys(c.method for column in columns for c in column.cells)
    mean = []
    for name in names:
        shares = [
            ((rank or 1) - 1) / max(len(column.cells) - 1, 1)
            for column in columns
            if (rank := column.rank(name)) is not None
        ]
        mean.append((statistics.fmean(shares), name))
    return sorted(mean)


def group_table(columns: Sequence[Column]) -> list[str]:
    """All methods of a group, sorted by their mean rank."""
    rows = []
    for share, name in group_ranks(columns):
        cells = [column.cell(name) for column in columns]
        first = next(c for c in cells if c is not None)
        entries = [
            ("not applicable" if name in column.skipped else "not run")
            if c is None
            else (f"**{shown(c)}**" if c is column.cells[0] else shown(c))
            for column, c in zip(columns, cells, strict=True)
        ]
        slots = first.tuning["slots"]
        rows.append([name, f"{share:.0%}", *entries, number(first.evaluations_per_step), str(len(slots))])
    return table(["method", "field ahead", *(c.title for c in columns), "evaluations a step", "slots"], rows)


def rates_table(columns: Sequence[Column]) -> list[str]:
    """The tuned learning rates; a star where the edge of the grid was best."""
    rows = []
    for _, name in group_ranks(columns):
        cells = [column.cell(name) for column in columns]
        rows.append([name, *("-" if c is None else _rate(c) for c in cells)])
    return table(["method", *(c.problem for c in columns)], rows)


def _rate(cell: Cell) -> str:
    lr = cell.tuning["lr"]
    return "its own" if lr is None else f"{lr:g}{'*' if cell.at_edge else ''}"


def accuracy_table(columns: Sequence[Column]) -> list[str]:
    """Held-out accuracy where a problem has one: median over the runs that ended, plain and calibrated."""
    rows = []
    for column in columns:
        for cell in column.cells:
            runs = [run for run in cell.runs if "accuracy" in run]
            if runs:
                plain = statistics.median(run["accuracy"] for run in runs)
                calibrated = statistics.median(run["calibrated"] for run in runs)
                rows.append([column.problem, cell.method, number(cell.median), f"{plain:.1%}", f"{calibrated:.1%}"])
    header = ["problem", "method", "held-out loss", "accuracy", "calibrated accuracy"]
    return ["", *table(header, rows)] if rows else []


def page(lines: Sequence[Line], folder: str = "methods") -> str:
    """The whole page as text."""
    columns = columns_of(cells_of(lines), lines)
    out = ["# Methods at equal evaluations", "", *_preamble(lines, columns, folder), ""]
    out += ["## Best for what", "", *best_for(columns), ""]
    out += [
        "The best three of each group, by the mean share of the other methods that ended ahead (`field ahead` below):",
        "",
        *(
            f"- {kind}: " + ", ".join(f"{name} ({share:.0%})" for share, name in group_ranks(group)[:3])
            for kind, group in groups(columns)
        ),
        "",
    ]
    for kind, group in groups(columns):
        out += [f"## ({kind}) {KINDS[kind]}", ""]
        out += [f"- {c.problem}: {c.cells[0].tuning['about']}." for c in group]
        out += ["", f"![final values, group {kind}]({folder}/{kind}.png)", "", *group_table(group)]
        out += accuracy_table(group)
        out += ["", "<details><summary>Learning rates</summary>", "", *rates_table(group), "", "</details>", ""]
        if notes := _missing(lines, group):
            out += [*notes, ""]
    return "\n".join(out)


def groups(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    kinds = dict.fromkeys(c.kind for c in columns)
    return [(kind, [c for c in columns if c.kind == kind]) for kind in kinds]


def _preamble(lines: Sequence[Line], columns: Sequence[Column], folder: str) -> list[str]:
    tunings = [c.tuning for column in columns for c in column.cells]
    used = [run for column in columns for c in column.cells for run in c.runs]
    counts = sorted({len(c.runs) for column in columns for c in column.cells})
    tuned = {(len(t["grid"]), *_ends(t["grid"]), t["fraction"]) for t in tunings if t["grid"]}
    grids = "; ".join(f"{n} rates from {low:g} to {high:g}, {f:.0%} of the budget" for n, low, high, f in sorted(tuned))
    versions = sorted({", ".join(f"{k} {v}" for k, v in x["versions"].items()) for x in (*tunings, *used)})
    notes = {t["method"]: t["note"] for t in tunings if t["note"]}
    return [
        f"Generated by `python -m benchmarks.methods --page` from [{folder}/results.jsonl]({folder}/results.jsonl), "
        f"SHA-256 of its lines {fingerprint(lines)}. No number here is written by hand.",
        "",
        f"Each method gets the same number of evaluations (forward passes) on a problem, whatever its steps cost. "
        f"Methods that draw terms of a finite sum pay per term: the terms of one batch are one evaluation. Numbers "
        f"are f(x) - min f of the clean loss at the last iterate (for language models the held-out loss): the median "
        f"of {' or '.join(map(str, counts))} seeds, in brackets the quartiles, as order statistics at or outside of "
        f"them. A run has diverged if its clean value is {WORSE:g} times that of the start, or after {REFUSED} steps "
        f"in a row without a finite value. It then counts as infinite. On problems with a constraint set, methods that "
        f"may leave the set are projected onto it after each step.",
        "",
        f"Learning rates are constant. For each method and problem the rate is tuned with a separate seed, by the "
        f"clean value of the last iterate ({grids} per run). mu is the problem's. All other settings are the menu's "
        f"defaults, except these:",
        "",
        *(f"- {name}: {note}" for name, note in sorted(notes.items())),
        "",
        f"Versions: {'; '.join(versions)}.",
    ]


def _ends(grid: dict[str, Any]) -> tuple[float, float]:
    rates = [float(lr) for lr in grid]
    return min(rates), max(rates)


def _missing(lines: Sequence[Line], group: Sequence[Column]) -> list[str]:
    """Methods that do not apply to problems of the group, and why."""
    skipped = {
        (x["problem"], x["method"]): x["why"]
        for x in lines
        if x["type"] == "skip" and any(c.problem == x["problem"] and c.cell(x["method"]) is None for c in group)
    }
    by_reason: dict[str, list[str]] = {}
    for (problem, method), why in skipped.items():
        by_reason.setdefault(why, []).append(f"{method} on {problem}")
    return [f"Not applicable: {', '.join(names)} ({why})." for why, names in by_reason.items()]


def fingerprint(lines: Sequence[Line]) -> str:
    """16 digits of SHA-256 over the lines as data."""
    return hashlib.sha256(repr(lines).encode()).hexdigest()[:16]


def write(results: Path) -> dict[str, Any]:
    """The page beside the folder of the results file, and its figures in it. Raises ValueError for an empty file."""
    lines = load(results)
    columns = columns_of(cells_of(lines), lines)
    if not columns:
        raise ValueError(
            f"{results} holds no finished run; compute some first: python -m benchmarks.methods --problems a"
        )
    folder = results.parent
    target = folder.with_suffix(".md")
    target.write_text(page(lines, folder.name), encoding="utf-8")
    figures = [draw(kind, group, folder / f"{kind}.png", fingerprint(lines)) for kind, group in groups(columns)]
    return {"page": str(target), "figures": [str(f) for f in figures], "bytes": sum(f.stat().st_size for f in figures)}


def draw(kind: str, columns: Sequence[Column], path: Path, mark: str) -> Path:
    """A panel a problem: medians with quartile bars, best at the top, 1,200 pixels wide, `mark` in the metadata."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from PIL import Image, PngImagePlugin
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'zograd[bench]'") from None
    rows = max(len(c.cells) for c in columns)
    figure = Figure(figsize=(12, 1.0 + 0.19 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, column in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns, strict=True):
        _panel(axes, column)
    figure.suptitle(
        f"({kind}) {KINDS[kind]}: medians and quartiles\n"
        f"black {BASELINE}, blue without slots, orange with slots; dashed: start",
        fontsize=10,
    )
    canvas.draw()
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", mark)
    colors = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(32)
    colors.save(path, pnginfo=text, optimize=True)
    return path


def _panel(axes: Any, column: Column) -> None:
    start = column.cells[0].start
    floor = 1e-16 * max(start, 1e-300)
    finite = [c for c in column.cells if math.isfinite(c.median)]
    axes.axvline(start, color="0.6", lw=0.8, ls="--")
    for y, cell in enumerate(column.cells):
        if cell not in finite:
            axes.text(start, y, " diverged", fontsize=7, va="center", color="0.4")
            continue
        low, high = cell.quartiles
        color = "black" if cell.method == BASELINE else "tab:blue" if not cell.tuning["slots"] else "tab:orange"
        x = max(cell.median, floor)
        axes.plot([max(low, floor), min(max(high, floor), 1e3 * start)], [y, y], color=color, lw=1.2)
        axes.plot([x], [y], "o", color=color, ms=3.5)
    axes.set_yticks(range(len(column.cells)), [c.method for c in column.cells], fontsize=7)
    axes.set_ylim(len(column.cells) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="0.9", lw=0.5)
    low, high = axes.get_xlim()
    axes.xaxis.set_minor_formatter("")
    if high < 100 * low:  # hardly a power of ten in sight
        axes.set_xticks([m * 10.0**k for k in range(-17, 9) for m in (1, 2, 5) if low <= m * 10.0**k <= high])
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(column.title, fontsize=8)
