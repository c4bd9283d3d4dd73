"""Commands that give weights: replay (of runs, as transformers loads them), pack (one small file), compress."""

from __future__ import annotations

import inspect
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import STARTED, Debug, Json, app, conclude, emit, guarded, percent
from zograd.cli.train import set_threads, stages_for

Model = Annotated[str | None, typer.Option(help=r"The base model. \[the run's]")]
Threads = Annotated[int | None, typer.Option(help=r"CPU threads. \[all]")]


PROTECTED = (
    "model", "task", "layers", "prompt_template", "label_words", "text_column", "label_column", "completion_column",
    "records", "max_length", "truncate", "chat_template", "seed", "dtype", "device", "threads",
)  # fmt: skip
COMPRESSED = (
    "model", "task", "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records",
    "max_length", "truncate", "chat_template", "metric", "seed", "dtype", "device", "threads",
)  # fmt: skip


class Merge(StrEnum):
    """How several runs become one model."""

    SUM = "sum"
    MEAN = "mean"


def register() -> None:
    app.command()(guarded(replay))
    app.command()(guarded(pack))
    later(app, "protect", inspect.getdoc(protect) or "", lambda: with_settings(protect, PROTECTED, {"layers": "4"}))
    later(app, "compress", inspect.getdoc(compress) or "", lambda: with_settings(compress, COMPRESSED))


