"""Blocks of a language model through torch.compile, where that was measured to pay.

Only what lies between the reads of trained weights is compiled (`lens/parameters.py`): norms, rotary embeddings,
activations and residuals are fused. Blocks of the same class and shapes share one compilation, for inputs of any size,
so that the last bits of a loss do not depend on which batch came first.
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
"""Interleaved rounds of a trial."""

WORTH = 300.0
"""Seconds of evaluations from which a run gets a trial: some percent of less do not pay for the compiler."""


class CompileError(RuntimeError):
    """torch.compile does not work here."""


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, blocks of the model run compiled wherever a lens shows their weights; plain forwards are as before.

    A block that is given a cache of keys and values runs as it is: the cache counts layers, and each would be compiled
    on its own. So does one under a lens that looks at every call, for dropout or within another lens. The first forward
    compiles, for 10 to 20 seconds, and leaves some 50 MB of compiler in memory. Raises ModelError for a model without a
    list of blocks.
    """
    changed = [block for block in blocks(plain_model(model)) if "forward" not in vars(block)]  # others: wrapped already
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
    """What compiling was measured to do."""

    ratio: float
    """Median over rounds of the time of an evaluation compiled over that of one as it is."""
    seconds: float
    """Of the first compiled evaluation."""


def trial(model: nn.Module, evaluate: Callable[[], object], evaluations: int) -> Trial | None:
    """Times `evaluate` with and without compiled blocks, taking turns; None where `evaluations` of it are too few.

    Cost: one evaluation to tell that; then one compilation and 2 ROUNDS + 1 more. Raises CompileError, with torch's
    reason, where torch cannot compile.
    """

    def timed() -> float:
        start = time.perf_counter()
        evaluate()
        return time.perf_counter() - start

    timed()  # the first finds out how this model can be evaluated
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
    """`evaluate()` with compiled blocks. Raises CompileError, with torch's reason, where torch cannot compile."""
    try:
        with compiled(model):
            return evaluate()
    except Exception as e:  # torch raises errors of many kinds, and those of the C++ compiler
        raise CompileError(f"torch.compile does not work here: {type(e).__name__}: {first_line(e)}") from e
