"""Several directions at once beside as many separate forwards, and beside one plain forward of the stacked batch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import torch

from zograd.bench.arguments import BatchSize, Compiled, Device, Dtype, Model, Rounds, SeqLen, Threads
from zograd.bench.step import CLOCKS, clock_of, interleaved, ratio
from zograd.bench.workload import LR, TimedModel, quiet_machine
from zograd.core.run import Method, Run
from zograd.errors import UsageError
from zograd.estimators import Forward
from zograd.llm.compiled import compiled
from zograd.llm.scoring.loss import causal_losses
from zograd.methods.menu import law_named
from zograd.oracles import batched, sequential
from zograd.rules import SGD
from zograd.stores import Store


def bench_directions(
    model: Model = "smollm2-135m",
    n: Annotated[int, "Directions."] = 8,
    *,
    batch_size: BatchSize = 4,
    seq_len: SeqLen = 32,
    dtype: Dtype = "float32",
    law: Annotated[str, "Law of directions, in lower case."] = "rankone",
    compile: Compiled = False,
    rounds: Rounds = 7,
    threads: Threads = None,
    device: Device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Several directions in one forward pass, against as many separate passes.

    The n + 1 losses of a one-sided step (the centre and n points around it) in one forward, `zograd.batched`.

    Keys: `ratio` = median over rounds of their time / that of n + 1 separate plain forwards; `ratio_stacked` = the same
    over one plain forward of the batch repeated n + 1 times, which is the limit; both with quartiles (`_quartiles`) and
    fastest over fastest (`_min`); `max_relative_error` of the losses against those of one point at a time, in the same
    precision; `t_together`, `t_separate`, `t_stacked` (seconds, medians); `rounds`, `clock` and the workload.

    Plain forwards are those of the unmodified model with the loss of transformers. law: a law of directions by its
    lower-case name; `rankone` and `lowrank` need no pass over the weights. compile: the points are evaluated on blocks
    that are compiled (`llm/compiled.py`). Raises ModelError or ValueError.

    Example: zograd bench directions -n 8
    """
    if n < 1 or rounds < 1:
        raise UsageError(f"n and rounds must be at least 1, got {n} and {rounds}")
    with quiet_machine(threads):
        work = TimedModel(
            model, batch_size=batch_size, seq_len=seq_len, dtype=dtype, method="zo_sgd", device=device, seed=seed,
            together=n + 1,
        )  # fmt: skip
        run = Run(Store(work.parameters), Method(Forward(n), law_named(law), SGD(), mu=2.0**-10, lr=LR), seed)
        queries = run.ask()
        plain: Any = work.model
        stacked = work.ids.repeat(n + 1, 1)

        def losses(copies: int) -> torch.Tensor:
            return causal_losses(plain, work.ids, copies=copies)

        oracle = batched(losses, n + 1)
        expected = sequential(lambda: losses(1).sum())(run.store, queries, seed)

        def together() -> Sequence[float]:
            with compiled(work.model) if compile else nullcontext():
                return oracle(run.store, queries, seed)

        found = together()

        @torch.no_grad()
        def stack() -> None:
            float(plain(input_ids=stacked, labels=stacked, use_cache=False).loss)

        ways = {
            "together": lambda: (together(), None)[1],
            "separate": lambda: work.forwards(n + 1),
            "stacked": stack,
        }
        clock = clock_of(work.device)
        seconds = interleaved(ways, rounds, CLOCKS[clock])
        return {
            "n": n,
            **ratio("ratio", seconds["together"], seconds["separate"]),
            **ratio("ratio_stacked", seconds["together"], seconds["stacked"]),
            "max_relative_error": max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)),
            **{f"t_{name}": statistics.median(values) for name, values in seconds.items()},
            "rounds": rounds,
            "compiled": compile,
            "clock": clock,
            **{**work.description(), "method": "forward", "law": type(run.method.law).__name__},
        }
