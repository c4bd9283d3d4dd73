"""Commands that give the weights of runs: replay (as transformers loads them) and pack (as one small file)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins
from zograd.cli.output import Debug, Json, app, emit, guarded
from zograd.cli.train import set_threads

Model = Annotated[str | None, typer.Option(help=r"The base model. \[the run's]")]
Threads = Annotated[int | None, typer.Option(help=r"CPU threads. \[all]")]


class Merge(StrEnum):
    """How several runs become one model."""

    SUM = "sum"
    MEAN = "mean"


def register() -> None:
    app.command()(guarded(replay))
    app.command()(guarded(pack))


def replay(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folder of a run, or a packed run.")],
    out: Annotated[Path, typer.Option(help="New folder for the weights.")],
    model: Model = None,
    to: Annotated[int | None, typer.Option(help=r"Stop after this step. \[the last]")] = None,
    undo: Annotated[
        list[int] | None, typer.Option(help="Leave this step out; 1 is the first. Repeatable.", metavar="STEP")
    ] = None,
    average: Annotated[
        int, typer.Option(help=r"The mean of the weights after each of the last K steps. \[off]", metavar="K", min=0)
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
    """Base model + tape -> weights on disk (safetensors), without a single forward pass.

    Example: zograd replay runs/quickstart --out my-model
    """
    set_threads(threads)
    from zograd import plugins
    from zograd.llm.restore import replay as go

    plugins.load(plugin or ())
    for run in runs:
        plugins.check(run)
    how: Any = None if merge is None else merge.value
    result = go(runs, model, out, to=to, salvage=salvage, undo=undo or (), average=average, merge=how)
    emit(result, json)


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
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
    from zograd.llm.pack import pack as go

    plugins.load(plugin or ())
    plugins.check(run)
    result = go(run, out, model=model)
    if result["kind"] == "tape":
        what = f"the tape of {result['steps']:,} steps of {result['method']}, without loss"
    else:
        what = (
            f"the exact difference of {result['weights']:,} weights, since {result['method']} leaves no numbers from "
            f"which they follow"
        )
    emit(result, json, f"{result['path']}: {result['bytes']:,} bytes ({what}; base model {result['base']})")
