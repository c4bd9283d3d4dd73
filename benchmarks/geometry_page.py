"""docs/geometry.md and its figures, as a function of the results file alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.geometry import LOST, NAIVE, REFERENCE
from benchmarks.methods_page import fingerprint, number, table
from benchmarks.results import Line, WithRuns, final, load
from zograd.core.vector import Array
from zograd.problems import PROBLEMS

NOTES = {
    "inverted": "inverted triangles of the final mesh, in the worst seed",
    "least_area": "area of the smallest triangle of the final mesh over that of the uniform mesh, in the worst seed",
    "rescored": "the same error against a solution on a grid twice as fine, with loads integrated to order 10",
    "least_ratio": "smallest p_i / q_i at the end",
    "largest_ratio": "largest p_i / q_i at the end",
    "noise": "noise at the end",
    "longest": "longest length scale at the end",
    "orthogonality": "max |X^T X - I| at the end, in the worst seed",
}
"""The meaning of the columns that a problem measures."""
WORST = {"inverted": max, "least_area": min, "orthogonality": max}
"""The columns that show the worst seed; the others show the median."""
MESH = (
    "In the space, each interior node is a convex combination of its six neighbours, with weights on a product of "
    "simplices. One linear system gives all nodes. By Floater's theorem (Math. Comp. 72, 2003) the mesh is valid for "
    "any positive weights; see `problems/mesh.py`. Flat methods move the coordinates of the nodes."
)
HIDDEN = {"picture", "leaving"}


@dataclass(frozen=True)
class Row(WithRuns):
    """One way on one problem: its tuning and its runs under the latest setup that the file has."""

    problem: str
    way: str
    tuning: Line
    runs: tuple[Line, ...]
    sweep: Line | None = None

    @property
    def shown(self) -> str:
        """median [least, largest], of runs that left the domain as infinite."""
        lost, ordered = self.values.count(math.inf), sorted(self.values)
        if self.median == math.inf:
            return f"left the domain ({lost} of {len(self.runs)})"
        if lost:
            return f"{number(self.median)}, {lost} of {len(self.runs)} left the domain"
        return f"{number(self.median)} [{number(ordered[0])}, {number(ordered[-1])}]"

    def share(self, what: str) -> str:
        """Points outside of all, over the runs."""
        outside, every = (sum(run[key] for run in self.runs) for key in (f"{what}_outside", what))
        return f"{outside:,} of {every:,}"

    def measured(self, key: str) -> str:
        found = [run["measured"][key] for run in self.runs if run["measured"].get(key) is not None]
        return number(float(WORST.get(key, statistics.median)(found))) if found else "-"


def rows_of(lines: Sequence[Line]) -> dict[str, list[Row]]:
    """Rows by problem, in the order of `PROBLEMS`."""
    latest = {(line["problem"], line["method"]): line["setup"] for line in lines}
    found: dict[str, list[Row]] = {name: [] for name in PROBLEMS}
    for (problem, way), setup in latest.items():
        mine = [x for x in lines if x["setup"] == setup and x["problem"] == problem and x["method"] == way]
        runs = {x["seed"]: x for x in mine if x["type"] == "run"}
        tuning = [x for x in mine if x["type"] == "tuning"]
        if runs and tuning:
            sweep = next((x for x in mine if x["type"] == "sweep"), None)
            ordered = tuple(runs[s] for s in sorted(runs))
            found.setdefault(problem, []).append(Row(problem, way, tuning[-1], ordered, sweep))
    return {problem: rows for problem, rows in found.items() if rows}


def page(lines: Sequence[Line], folder: str = "geometry") -> str:
    """The whole page as text."""
    found = rows_of(lines)
    out = [
        "# Domains and manifolds",
        "",
        *_preamble(lines, found, folder),
        "",
        "## At a glance",
        "",
        *summary(found),
        "",
    ]
    for problem, rows in found.items():
        first = rows[0]
        out += [f"## {first.tuning['title']}", "", f"`{problem}`: {first.tuning['about']}.", ""]
        out += [MESH, ""] if pictured(rows) else []
        out += [f"![{problem}: value against evaluations]({folder}/{problem}.png)", ""]
        if pictured(rows):
            out += [f"![{problem}: meshes]({folder}/{problem}-meshes.png)", ""]
        out += [*problem_table(rows), "", *sweep_table(rows), *leaving_table(rows)]
    return "\n".join(out)


def _preamble(lines: Sequence[Line], found: dict[str, list[Row]], folder: str) -> list[str]:
    rows = [row for part in found.values() for row in part]
    seeds = sorted({len(row.runs) for row in rows})
    fractions = sorted({f"{row.tuning['fraction']:.0%}" for row in rows})
    rates = sorted({len(row.tuning["grid"]) for row in rows})
    versions = sorted(
        {", ".join(f"{k} {v}" for k, v in x["versions"].items()) for r in rows for x in (r.tuning, *r.runs)}
    )
    return [
        f"Generated by `python -m benchmarks.geometry --page` from [{folder}/results.jsonl]({folder}/results.jsonl), "
        f"SHA-256 of its lines {fingerprint(lines)}. No number here is written by hand.",
        "",
        f"This page minimizes the same losses in a space of `zograd.spaces` and in flat coordinates, at equal "
        f"evaluations. Values are f - min f at the last iterate: the median of {' or '.join(map(str, seeds))} seeds, "
        f"the least and the largest in brackets. The learning rate decays to 0 as a cosine. Its first value is the "
        f"best of {' or '.join(map(str, rates))} values, tried in runs of {' or '.join(fractions)} of the budget with "
        f"a separate seed. The radius is the problem's. Outside of the domain the loss is undefined, and a step that "
        f"meets an undefined loss is refused.",
        "",
        "- space: `zo_sgd`, `zo_adam`, `fzoo`, on the orthant also `hozo`, in the natural space of the domain",
        "- other names: `zo_sgd` in another metric on the same domain (Dikin: on the coordinates of nodes; the domain "
        "ends where a triangle has area 0)",
        "- flat projected: each loss is that of the nearest point of the domain, and each iterate moves there",
        "- flat reverted: moves that leave the domain are undone",
        f"- flat naive: no remedy; a run outside of the domain ends after {LOST} refused steps",
        "",
        "Probes and iterates outside of the domain are counted over all runs, before any remedy.",
        "",
        f"Versions: {'; '.join(versions)}.",
    ]


def summary(found: dict[str, list[Row]]) -> list[str]:
    """For each problem: the best way in the space, the best flat way with a remedy, and their points outside."""
    body = []
    for problem, rows in found.items():
        inner = [r for r in rows if r.tuning["outside"] == "never"]
        flat = [r for r in rows if r.tuning["outside"] in ("project", "revert")]
        naive = [r for r in rows if r.tuning["outside"] == "leave"]
        if not inner or not flat:
            continue
        best, rival = (min(part, key=lambda r: (r.median, r.way)) for part in (inner, flat))
        lines = [run for r in inner for run in (r.tuning, *r.runs)]
        points = sum(x["probes"] + x["iterates"] for x in lines)
        outside = sum(x["probes_outside"] + x["iterates_outside"] for x in lines)
        probes = sum(x["probes"] for x in rival.runs)
        body.append(
            [
                problem,
                number(best.runs[0]["start"]),
                f"{best.way}: {best.shown}",
                f"{points - outside:,} of {points:,}",
                f"{rival.way}: {rival.shown}",
                f"{sum(x['probes_outside'] for x in rival.runs) / probes:.1%}",
                ", ".join(f"{r.values.count(math.inf)} of {len(r.runs)}" for r in naive),
            ]
        )
    header = ["problem", "start", "best on the space", "points inside (all spaces, tuning too)"]
    return table([*header, "best flat with a remedy", "its probes outside", "naive runs that left"], body)


def at_a_glance(results: Path) -> str:
    """The summary of a results file."""
    return "\n".join(summary(rows_of(load(results))))


def problem_table(rows: Sequence[Row]) -> list[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row.runs[0]["measured"] if key not in HIDDEN))
    best = min(rows, key=lambda r: (r.median, r.way))
    body = [
        [
            row.way,
            f"**{row.shown}**" if row is best else row.shown,
            row.share("probes"),
            row.share("iterates"),
            *(row.measured(key) for key in keys),
            f"{row.tuning['lr']:g}{'*' if _at_edge(row) else ''}",
        ]
        for row in rows
    ]
    header = ["way", "f - min f", "probes outside", "iterates outside", *(key.replace("_", " ") for key in keys), "lr"]
    notes = [f"{key.replace('_', ' ')}: {NOTES[key]}" for key in keys]
    notes += ["a star: the smallest or largest rate that was tried"] if any(map(_at_edge, rows)) else []
    return [*table(header, body), "", "; ".join(notes) + "." if notes else ""]


def _at_edge(row: Row) -> bool:
    rates = [float(lr) for lr in row.tuning["grid"]]
    return row.tuning["lr"] in (min(rates), max(rates))


def sweep_table(rows: Iterable[Row]) -> list[str]:
    """The result of each learning rate, and the share of points outside."""
    swept = [row for row in rows if row.sweep is not None]
    out: list[str] = []
    for row in swept:
        rates = (row.sweep or {})["rates"]
        out += table(
            [f"`{row.way}`, {row.tuning['fraction']:.0%} of the budget, seed 0, by learning rate", *rates],
            [
                ["f - min f", *("outside" if v["value"] is None else number(v["value"]) for v in rates.values())],
                ["points outside", *(f"{v['outside'] / v['points']:.1%}" for v in rates.values())],
            ],
        )
        out.append("")
    return out


def leaving_table(rows: Iterable[Row]) -> list[str]:
    """The share of probes that leave the domain from the reference's last iterate, for each radius."""
    for row in rows:
        found = row.runs[0]["measured"].get("leaving")
        if row.way == REFERENCE and found:
            radii = list(found["flat"])
            body = [[f"{name} coordinates", *(f"{found[name][mu]:.1%}" for mu in radii)] for name in ("space", "flat")]
            head = [f"probes that leave the domain from the last iterate of `{REFERENCE}`, seed 0, by radius", *radii]
            return [*table(head, body), ""]
    return []


