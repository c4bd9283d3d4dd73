"""The HTML page: one file without scripts, fonts or addresses, for light and dark mode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from zograd.runs.report.figures import DARK, DASHES, LIGHT, MARK, dashes, letter, svg
from zograd.runs.report.panels import Panel
from zograd.runs.report.read import Margin, Recorded

NONE = "–"


def page(runs: Sequence[Recorded], panels: Sequence[Panel], refresh: float | None = None) -> str:
    """The whole page as text. refresh: seconds after which a browser loads the file again; None: never."""
    figures = "\n".join(_figure(panel, number) for number, panel in enumerate(panels))
    notes = [(i, note) for i, run in enumerate(runs) for note in run.notes]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="generator" content="{MARK}">',
            # the browser loads nothing, whatever the name of a task or a prompt holds
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            *_refreshing(refresh),
            f"<title>{escape(', '.join(run.path for run in runs))}</title>",
            f"<style>{_css()}</style></head><body>",
            "<h1>zograd report</h1>",
            *([] if refresh is None else [f"<p>{_loads_again(refresh)}</p>"]),
            _legend(runs),
            *(f"<p>{letter(i)}: {escape(note)}</p>" for i, note in notes),
            "<h2>Summary</h2>",
            _table(runs, _summary(runs)),
            "<h2>Figures</h2>",
            f'<div class="figures">{figures}</div>',
            "<h2>Settings</h2>",
            _differing(runs),
            _table(runs, _settings(runs), differences=True),
            "<h2>Model, data, versions</h2>",
            _table(runs, _origin(runs), differences=True),
            "</body></html>\n",
        ]
    )


def waiting(paths: Sequence[str], refresh: float) -> str:
    """The page before the first step of a run, which loads itself again."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="generator" content="{MARK}">',
            *_refreshing(refresh),
            f"<title>{escape(', '.join(paths))}</title></head><body>",
            "<h1>zograd report</h1>",
            f"<p>Waiting for the first step of {escape(', '.join(paths))}. {_loads_again(refresh)}</p>",
            "</body></html>\n",
        ]
    )


def _refreshing(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f'<meta http-equiv="refresh" content="{seconds:g}">']


def _loads_again(seconds: float) -> str:
    return f"This page loads itself again every {seconds:g} seconds."


def _css() -> str:
    light = "".join(f"--run{k}:{c};" for k, c in enumerate(LIGHT))
    dark = "".join(f"--run{k}:{c};" for k, c in enumerate(DARK))
    return f"""
:root{{color-scheme:light dark;--paper:#fff;--ink:#1c1c1e;--line:#d5d5da;--mark:#fff3c9;{light}}}
@media (prefers-color-scheme:dark){{:root{{--paper:#17181b;--ink:#e6e6ea;--line:#3c3d44;--mark:#453c15;{dark}}}}}
body{{background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:76em;
padding:0 1em}}
h1{{font-size:1.5em}}h2{{font-size:1.15em;margin-top:2em}}
table{{border-collapse:collapse;display:block;overflow-x:auto}}
th,td{{border-bottom:1px solid var(--line);padding:.25em .9em .25em 0;text-align:left;vertical-align:top}}
td{{white-space:pre-wrap;overflow-wrap:anywhere;font-variant-numeric:tabular-nums;min-width:8em}}
th{{font-weight:600;white-space:nowrap}}tbody th{{font-weight:400}}
tr.differs{{background:var(--mark)}}
.figures{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30em,100%),1fr));gap:1.5em}}
figure{{margin:0}}figcaption small{{display:block;opacity:.8}}
svg{{width:100%;height:auto;overflow:visible}}svg *{{stroke-linejoin:round;stroke-linecap:butt}}
.key{{display:inline-block;width:1.6em;vertical-align:middle;margin-right:.5em}}
ul{{list-style:none;padding:0}}
"""


def _key(run: int) -> str:
    return f'<span class="key" style="border-top:.25em {DASHES[dashes(run)]} var(--run{run % len(LIGHT)})"></span>'


def _legend(runs: Sequence[Recorded]) -> str:
    items = (f"<li>{_key(i)}<b>{letter(i)}</b> {escape(run.path)}: {run.status}</li>" for i, run in enumerate(runs))
    return f"<ul>{''.join(items)}</ul>"


def _figure(panel: Panel, number: int) -> str:
    by_reason: dict[str, list[str]] = {}
    for run, why in panel.missing:
        by_reason.setdefault(why, []).append(letter(run))
    reasons = "".join(f"<small>{', '.join(names)}: {escape(why)}.</small>" for why, names in by_reason.items())
    head = f"<b>{escape(panel.title)}</b><small>{escape(panel.about)}</small>"
    drawing = ""
    if not panel.empty:
        drawing = svg(panel, number).replace("<svg", f'<svg role="img" aria-label="{escape(panel.title)}"', 1)
    return f"<figure><figcaption>{head}{reasons}</figcaption>{drawing}</figure>"


# ---- tables ----------------------------------------------------------------------------------------------------------

Row = tuple[str, Sequence[str]]


