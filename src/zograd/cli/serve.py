"""`zograd serve`: AskTell behind HTTP."""

from __future__ import annotations

import json as standard
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins
from zograd.cli.output import Debug, Json, app, emit, guarded, say


def register() -> None:
    app.command()(guarded(serve))


def serve(
    db: Annotated[Path, typer.Option(help="File of the answers, SQLite. An old one goes on where it stopped.")],
    x0: Annotated[
        str | None, typer.Option(help="Where to start: JSON, numbers with commas, or a JSON file.", metavar="X0")
    ] = None,
    method: Annotated[str | None, typer.Option(help=r"A method, see `zograd methods`. \[zo_sgd]")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, key=value. Repeatable.")
    ] = None,
    bounds: Annotated[
        str | None, typer.Option(help="JSON: a pair for all variables, a pair for each, or pairs by name.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help=r"Points that are asked for, at most. \[no end; 15,000 for auto, lbfgs and cma]")
    ] = None,
    maximize: Annotated[bool | None, typer.Option("--maximize", help="Larger values are better.")] = None,
    lease: Annotated[float | None, typer.Option(help=r"Seconds that a worker has for a trial. \[600]")] = None,
    seed: Annotated[int | None, typer.Option(help=r"Fixes all points. \[0]")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(help=r"What clients have to send. \[the database's, or a new one]", envvar="ZOGRAD_TOKEN"),
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second, at most.")] = 200.0,
    max_body: Annotated[int, typer.Option(help="Bytes of a request, at most.")] = 1 << 20,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Hand points out and take answers over HTTP, until Ctrl-C. Answers survive a crash.

    Example: zograd serve --db coffee.sqlite --x0 '{"grams": 18, "seconds": 27}' --method preference --set n=1
    """
    from zograd import plugins
    from zograd.errors import UsageError
    from zograd.llm.settings import parse_assignments
    from zograd.serve.board import Board
    from zograd.serve.guard import Limits
    from zograd.serve.server import address, bound, server
    from zograd.serve.setup import Setup

    plugins.load(plugin or ())
    if not (rate > 0 and max_body > 0):
        raise UsageError(f"--rate {rate:g} and --max-body {max_body} must be > 0")
    given: dict[str, Any] = {
        "method": method, "settings": parse_assignments(set_) if set_ else None, "budget": budget,
        "maximize": maximize, "lease": lease, "seed": seed,
        "bounds": None if bounds is None else _json(bounds, "--bounds"),
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if x0 is None and given:
        raise UsageError(f"--{next(iter(given))} describes a new run, which needs --x0")
    setup = None if x0 is None else Setup(_start(x0), **given)
    board = Board(db, setup, token)
    try:
        listening = bound(host, port)
        about = {"url": address(listening, board.token), "token": board.token, "db": str(db), "answers": board.restored}
        say(f"zograd: {board.loop.source.name}, {board.restored} answers in {db}; stop with Ctrl-C")
        emit(about, json, str(about["url"]))
        sys.stdout.flush()
        server(board, Limits(body=max_body, rate=rate)).run(sockets=[listening])
    finally:
        board.close()


def _start(text: str) -> Any:
    """x0 as it was typed."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        pass
    path = Path(text)
    if not text.lstrip().startswith(("{", "[")) and path.is_file():
        return _json(path.read_text(encoding="utf-8"), str(path))
    return _json(text, "--x0")


def _json(text: str, what: str) -> Any:
    from zograd.errors import UsageError

    try:
        return standard.loads(text)
    except ValueError as error:
        raise UsageError(f"{what} is no JSON: {error}") from None
