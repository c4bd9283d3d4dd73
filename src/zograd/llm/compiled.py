"""Compile the blocks of a language model with torch.compile, if a measurement shows a gain.

Any read of a trained weight causes a graph break (`lens/parameters.py`). The code between is compiled: norms, rotary
embeddings, activations and residuals are fused. Blocks of the same class and shapes share one compilation for inputs of
any size, so the last bits of a loss do not depend on which batch came first.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zograd.lens.parameters import lenses
from zograd.llm.loading import blocks, first_line, plain_model

ROUNDS = 5
"""Number of interleaved rounds of a trial."""

WORTH = 300.0
"""Seconds of evaluations above which a run gets a trial. Below, a gain of some percent does not pay for compiling."""


class CompileError(RuntimeError):
    """torch.compile does not work on this machine or this model."""


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, blocks of the model run compiled under a lens that shows their weights; other forwards do not change.

    A block runs uncompiled if it gets a cache of keys and values (the cache counts layers, so each would be compiled on
    its own), and under a lens that intercepts every call (for dropout, or inside another lens).

    Cost: the first forward compiles for 10 to 20 seconds and leaves about 50 MB of compiler in memory. Raises
    ModelError for a model without a list of blocks.
    """
    changed = [
        block for block in blocks(plain_model(model)) if "forward" not in vars(block)
    ]  # the others are wrapped already
    try:
        for block in changed:
            vars(block)["forward"] = _choosing(block, block.forward, _fast(type(block).forward))
        yield
    finally:
        for block in changed:
            vars(block).pop("forward", None)


@functools.cache
def _fast(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward, dynamic=True)


def _choosing(block: nn.Module, plain: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if lenses.on and not lenses.everywhere and kwargs.get("past_key_values") is None:
            return fast(block, *args, **kwargs)
        return plain(*args, **kwargs)

    return forward


@dataclass(frozen=True)
class Trial:
    """The result of a measurement of compiling."""

    ratio: float
    """Time of a compiled evaluation over that of an uncompiled one: median over rounds."""
    seconds: float
    """Time of the first compiled evaluation."""


def trial(model: nn.Module, evaluate: Callable[[], object], evaluations: int) -> Trial | None:
    """Time `evaluate` with and without compiled blocks in turn; None if `evaluations` of them take less than `WORTH`.

    Cost: two evaluations; then one compilation and 2 ROUNDS evaluations more. Raises CompileError with torch's reason
    if torch cannot compile.
    """

    def timed() -> float:
        start = time.perf_counter()
        evaluate()
        return time.perf_counter() - start

    timed()  # the first evaluation also finds out how this model can be evaluated
    if timed() * evaluations < WORTH:
        return None
    seconds = check(model, timed)
    ratios = []
    for _ in range(ROUNDS):
        plain = timed()
        with compiled(model):
            ratios.append(timed() / plain)
    return Trial(statistics.median(ratios), seconds)


def check(model: nn.Module, evaluate: Callable[[], Any]) -> Any:
    """`evaluate()` with compiled blocks. Raises CompileError with torch's reason if torch cannot compile."""
    try:
        with compiled(model):
            return evaluate()
    except Exception as e:  # torch raises errors of many kinds, and those of the C++ compiler
        raise CompileError(f"torch.compile does not work here: {type(e).__name__}: {first_line(e)}") from e