# ---- figures ---------------------------------------------------------------------------------------------------------


def pictured(rows: Sequence[Row]) -> list[tuple[str, list[float]]]:
    """(title, coordinates): the best end on the space, and the flat mesh at the least rate at which it was lost."""
    have = [row for row in rows if row.runs[0]["measured"].get("picture")]
    inner = [row for row in have if row.tuning["outside"] == "never"]
    found = []
    for row in sorted(inner, key=lambda r: r.median)[:1]:
        run = row.runs[0]
        title = f"{row.way}: error {number(final(run))}"
        found.append((f"{title}\nafter {run['evaluations']:,} evaluations", run["measured"]["picture"]))
    for row in have:
        if row.way == NAIVE and row.sweep is not None and (lost := row.sweep["picture"]):
            title = f"{row.way}, lr {lost['lr']:g} (best {row.tuning['lr']:g})"
            found.append((f"{title}\nleft the domain, {lost['evaluations']:,} evaluations", lost["nodes"]))
    return found


def write(results: Path) -> dict[str, Any]:
    """The page beside the folder of the results file, and its figures in it. Raises ValueError for an empty file."""
    lines = load(results)
    found = rows_of(lines)
    if not found:
        raise ValueError(f"{results} holds no finished run; compute some first: python -m benchmarks.geometry")
    folder, mark = results.parent, fingerprint(lines)
    target = folder.with_suffix(".md")
    target.write_text(page(lines, folder.name), encoding="utf-8")
    figures = []
    for problem, rows in found.items():
        figures.append(_save(_curves(rows), folder / f"{problem}.png", mark))
        if pictured(rows):
            figures.append(_save(_meshes(rows), folder / f"{problem}-meshes.png", mark))
    return {"page": str(target), "figures": [str(f) for f in figures], "bytes": sum(f.stat().st_size for f in figures)}


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'zograd[bench]'") from None
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path, mark: str) -> Path:
    """As a picture of 128 colours, with `mark` in its metadata."""
    from PIL import Image, PngImagePlugin

    figure.canvas.draw()
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", mark)
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    image.quantize(128, Image.Quantize.MAXCOVERAGE).save(path, pnginfo=text, optimize=True)
    return path


