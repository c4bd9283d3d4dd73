"""The application, what its commands print, and how they end: exit code 0, 1 (the work failed) or 2 (bad usage)."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any

import typer

from zograd.errors import UsageError

STARTED = time.perf_counter()
"""About when the process started."""

STYLE: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "rich_markup_mode": "rich",  # older releases of typer default to another one
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    name="zograd",
    help="Zeroth-order optimization: train from evaluations alone, in the memory of inference.",
    no_args_is_help=True,
    **STYLE,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, the last line of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def say(text: str) -> None:
    """Progress and remarks go to stderr; stdout holds results."""
    print(text, file=sys.stderr, flush=True)


def emit(result: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print a result: as one JSON line, or as text for people, which may be empty; None: key by key."""
    if as_json:
        from zograd.jsons import dumps

        print(dumps(result))
    elif text is not None:
        print(text)
    else:
        width = max(map(len, result))
        for key, value in result.items():
            print(f"{key:<{width}}  {value}")


def conclude(result: dict[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print a result. One that failed says why, in its "failure", and ends with exit code 1."""
    if result.get("failure"):
        say(f"zograd: {result['failure']}")
    emit(result, as_json, text)
    if result.get("failure"):
        raise typer.Exit(1)


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The function of a command, whose expected failures end in one line and exit code 1, bad usage in 2."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        with failures(debug=bool(kwargs.get("debug"))):
            quiet_warnings()
            function(*args, **kwargs)

    return call


@contextmanager
def failures(debug: bool) -> Iterator[None]:
    """Inside, an error becomes one line on stderr and an exit code; with `debug` it keeps its traceback."""
    try:
        yield
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


def explain(e: BaseException) -> str:
    """One line for one error."""
    text = " ".join(str(e).split()) or type(e).__name__
    full = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # libraries hide the error of the system in a text
    if (isinstance(e, OSError) and e.errno in full) or "os error 28" in text or "No space left on device" in text:
        where = getattr(e, "filename", None) or "no space left"
        return (
            f"the disk is full ({where}): free some space and run the command again; a training goes on with --resume "
            f"from what it had saved"
        )
    if isinstance(e, PermissionError) or (isinstance(e, OSError) and e.errno == errno.EROFS):
        return f"{e.filename or 'a file'} cannot be written or read ({e.strerror}); choose another place"
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


def percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.1f} %"


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"


def mib(n: float) -> str:
    return f"{n / 2**20:,.0f} MiB"


def of_classes(classes: list[dict[str, Any]]) -> str:
    """A table of the classes: examples, predictions, precision, recall, F1."""
    width = max(5, *(len(c["class"]) for c in classes))
    lines = [f"{'class':<{width}}  examples  predicted  precision  recall     F1"]
    for c in classes:
        precision, recall, f1 = (percent(c[name]) for name in ("precision", "recall", "f1"))
        counts = f"{c['examples']:>8,}  {c['predicted']:>9,}"
        lines.append(f"{c['class']:<{width}}  {counts}  {precision:>9}  {recall:>6}  {f1:>6}")
    return "\n".join(lines)
