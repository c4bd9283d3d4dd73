"""Commands that let a model or a run answer: predict (labels with probabilities) and generate (text)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zograd.cli.options import Plugins, later, with_settings
from zograd.cli.output import STARTED, Debug, Json, app, conclude, say
from zograd.cli.train import set_threads, stages_for

SETTINGS = (
    "model", "task", "prompt_template", "label_words", "text_column", "dtype", "quantized", "quantize", "device",
    "threads",
)  # fmt: skip
OF_RUN = {"model": "the base model of the run, where it was found", "task": "the run's", "device": "cpu, or the run's"}

Source = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, a packed run, or a model.", show_default=False)
]
Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]...", help="Texts that the template takes. Without: each line of stdin is one."),
]
File = Annotated[
    Path | None,
    typer.Option(help="Data with the template's columns (.jsonl, .csv, .parquet, ...), or .txt with lines."),
]
Out = Annotated[Path | None, typer.Option(help="Write the predictions to this file, one JSON object a line.")]


def register() -> None:
    later(app, "predict", inspect.getdoc(predict) or "", lambda: with_settings(predict, SETTINGS, OF_RUN))
    later(app, "generate", inspect.getdoc(generate) or "", lambda: with_settings(generate, (*SETTINGS, "seed"), OF_RUN))


def predict(
    given: dict[str, Any],
    source: Source,
    texts: Texts = None,
    file: File = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Subtract the mean score of each label over all inputs first.")
    ] = False,
    out: Out = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The label of each input, with its probability, by a model or by a run.

    Example: zograd predict runs/quickstart "Who wrote Hamlet ?"
    """

    def go(tuned: Any, inputs: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        found = tuned.predict(inputs, calibrate=calibrate)
        bad = sum(p.label is None for p in found)
        failure = f"{bad} of {len(found)} inputs have scores that are not finite, and so no label" if bad else None
        return found, {"calibrated": calibrate, "truncated": tuned.truncated, "failure": failure}

    result = _answered(given, source, texts, file, out, plugin, json, go, lambda tuned: tuned.check_labels())
    found = result["predictions"]
    if len(found) == 1 and found[0]["label"] is not None:
        rows = sorted(found[0]["probabilities"].items(), key=lambda item: -item[1])
        text = "\n".join(f"{p:>6.1%}  {label}" for label, p in rows)
    else:
        text = "\n".join(f"{_share(p['probability'])}  {p['label']}\t{_short(p['prompt'])}" for p in found)
    if not json:
        how = "after the mean score of each label is subtracted" if calibrate else "not calibrated"
        say(f"zograd: probabilities of the label words, {how}")
    conclude(result, json, text if out is None else f"{len(found)} predictions: {out}")


def generate(
    given: dict[str, Any],
    source: Source,
    texts: Texts = None,
    file: File = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="0: always the most likely token; above: tokens are drawn, by --seed.")
    ] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help=r"Text that ends an answer; \n is a new line. Repeatable.", metavar="TEXT")
    ] = None,
    out: Out = None,
    plugin: Plugins = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Text that goes on from each input, by a model or by a run.

    Example: zograd generate smollm2-135m "The capital of France is" --max-new-tokens 16
    """
    given, seed = dict(given), given.get("seed")
    stops = [text.replace("\\n", "\n") for text in stop or ()]

    def check(tuned: Any) -> None:
        from zograd.llm.generation import check_sampling

        check_sampling(max_new_tokens, temperature, stops)

    def go(tuned: Any, inputs: list[Any]) -> tuple[list[Any], dict[str, Any]]:
        sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": int(seed or 0)}
        return tuned.generate(inputs, **sampling, stop=stops), {**sampling, "stop": stops}

    result = _answered(given, source, texts, file, out, plugin, json, go, check)
    found = result["predictions"]
    each = "{text}" if len(found) == 1 else "> {prompt}\n{text}\n"
    text = "\n".join(each.format(**p) for p in found) if out is None else f"{len(found)} answers: {out}"
    conclude(result, json, text)


def _answered(
    given: Mapping[str, Any],
    source: str,
    texts: Sequence[str] | None,
    file: Path | None,
    out: Path | None,
    plugin: Sequence[Path] | None,
    json: bool,
    go: Callable[[Any, list[Any]], tuple[list[Any], dict[str, Any]]],
    check: Callable[[Any], None],
) -> dict[str, Any]:
    """What both commands do: read the inputs, open the source, answer, write the file."""
    from dataclasses import asdict

    from zograd import plugins
    from zograd.llm.prompts import read_inputs
    from zograd.llm.settings import parse
    from zograd.llm.stages import importing

    settings = parse(dict(given))
    chosen = {name: getattr(settings, name) for name in given if name != "seed"}
    plugins.load(plugin or ())
    _check_out(out, file, source)
    stages = stages_for(json)
    with stages.stage("importing torch", STARTED), importing():
        from zograd.llm.tuned import Tuned
        from zograd.runs.packed import holds_run
    set_threads(chosen.pop("threads", None))
    if holds_run(source):
        plugins.check(source)
        _check_data(out, source)

    base, text_column = chosen.pop("model", None), chosen.pop("text_column", None)
    tuned = Tuned(source, base=base, text_column=text_column, stages=stages, **chosen)
    check(tuned)
    inputs: list[Any] = list(texts or ())
    inputs += [] if file is None else read_inputs(file, text_column, tuned.text_column)
    inputs = inputs if texts or file is not None else _piped()
    found, more = go(tuned, inputs)
    predictions = [asdict(p) for p in found]
    result = {"source": source, "steps": tuned.steps, **more, "predictions": predictions}
    if out is not None:
        from zograd.files import atomic_write
        from zograd.jsons import dumps

        atomic_write(out, "".join(dumps(p) + "\n" for p in predictions).encode())
        result["out"] = str(out)
    return result


def _check_out(out: Path | None, file: Path | None, source: str) -> None:
    """Raise UsageError where the predictions cannot be written to `out`, before any work is done."""
    from zograd.errors import UsageError

    if out is None:
        return
    if out.is_dir() or not out.absolute().parent.is_dir():
        why = "is a folder" if out.is_dir() else f"cannot be written: there is no folder {out.absolute().parent}"
        raise UsageError(f"--out {out} {why}; give the name of a file")
    if file is not None and out.exists() and file.exists() and out.samefile(file):
        raise UsageError(f"--out {out} is the file of the inputs, which would be lost; choose another name")
    run = Path(source)
    if (run / "run.json").exists() and out.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"--out {out} is in the folder of the run {source}, whose files are its own; choose another")
    if out.exists() and not out.is_file():
        raise UsageError(f"--out {out} is no file but a device or a pipe; without --out the predictions are printed")
    if out.exists() and not _holds_predictions(out):
        raise UsageError(
            f"--out {out} exists and holds no predictions, so it is not overwritten; choose another name, or remove it"
        )


def _check_data(out: Path | None, source: str) -> None:
    """Raise UsageError where `out` is a file that a run was made from, which a resumed run or `eval` reads again."""
    from zograd.errors import UsageError
    from zograd.runs.packed import opened

    if out is None or not out.exists():
        return
    settings = opened(source).meta["settings"]
    for name in ("task", "eval_file", "test_file", "protect", "model"):
        path = Path(str(settings.get(name) or "")).expanduser()
        if path.is_file() and out.samefile(path):
            raise UsageError(f"--out {out} is the {name} of the run {source}, which would be lost; choose another name")


def _holds_predictions(out: Path) -> bool:
    """Whether a file is empty, or begins with a line that one of the two commands wrote."""
    import json

    try:
        with open(out, encoding="utf-8") as f:
            first = f.readline(2**26)  # a file may be one line
        values = json.loads(first) if first else None
    except (OSError, ValueError, RecursionError):
        return False
    of_commands = ({"prompt", "label", "probabilities"}, {"prompt", "text", "ended"})
    return not first or (isinstance(values, dict) and any(keys <= values.keys() for keys in of_commands))


def _piped() -> list[str]:
    """The lines of standard input. Raises UsageError where a person would have to type them unasked."""
    from zograd.errors import UsageError
    from zograd.llm.prompts import lines_of

    if sys.stdin.isatty():
        raise UsageError("there is nothing to answer: give a text, a --file, or lines on standard input")
    return lines_of(sys.stdin.read())


def _share(x: float | None) -> str:
    return "   -  " if x is None else f"{x:>6.1%}"


def _short(text: str) -> str:
    """One line of at most 60 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
