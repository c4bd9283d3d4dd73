"""Time of one step, in forward passes of the unmodified model, beside the baseline loop."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from tqdm import tqdm

from zograd.bench.arguments import (
    BatchSize,
    Compiled,
    Device,
    Dtype,
    LawName,
    MethodName,
    Model,
    Rounds,
    SeqLen,
    Threads,
    Together,
)
from zograd.bench.workload import TimedModel, quiet_machine
from zograd.errors import UsageError
from zograd.llm.compiled import compiled
from zograd.llm.method import ride_along
from zograd.runs.memory import keep_freed, settled_objects
from zograd.stores.deferred import LIMIT


def bench_step(
    model: Model = "smollm2-135m",
    *,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    rounds: Rounds = 7,
    threads: Threads = None,
    device: Device = "cpu",
    seed: int = 0,
    law: LawName = None,
    together: Together = None,
    compile: Compiled = False,
) -> dict[str, Any]:
    """One step against its forward passes and against a MeZO-style loop, interleaved.

    ratio = median over rounds of (time of a step) / (time of as many plain forwards as the step evaluates).

    Where the moves of several steps are made together (`ride_along`), a step is the mean of `LIMIT` steps.

    Plain forwards, step and baseline step take turns in one process, in an order that reverses every round, after one
    warm-up of each; so what else runs on the machine hits all three. Seconds of different processes do not compare.

    law, together: see `TimedModel`. compile: the step runs its blocks compiled (`llm/compiled.py`); plain forwards and
        baseline do not. Then `t_first_compiled` has the seconds of the first steps, with the compilation.

    threads: of torch and of the noise kernels; None keeps what is set. With one thread on a CPU the clock is the CPU
        time of this thread, which other processes disturb least; otherwise wall time.

    Keys: `ratio` (to `forwards` plain forwards: 2 for a two-point method), `ratio_quartiles`, `ratio_min` (fastest step
    over fastest forwards); `overhead_ns_per_param` ((step - forwards) / trained elements, in ns); the same four with
    `baseline_` in front, for the baseline loop over its two forwards; `t_forward`, `t_step`, `t_baseline` (seconds,
    medians); `rounds`, `clock` and the description of the workload.

    Cost: (2 + forwards + baseline) x (rounds + 1), about 5 minutes with the defaults on one core. Memory: see
    `bench_memory`. Raises ModelError or ValueError before anything is timed.

    Example: zograd bench step --batch-size 2 --seq-len 32
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    with quiet_machine(threads):
        work = TimedModel(
            model, batch_size=batch_size, seq_len=seq_len, dtype=dtype, method=method, device=device, seed=seed,
            law=law, together=together,
        )  # fmt: skip
        clock = clock_of(work.device)
        window = LIMIT if ride_along(work.run.method) else 1  # steps that share the pass over the weights

        def steps() -> None:
            with compiled(work.model) if compile else nullcontext():
                for _ in range(window):
                    work.step()

        first: dict[str, float] = {}
        if compile:
            start = time.perf_counter()
            steps()
            first["t_first_compiled"] = time.perf_counter() - start
        ways = {"forward": lambda: work.forwards(2), "step": steps, "baseline": work.baseline}
        seconds = interleaved(ways, rounds, CLOCKS[clock])
        seconds["step"] = [t / window for t in seconds["step"]]
        k = work.method.evaluations
        forward = [t / 2 for t in seconds["forward"]]
        return {
            **comparison("", seconds["step"], [k * t for t in forward], work.dim),
            **comparison("baseline_", seconds["baseline"], [2 * t for t in forward], work.dim),
            "forwards": k,
            "rounds": rounds,
            "t_forward": statistics.median(forward),
            "t_step": statistics.median(seconds["step"]),
            "t_baseline": statistics.median(seconds["baseline"]),
            "compiled": compile,
            **first,
            "clock": clock,
            **work.description(),
        }


CLOCKS: dict[str, Callable[[], float]] = {"thread_time": time.thread_time, "wall": time.perf_counter}


def clock_of(device: torch.device) -> str:
    """Name in `CLOCKS`: the time of the one thread that does all the work, or that on the wall."""
    return "thread_time" if torch.get_num_threads() == 1 and device.type == "cpu" else "wall"


def interleaved(ways: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each way in each round: round-robin, order reversed every round, after a warm-up. Bar on stderr."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    count = (rounds + 1) * len(ways)
    keep_freed()  # this and settled_objects as in training
    with settled_objects(), tqdm(total=count, unit="run", file=sys.stderr, disable=None, leave=False) as bar:
        for number in range(rounds + 1):
            for name in order:
                start = clock()
                ways[name]()
                if number:
                    seconds[name].append(clock() - start)
                bar.update()
            order.reverse()
    return seconds


def comparison(prefix: str, seconds: Sequence[float], reference: Sequence[float], dim: int) -> dict[str, Any]:
    """Median, quartiles and min/min of seconds / reference, round by round, and their difference in ns an element."""
    extra = [(t - r) / dim * 1e9 for t, r in zip(seconds, reference, strict=True)]
    return {**ratio(f"{prefix}ratio", seconds, reference), f"{prefix}overhead_ns_per_param": statistics.median(extra)}


def ratio(name: str, seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and fastest over fastest of seconds / reference, round by round."""
    ratios = [t / r for t, r in zip(seconds, reference, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    quartiles, least = [low, high], min(seconds) / min(reference)
    return {name: statistics.median(ratios), f"{name}_quartiles": quartiles, f"{name}_min": least}
