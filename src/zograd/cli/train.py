"""Commands that make runs: quickstart, train."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import STARTED, Debug, Json, app, conclude, guarded, mib, number, of_classes, percent, say

if TYPE_CHECKING:
    from zograd.llm.stages import Stages

Out = Annotated[Path, typer.Option(help="Folder of the run.")]


def register() -> None:
    app.command()(guarded(quickstart))
    later(app, "train", inspect.getdoc(train) or "", lambda: with_settings(train))


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def stages_for(json: bool) -> Stages:
    """What a command shows on stderr of its work; nothing with --json where no person looks, or beside rank 0."""
    from zograd.llm.stages import Stages

    return Stages((json and not sys.stderr.isatty()) or os.environ.get("RANK", "0") != "0", STARTED)


def quickstart(
    out: Out = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Fixes directions, batches and rounding.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a real language model on real data, without a backward pass through it, in a minute or two.

    Example: zograd quickstart --seed 1
    """
    from zograd.llm.quickstart import quickstart as go

    result = go(out, seed=seed, say=say)
    table = "\n".join(
        [
            "",
            f"  {result['model']} on {result['task']}, {result['examples']} test questions never trained on",
            "",
            f"    zero-shot                        {percent(result['accuracy_before'])}",
            f"    calibrated zero-shot             {percent(result['accuracy_calibrated'])}   (label bias removed)",
            f"    trained by residual feedback     {percent(result['accuracy_after'])}",
            "",
            f"  {result['steps']} steps, each a forward pass and one block's derivative, "
            f"{result['seconds']:.0f} s; {result['trained']:,} weights trained",
            f"  peak memory {mib(result['peak_bytes'])}, inference alone {mib(result['inference_peak_bytes'])} "
            f"(ratio {result['peak_bytes'] / result['inference_peak_bytes']:.3f})",
            f"  the run: {result['run']}, with its trained weights and a tape of its steps",
            f"  the whole model as transformers loads it: zograd replay {result['run']} --out my-model",
        ]
    )
    conclude(result, json, table)
    _exit_if_interrupted(result)


def train(
    out: Out,
    given: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option(help="YAML or TOML file with the same settings; options here win.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out; takes a new --eval-every or place of the --model, and at a constant rate "
            "a new --steps or --seconds.",
        ),
    ] = False,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model on a task.

    On several processes: torchrun --standalone --nproc-per-node 2 -m zograd train ...

    Example: zograd train --model smollm2-135m --task trec --train lora --method fzoo --steps 500 --out runs/a

    Example: zograd train --task trec --seconds 600 --out runs/b

    Example: zograd train --task trec --train lora --balance --method fzoo --steps 500 --out runs/c

    Example: zograd train --task trec --train polar --layers 2 --out runs/d

    Example: zograd train --task trec --train lora --method fzoo --steps 500 --lr-schedule refined:runs/a --out runs/e

    Example: zograd train --task trec --method fzoo --lr 1e-4 --protect mr.safetensors --out runs/f
    """
    from zograd import plugins
    from zograd.llm.settings import parse, read_config
    from zograd.llm.stages import importing

    plugins.load(plugin or ())
    data = read_config(config) if config else {}
    if "set" in given and isinstance(data.get("set"), dict):
        given = {**given, "set": {**data["set"], **given["set"]}}
    settings = parse({**data, **given})
    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.distributed import joined
        from zograd.llm.resume import resumed
        from zograd.llm.train import train as go
    if resume and (out / "run.json").exists():  # torchrun's other processes may not have it
        plugins.check(out, resume=True)
        settings = resumed(settings, out)
    with joined(settings.device, settings.timeout) as peers:
        quiet = json and not sys.stderr.isatty()
        result = go(settings, out, resume=resume, quiet=quiet, peers=peers, stages=stages)
    if peers.rank:
        return
    conclude(result, json, _summary(result))
    _exit_if_interrupted(result)


def _exit_if_interrupted(result: dict[str, Any]) -> None:
    """130 after Ctrl-C. SIGTERM is how schedulers end a run, and 0 tells them that it is in order."""
    if result["stopped_by"] == "SIGINT":
        raise typer.Exit(130)


def _summary(result: dict[str, Any]) -> str:
    """The end of a run, for people."""
    if result["metric_after"] is None and result["interrupted"]:
        first = f"not evaluated since it was stopped: zograd eval --run {result['run']}"
    elif result["metric_after"] is None:
        first = "the evaluation is not finite"
    elif result.get("majority") is not None:
        shown = percent if result["metric"] == "accuracy" else number
        known = f"calibrated zero-shot {shown(result['metric_calibrated'])}, " * (result["metric_before"] is not None)
        first = (
            f"{moved(result, 'metric', shown)} ({known}largest class {percent(result['majority'])}; "
            f"{result['eval_examples']} held-out)"
        )
        if result["majority"] > min(0.6, 2 / len(result["classes"])):  # an accuracy says little
            first += (
                f"\n{moved(result, 'macro_f1', percent, 'macro-F1')}; {moved(result, 'mcc', number, 'MCC')}\n"
                f"{of_classes(result['classes'])}"
            )
    else:
        first = f"held-out {moved(result, 'metric', number)}"
    return "\n".join(
        [
            first,
            f"{counted(result['steps'], 'step')}, {counted(result['evaluations'], 'evaluation')}, "
            f"{result['seconds']:.1f} s after a start of {result['start_seconds']:.1f} s",
            f"peak memory of training {mib(result['peak_bytes'])}, of inference alone "
            f"{mib(result['inference_peak_bytes'])}, of the whole process {mib(result['process_peak_bytes'])}",
            ("stopped early; " if result["interrupted"] else "") + f"the run: {result['run']}",
        ]
    )


def moved(result: dict[str, Any], key: str, shown: Callable[[Any], str], name: str = "") -> str:
    """A metric before and after; after alone, where the model was not evaluated before (`--no-baseline`)."""
    before, after = result[f"{key}_before"], shown(result[f"{key}_after"])
    return f"{name or result[key]}: {after if before is None else f'{shown(before)} -> {after}'}"


def counted(n: int, what: str) -> str:
    """1 step, 2 steps."""
    return f"{n} {what}{'s' * (n != 1)}"
