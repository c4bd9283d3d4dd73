"""Commands that look at runs and models: eval, report."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import Debug, Json, app, conclude, emit, guarded, of_classes, say
from zograd.cli.train import set_threads

SETTINGS = (
    "model", "task", "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records",
    "max_length", "truncate", "chat_template", "metric", "seed", "dtype", "quantized", "quantize", "device", "threads",
)  # fmt: skip
DEFAULTS = {"task": "trec, or the run's", "seed": "0, or the run's"}


def register() -> None:
    later(app, "eval", inspect.getdoc(eval_) or "", lambda: with_settings(eval_, SETTINGS, DEFAULTS))
    app.command()(guarded(report))


def eval_(
    given: dict[str, Any],
    run: Annotated[Path | None, typer.Option(help="Replay this run, a folder or packed, onto the model first.")] = None,
    split: Annotated[
        str | None, typer.Option(help=r"train, validation, test or all. \[test; all of a file without splits]")
    ] = None,
    examples: Annotated[int | None, typer.Option(help=r"Score at most this many examples. \[all]")] = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Metric of a model on a task, or of a model with a run replayed onto it.

    Example: zograd eval --task trec --run runs/quickstart
    """
    from zograd import plugins
    from zograd.llm.settings import parse

    settings = parse(given)
    chosen = {name: getattr(settings, name) for name in given}
    set_threads(chosen.pop("threads", None))
    plugins.load(plugin or ())
    if run is not None:
        plugins.check(run)
    from zograd.llm.evaluate import evaluate as go

    model, task = chosen.pop("model", None), chosen.pop("task", None)
    result = go(model, task, run, split=split, examples=examples, **chosen)
    conclude(result, json, _shown(result))


def _shown(result: dict[str, Any]) -> str:
    """The result for people: numbers, then a table of the classes."""
    lines = {key: value for key, value in result.items() if key not in ("classes", "low", "high") and value is not None}
    if result["low"] is not None:
        lines["value"] = f"{result['value']:.4g}   (95 % interval {result['low']:.4g} to {result['high']:.4g})"
    width = max(map(len, lines))
    shown = [f"{key:<{width}}  {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in lines.items()]
    return "\n".join([*shown, *(["", of_classes(result["classes"])] if result["classes"] else [])])


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, shown side by side.")],
    out: Annotated[Path, typer.Option(help="File of the page; an earlier report there is overwritten.")] = Path(
        "report.html"
    ),
    png: Annotated[bool, typer.Option("--png", help="Also save the figures as a picture beside the page.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Keep the page up to date until the runs end; it loads itself again.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """One self-contained HTML page: loss and metric, memory, stability margin, meters, settings of runs.

    Example: zograd report runs/a runs/b --out report.html --png
    """
    from zograd.runs.report import live as follow
    from zograd.runs.report import report as go

    if live:
        result = follow(runs, out, image=png, say=lambda address: say(f"zograd: open {address}; Ctrl-C ends it"))
    else:
        result = go(runs, out, image=png)
    files = " and ".join(result[key] for key in ("html", "png") if key in result)
    emit(result, json, f"{len(result['runs'])} run{'s' * (len(result['runs']) > 1)}: {files}")