def _table(runs: Sequence[Recorded], rows: Iterable[Row], *, differences: bool = False) -> str:
    head = "".join(f"<th>{_key(i)}{letter(i)}</th>" for i in range(len(runs)))
    lines = []
    for name, cells in rows:
        differs = differences and len(set(cells)) > 1
        entries = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        start = '<tr class="differs"><th>≠ ' if differs else "<tr><th>"
        lines.append(f"{start}{escape(name)}</th>{entries}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _summary(runs: Sequence[Recorded]) -> list[Row]:
    found = [run.summary() for run in runs]

    def row(name: str, show: Callable[[dict[str, Any]], str]) -> Row:
        return name, [show(s) for s in found]

    def change(first: str, last: str) -> Callable[[dict[str, Any]], str]:
        return lambda s: f"{_number(s[first])} → {_number(s[last])}"

    return [
        ("model", [_shown(run.settings.get("model")) for run in runs]),
        ("task", [_shown(run.settings.get("task")) for run in runs]),
        ("method", [_shown(run.settings.get("method")) for run in runs]),
        row("status", lambda s: s["status"]),
        row("steps, of which refused", lambda s: f"{s['steps']:,}, {s['refused']:,}"),
        row("evaluations of steps", lambda s: f"{s['evaluations']:,}"),
        row("seconds", lambda s: NONE if s["seconds"] is None else f"{s['seconds']:,.1f}"),
        row("training loss, first and last 10 steps", change("loss_first", "loss_last")),
        row("held-out loss, before and after", change("eval_loss_before", "eval_loss_after")),
        row("metric", lambda s: f"{s['metric']} on {_number(s['examples'])} held-out examples"),
        row("before", lambda s: _score(s, "before")),
        row("before, calibrated", lambda s: _score(s, "calibrated")),
        row("largest class alone", lambda s: _score(s, "majority")),
        row("after", lambda s: _score(s, "after") + (_at(s) if s["after"] is not None else "")),
        row("peak memory", lambda s: _mib(s["peak_bytes"])),
        row("peak memory of inference", lambda s: _mib(s["inference_peak_bytes"])),
        row("peak over inference peak", lambda s: _number(s["memory_ratio"])),
        row("tape", lambda s: f"{s['tape_bytes']:,} bytes"),
        row("trained weights", lambda s: _number(s["trained"])),
        ("share of the edge of stability, last", [_edge(run) for run in runs]),
        row("SHA-256 of the trained weights", lambda s: _shown(s["sha256"])),
    ]


def _at(summary: dict[str, Any]) -> str:
    return "" if summary["after_step"] == summary["steps"] else f" (at step {summary['after_step']:,})"


def _edge(run: Recorded) -> str:
    if isinstance(run.margin, str):
        return run.margin
    last = run.margin.last if isinstance(run.margin, Margin) else None
    return "no positive trace was measured" if last is None else f"between {last[0]:.3g} and {last[1]:.3g}"


def _settings(runs: Sequence[Recorded]) -> list[Row]:
    flat = [_flat(run.settings) for run in runs]
    return [(name, [f.get(name, NONE) for f in flat]) for name in dict.fromkeys(k for f in flat for k in f)]


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    """Name -> text of all settings; those of the method as "set NAME"."""
    out: dict[str, str] = {}
    for key, value in settings.items():
        if key == "set" and isinstance(value, dict):
            out |= {f"set {name}": _shown(v) for name, v in value.items()}
        else:
            out[key] = _shown(value)
    return out


def _differing(runs: Sequence[Recorded]) -> str:
    if len(runs) == 1:
        return ""
    names = [name for name, cells in _settings(runs) if len(set(cells)) > 1]
    return f"<p>Marked with ≠, where runs differ: {escape(', '.join(names) or 'nothing')}.</p>"


def _origin(runs: Sequence[Recorded]) -> list[Row]:
    metas = [run.meta for run in runs]
    data = [m["data"] if isinstance(m.get("data"), dict) else {} for m in metas]
    packages = [m["packages"] if isinstance(m.get("packages"), dict) else {} for m in metas]
    return [
        ("base model, SHA-256 over its tensors", [run.identity for run in runs]),
        ("tensors, elements, dtypes", [_tensors(m["model"]) for m in metas]),
        *((f"data: {k}", [_shown(d.get(k)) for d in data]) for k in dict.fromkeys(k for d in data for k in d)),
        ("began (UTC)", [_shown(m.get("created")) for m in metas]),
        *((name, [_shown(m.get(key)) for m in metas]) for name, key in (("zograd", "zograd"), ("Python", "python"))),
        *((k, [_shown(p.get(k)) for p in packages]) for k in dict.fromkeys(k for p in packages for k in p)),
        ("tape version", [_shown(m.get("tape_version")) for m in metas]),
        ("noise version", [_shown(m.get("noise_version")) for m in metas]),
    ]


def _tensors(model: Sequence[dict[str, Any]]) -> str:
    elements = 0
    for entry in model:
        size = 1
        for n in entry.get("shape", []):
            size *= n
        elements += size
    dtypes = ", ".join(sorted({str(entry.get("dtype")) for entry in model}))
    return f"{len(model):,}, {elements:,}, {dtypes}"


def _shown(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _score(summary: dict[str, Any], key: str) -> str:
    value = summary[key]
    return f"{100 * value:.1f} %" if value is not None and summary["metric"] == "accuracy" else _number(value)


def _mib(n: int | None) -> str:
    return NONE if n is None else f"{n / 2**20:,.0f} MiB"