def replay(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folder of a run, or a packed run.")],
    out: Annotated[Path, typer.Option(help="New folder for the weights.")],
    model: Model = None,
    to: Annotated[int | None, typer.Option(help=r"Stop after this step. \[the last]")] = None,
    undo: Annotated[
        list[int] | None, typer.Option(help="Leave this step out; 1 is the first. Repeatable.", metavar="STEP")
    ] = None,
    average: Annotated[
        int, typer.Option(help="The mean of the weights after each of the last K steps; 0: off.", metavar="K", min=0)
    ] = 0,
    merge: Annotated[
        Merge | None,
        typer.Option(help="Of several runs: add the sum or the mean of their changes to the base model."),
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged tape, use the steps before the damage.")
    ] = False,
    plugin: Plugins = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the weights of a run, as transformers loads them, without a single forward pass.

    Example: zograd replay runs/quickstart --out my-model
    """
    from zograd import plugins
    from zograd.llm.stages import importing

    plugins.load(plugin or ())
    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.restore import replay as go
    set_threads(threads)
    for run in runs:
        plugins.check(run)
    how: Any = None if merge is None else merge.value
    result = go(runs, model, out, to=to, salvage=salvage, undo=undo or (), average=average, merge=how, stages=stages)
    emit(result, json)


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of the run, or a checkpoint of a forward-only Trainer.")],
    out: Annotated[Path | None, typer.Option(help=r"The file. \[the name of the folder, with .zopack]")] = None,
    model: Model = None,
    plugin: Plugins = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """A run as one small file, from which `zograd replay FILE` rebuilds the weights on the same base model.

    Example: zograd pack runs/a --out a.zopack
    """
    set_threads(threads)
    from zograd import plugins
    from zograd.hf.packing import is_checkpoint, pack_checkpoint
    from zograd.llm.pack import pack as go

    stages = stages_for(json)
    plugins.load(plugin or ())
    if is_checkpoint(run):
        result = pack_checkpoint(run, out, model)
    else:
        plugins.check(run)
        result = go(run, out, model=model, stages=stages)
    if result["kind"] == "tape":
        what = f"the tape of {result['steps']:,} steps of {result['method']}, without loss"
    else:
        what = (
            f"the exact difference of {result['weights']:,} weights, since the tape of {result['method']} does not "
            f"give them back"
        )
    emit(result, json, f"{result['path']}: {result['bytes']:,} bytes ({what}; base model {result['base']})")


class Scores(StrEnum):
    """What decides which weights stay."""

    MAGNITUDE = "magnitude"
    WANDA = "wanda"
    TASK_AWARE = "task-aware"


class Factors(StrEnum):
    """How thin factors are found."""

    SVD = "svd"
    FWSVD = "fwsvd"


def compress(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    scores: Annotated[
        Scores | None,
        typer.Option(
            help=r"Prune by these scores: of the weights, of what the task puts in, of that and of any text. "
            r"\[wanda]"
        ),
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Share of each row that becomes 0.")] = 0.5,
    factors: Annotated[
        Factors | None,
        typer.Option(help="Instead of pruning: two thin factors a layer, with rows weighted by the task for fwsvd."),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the numbers of a layer that its factors have.")] = 0.6,
    modules: Annotated[
        str,
        typer.Option(help=r"Pattern (regular expression) of the names of layers. \[all linear layers of the blocks]"),
    ] = "",
    general: Annotated[str, typer.Option(help="The task that stands for any text, for task-aware.")] = "mr",
    calibration: Annotated[int, typer.Option(help="Training examples that are looked at.")] = 128,
    split: Annotated[str | None, typer.Option(help=r"Split of the metric before and after. \[test]")] = None,
    examples: Annotated[int, typer.Option(help="Examples of that split.")] = 500,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """A model with fewer weights, chosen by what it does on a task: pruned (Wanda), or in thin factors (FWSVD).

    Example: zograd compress --task trec --scores task-aware --sparsity 0.3 --out small
    """
    from zograd import plugins
    from zograd.llm.settings import TrainSettings, parse

    settings = parse(given)
    chosen = {name: getattr(settings, name) for name in given}
    set_threads(chosen.pop("threads", None))
    plugins.load(plugin or ())
    from zograd.llm.stages import importing

    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.compressing import compress as go

    model = chosen.pop("model", TrainSettings.model_fields["model"].default)
    how: Any = {"scores": scores and scores.value, "factors": factors and factors.value}
    result = go(
        model, chosen.pop("task", "trec"), out, sparsity=sparsity, keep=keep, modules=modules, general=general,
        calibration=calibration, split=split, examples=examples, stages=stages, **how, **chosen,
    )  # fmt: skip
    conclude(result, json, _compressed(result))


def _compressed(r: dict[str, Any]) -> str:
    """The result for people."""

    def metric(when: str) -> str:
        value, low, high = (r[f"{name}_{when}"] for name in ("value", "low", "high"))
        if value is None:
            return "-"
        shown = percent if r["metric"] == "accuracy" else "{:.4g}".format
        return shown(value) if low is None else f"{shown(value)}   (95 % interval {shown(low)} to {shown(high)})"

    lines = {
        "layers": f"{r['layers']}, by {r['how']} on {r['calibration']} examples",
        "numbers": f"{r['numbers_before']:,} -> {r['numbers_after']:,}",
        "bytes": f"{r['bytes_before']:,} -> {r['bytes_after']:,}, if only what is not 0 is stored (with a mask)",
        f"{r['metric']} before": metric("before"),
        f"{r['metric']} after": metric("after"),
        "folder": f"{r['folder']} (the matrices in full, as transformers loads them, and {r['file']})",
    }
    if r["file"] == "factors.safetensors":
        lines["bytes"] = f"{r['bytes_before']:,} -> {r['bytes_after']:,}, as factors"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def protect(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The file (.safetensors); one that exists is not overwritten.")],
    run: Annotated[Path | None, typer.Option(help="Replay this run onto the model first.")] = None,
    extend: Annotated[Path | None, typer.Option(help="A file of earlier tasks, which stays remembered.")] = None,
    energy: Annotated[float, typer.Option(help="Share of what enters a layer that is remembered.")] = 0.97,
    modules: Annotated[
        str, typer.Option(help=r"Pattern (regular expression) of names of layers. \[all linear layers of --layers]")
    ] = "",
    calibration: Annotated[int, typer.Option(help="Training examples that are read.")] = 128,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remember what layers read on a task, so that `train --protect FILE` learns another one without forgetting it.

    Example: zograd protect --task mr --layers 1 --out mr.safetensors
    """
    from zograd import plugins
    from zograd.llm.settings import TrainSettings, parse

    settings = parse(given)
    chosen = {name: getattr(settings, name) for name in given}
    set_threads(chosen.pop("threads", None))
    plugins.load(plugin or ())
    if run is not None:
        plugins.check(run)
    from zograd.llm.stages import importing

    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.protecting import protect as go

    model = chosen.pop("model", None if run is not None else TrainSettings.model_fields["model"].default)
    result = go(
        model, chosen.pop("task", None), out, run=run, extend=extend, energy=energy, modules=modules,
        calibration=calibration, stages=stages, **chosen,
    )  # fmt: skip
    text = (
        f"{result['out']}: {result['layers']} layers, {result['calibration']} examples; of the dimensions that enter a "
        f"layer {percent(result['least'])} to {percent(result['most'])} are taken"
    )
    emit(result, json, text)