STYLES = {"never": "-", "project": "--", "revert": "--", "leave": ":"}
COLOURS = {"sgd": "tab:blue", "adam": "tab:orange", "fzoo": "tab:green", "hozo": "tab:cyan"}
METRICS = {"conformal": "tab:red", "Dikin": "tab:purple"}


def _curves(rows: Sequence[Row]) -> Any:
    """Median of the value over the seeds against evaluations, with the band of all seeds."""
    figure = _figure(8.5, 3.6)
    axes = figure.subplots()
    for row in rows:
        curves = np.array([[np.nan if f is None else f for f in run["curve"]] for run in row.runs], dtype=float)
        start, budget = row.runs[0]["start"], row.tuning["budget"]
        whole = np.column_stack([np.full(len(curves), start), curves])
        x = np.linspace(0, budget, whole.shape[1])
        kept = ~np.isnan(whole).any(0)  # where some run has left, the line ends
        metric, _, rule = row.way.rpartition(", ")
        colour = COLOURS[rule] if metric.startswith(("space", "flat")) else METRICS.get(metric, "0.35")
        axes.plot(
            x[kept], np.median(whole[:, kept], 0), STYLES[row.tuning["outside"]], color=colour, lw=1.5, label=row.way
        )
        axes.fill_between(x[kept], whole[:, kept].min(0), whole[:, kept].max(0), color=colour, alpha=0.12, lw=0)
        if not kept[-1]:
            axes.plot(x[kept][-1:], np.median(whole[:, kept], 0)[-1:], "x", color=colour, ms=7)
    axes.set_yscale("log")
    axes.set_xlabel("evaluations")
    axes.set_ylabel("f - min f")
    axes.grid(color="0.9", lw=0.5)
    axes.set_title(f"{rows[0].tuning['title']}\nmedians and ranges; a cross: a run has left the domain", fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _meshes(rows: Sequence[Row]) -> Any:
    """The uniform mesh and the final ones; inverted triangles in red."""
    from zograd.problems.mesh import net

    pictures = pictured(rows)
    mesh = net(math.isqrt(len(pictures[0][1]) // 2) + 1)
    shown: list[tuple[str, Array]] = [(f"start: uniform\nerror {number(rows[0].runs[0]['start'])}", mesh.nodes)]
    shown += [(title, mesh.moved(np.array(numbers).reshape(-1, 2))) for title, numbers in pictures]
    figure = _figure(4.0 * len(shown), 4.7)
    for axes, (title, nodes) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        bad = mesh.areas(nodes) <= 0
        axes.triplot(nodes[:, 0], nodes[:, 1], mesh.triangles, lw=0.8, color="0.25")
        for corners in mesh.triangles[bad]:
            axes.fill(*nodes[corners].T, facecolor="tab:red", edgecolor="tab:red", lw=2.0, zorder=3)
        axes.set_aspect("equal")
        axes.set_axis_off()
        axes.set_title(title + (f", {bad.sum()} inverted" if bad.any() else ""), fontsize=9)
    figure.get_layout_engine().set(h_pad=0.12)
    return figure
