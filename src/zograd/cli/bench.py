"""`zograd bench`: what a user measures on a machine. One line makes a command of a function of `zograd.bench`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import typer

from zograd.cli.options import Command, from_function, later
from zograd.cli.output import app

bench = typer.Typer(help="Measure on this machine: step time, memory, exactness.", no_args_is_help=True)

MEASUREMENTS = {
    "step": "One step against its forward passes and against a MeZO-style loop, interleaved.",
    "memory": "Peak memory of a step, of inference, and of a MeZO-style loop.",
    "exact": "Are weights unchanged by queries, and do small updates arrive? For each rounding.",
    "directions": "Several directions in one forward pass, against as many separate passes.",
    "batches": "Steps on text whose sequences share rows, against steps on padded batches.",
    "noise": "A pass of noise over weights against a plain in-place addition to them, interleaved.",
    "profile": "Where the time of a step goes: products, attention, noise, the loss head, Python.",
}
"""Command and summary; `bench_NAME` in `zograd.bench.NAME` is called, and its `as_text`, if it has one, makes the text.

The summary is the first line of the function's docstring, repeated so that help need not import it.
"""


def register() -> None:
    for name, summary in MEASUREMENTS.items():
        later(bench, name, summary, lambda name=name: _built(name))  # type: ignore[misc]
    app.add_typer(bench, name="bench")


def _built(name: str) -> Command:
    module = import_module(f"zograd.bench.{name}")
    function = getattr(module, f"bench_{name}")
    return from_function(_blocking(function) if name == "profile" else function, getattr(module, "as_text", None))


def _blocking(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Let operators on a CUDA device last as long as their kernels; this has to be set before its first use."""

    @wraps(function)
    def call(*, device: str, **more: Any) -> dict[str, Any]:
        if device.startswith("cuda"):
            os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
        return function(device=device, **more)

    return call
