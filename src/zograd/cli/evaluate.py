"""Commands that look at runs and models: eval, report."""

from __future__ import annotations

import inspect
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import STARTED, Debug, Json, app, conclude, emit, guarded, of_classes, percent, say
from zograd.cli.train import set_threads, stages_for

SETTINGS = (
    "model", "task", "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records",
    "max_length", "truncate", "chat_template", "eos", "answer_tokens", "metric", "seed", "dtype",
    "quantized", "quantize", "device", "threads",
)  # fmt: skip
DEFAULTS = {"task": "trec, or the run's", "seed": "0, or the run's"}


DISTURBED = (
    "model", "task", "prompt_template", "label_words", "text_column", "label_column", "records", "max_length",
    "truncate", "chat_template", "seed", "dtype", "device", "threads",
)  # fmt: skip


class Disturbance(StrEnum):
    """What is changed in an example."""

    WORDS = "words"
    NUMBERS = "numbers"


def register() -> None:
    later(app, "eval", inspect.getdoc(eval_) or "", lambda: with_settings(eval_, SETTINGS, DEFAULTS))
    later(app, "robustness", inspect.getdoc(robustness) or "", lambda: with_settings(robustness, DISTURBED))
    app.command()(guarded(report))


def eval_(
    given: dict[str, Any],
    run: Annotated[Path | None, typer.Option(help="Replay this run, a folder or packed, onto the model first.")] = None,
    split: Annotated[
        str | None, typer.Option(help=r"train, validation, test or all. \[test; all of a file without splits]")
    ] = None,
    examples: Annotated[int | None, typer.Option(help=r"Score at most this many examples. \[all]")] = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also whether the probabilities of the classes are met.")
    ] = False,
    harness: Annotated[
        list[str] | None,
        typer.Option(
            help="In place of --task: a task of lm-evaluation-harness, or its .yaml. Repeatable.", metavar="TASK"
        ),
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Metric of a model on a task, or of a model with a run replayed onto it.

    Example: zograd eval --task trec --run runs/quickstart

    Example: zograd eval --task trec --calibration
    """
    from zograd import plugins
    from zograd.llm.settings import parse
    from zograd.llm.stages import importing

    settings = parse(given)
    chosen = {name: getattr(settings, name) for name in given}
    plugins.load(plugin or ())
    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.evaluate import evaluate as go
        from zograd.llm.harness import check_options
        from zograd.llm.harness import harness as run_tasks
    set_threads(chosen.pop("threads", None))
    if run is not None:
        plugins.check(run)

    if harness:
        check_options(chosen, split=split, calibration=calibration)
        result = run_tasks(harness, run=run, examples=examples, stages=stages, **chosen)
        emit(result, json, _of_tasks(result))
        return
    model, task = chosen.pop("model", None), chosen.pop("task", None)
    result = go(model, task, run, split=split, examples=examples, calibration=calibration, stages=stages, **chosen)
    conclude(result, json, _shown(result))


def _of_tasks(result: dict[str, Any]) -> str:
    """The rows of the harness for people."""
    width = max((len(row["task"]) for row in result["rows"]), default=4)
    lines = [f"{'task':<{width}}  {'metric':<16}  {'value':>7}  {'std. error':>10}  examples"]
    for row in result["rows"]:
        metric = row["metric"] + ("" if row["filter"] == "none" else f" ({row['filter']})")
        error, count = ("-" if row[name] is None else row[name] for name in ("stderr", "examples"))
        shown = error if isinstance(error, str) else f"{error:.4g}"
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        lines.append(f"{row['task']:<{width}}  {metric:<16}  {value:>7}  {shown:>10}  {count}")
    return "\n".join(lines)


def _shown(result: dict[str, Any]) -> str:
    """The result for people: numbers, then a table of the classes."""
    hidden = ("classes", "low", "high", "calibration")
    lines = {key: value for key, value in result.items() if key not in hidden and value is not None}
    if met := result.get("calibration"):
        lines |= {
            name: met[name]
            for name in ("confidence", "ece", "adaptive_ece", "brier", "nll", "temperature", "ece_scaled")
        }
    if result["low"] is not None:
        lines["value"] = f"{result['value']:.4g}   (95 % interval {result['low']:.4g} to {result['high']:.4g})"
    width = max(map(len, lines))
    shown = [f"{key:<{width}}  {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in lines.items()]
    return "\n".join([*shown, *(["", of_classes(result["classes"])] if result["classes"] else [])])


def robustness(
    given: dict[str, Any],
    kind: Annotated[
        Disturbance, typer.Option(help="words: one is swapped. numbers: sentences that do not matter come in.")
    ] = Disturbance.WORDS,
    run: Annotated[Path | None, typer.Option(help="Replay this run, a folder or packed, onto the model first.")] = None,
    split: Annotated[str | None, typer.Option(help=r"Split of the examples. \[test]")] = None,
    examples: Annotated[int, typer.Option(help="Examples that are changed.")] = 50,
    candidates: Annotated[int, typer.Option(help="Near words that a word is swapped for.")] = 10,
    strengths: Annotated[list[int] | None, typer.Option(help=r"Sentences that come in. Repeatable. \[1, 2, 4]")] = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Accuracy when one word is swapped for a near one, or when sentences that do not matter come in.

    Example: zograd robustness --task mr --kind words --examples 20

    Example: zograd robustness --task trec --kind numbers --strengths 1 --strengths 4
    """
    from zograd import plugins
    from zograd.llm.settings import parse

    settings = parse(given)
    chosen = {name: getattr(settings, name) for name in given}
    set_threads(chosen.pop("threads", None))
    plugins.load(plugin or ())
    if run is not None:
        plugins.check(run)
    from zograd.llm.stages import importing

    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.robustness import STRENGTHS
        from zograd.llm.robustness import measure as go

    how: Any = kind.value
    result = go(
        chosen.pop("model", None), chosen.pop("task", None), kind=how, run=run, split=split, examples=examples,
        candidates=candidates, strengths=strengths or STRENGTHS, stages=stages, **chosen,
    )  # fmt: skip
    width = max(len(row["kind"]) for row in result["rows"]) if result["rows"] else 4
    lines = [f"{'kind':<{width}}  strength  examples  before   after  95 % interval       p"]
    for row in result["rows"]:
        interval = f"{percent(row['low'])} to {percent(row['high'])}"
        lines.append(
            f"{row['kind']:<{width}}  {row['strength']:>8}  {row['examples']:>8}  {percent(row['before']):>6}  "
            f"{percent(row['after']):>6}  {interval:>13}  {row['p']:.3g}{' *' if row['significant'] else ''}"
        )
    scored = f"{result['evaluations']:,} examples of {result['task']} ({result['split']}) were scored; *: p < 0.05"
    emit(result, json, "\n".join([*lines, scored]))


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
