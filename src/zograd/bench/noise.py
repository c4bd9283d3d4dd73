"""Time of a pass of noise over weights, in bare in-place additions of a number to the same weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from zograd.bench.arguments import Device, Rounds, Seed, Threads
from zograd.bench.step import CLOCKS, clock_of, comparison, interleaved
from zograd.bench.workload import quiet_machine
from zograd.errors import UsageError
from zograd.noise import Kind, Term, backend, combine, fold

DTYPES = ("float32", "bfloat16", "float16")
COEF = 2.0**-20
"""Of the terms and of `add_`: passes over weights around 0.02 stay there for any number of rounds."""


def bench_noise(
    *,
    dtype: Annotated[str | None, "float32, bfloat16 or float16; several with commas. [all three]"] = None,
    elements: Annotated[int, "Weights that a pass goes over."] = 1 << 24,
    rounds: Rounds = 21,
    threads: Threads = None,
    device: Device = "cpu",
    seed: Seed = 0,
) -> dict[str, Any]:
    """A pass of noise over weights against a plain in-place addition to them, interleaved.

    ratio = median over rounds of (time of a pass of `combine`, in place) / (time of `x.add_(c)` on the same x).

    The passes and `add_` take turns in one process, in an order that reverses every round, after one warm-up of each.
    With one thread on a CPU the clock is the CPU time of this thread, otherwise wall time.

    Passes: `sign` (one term), `signs` (two terms), `normal`, `normals` (two terms), and in 16 bits `stochastic` (one
    sign, rounded stochastically) and `split` (one sign, on split weights).

    Keys: `passes`, for each dtype and pass `ratio`, `ratio_quartiles`, `ratio_min` (fastest over fastest),
    `ns_per_element` (fastest), `gb_per_s` (weights read and written in the median time, 10^9 bytes a second); `add`
    under each dtype is `add_` itself. `backend`, `elements`, `rounds`, `clock`, `threads`, `device`, `torch`.

    Cost: about 30 passes a round of `elements` elements, 20 seconds with the defaults on one core. Memory: 6 bytes an
    element. Raises ValueError before anything is timed.

    Example: zograd bench noise --dtype bfloat16 --threads 1
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    if elements < 1:
        raise UsageError(f"elements must be at least 1, got {elements}")
    dtypes = DTYPES if dtype is None else tuple(dtype.split(","))
    if unknown := sorted(set(dtypes) - set(DTYPES)):
        raise UsageError(f"dtype {unknown[0]!r} is not measured; expected one of {', '.join(DTYPES)}")
    place = torch.device(device)
    with quiet_machine(threads):
        clock = clock_of(place)
        passes: dict[str, dict[str, Any]] = {}
        for name in dtypes:
            generator = torch.Generator().manual_seed(seed)
            x = (0.02 * torch.randn(elements, generator=generator)).to(getattr(torch, name)).to(place)
            seconds = interleaved(_passes(x, seed), rounds, CLOCKS[clock])
            passes[name] = {
                way: _summary(taken, seconds["add"], elements, (2 if way != "split" else 4) * x.element_size())
                for way, taken in seconds.items()
            }
        return {
            "passes": passes,
            "elements": elements,
            "rounds": rounds,
            "clock": clock,
            "backend": backend(place),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
            "torch": torch.__version__,
        }


def _passes(x: Tensor, seed: int) -> dict[str, Callable[[], None]]:
    sign, other_sign = (Term(Kind.SIGN, fold(seed, j), COEF) for j in (0, 1))
    normal, other_normal = (Term(Kind.NORMAL, fold(seed, j), COEF) for j in (2, 3))
    wait: Callable[[], None] = (lambda: torch.cuda.synchronize(x.device)) if x.is_cuda else (lambda: None)

    def add() -> None:
        x.add_(COEF)
        wait()

    def move(*terms: Term, **how: Any) -> Callable[[], None]:
        def go() -> None:
            combine(x, x, terms=terms, **how)  # reads its count at the end, which waits for the device

        return go

    ways = {
        "add": add,
        "sign": move(sign),
        "signs": move(sign, other_sign),
        "normal": move(normal),
        "normals": move(normal, other_normal),
    }
    if x.element_size() == 2:
        low = torch.zeros(x.numel(), dtype=torch.int16, device=x.device)
        ways |= {"stochastic": move(sign, rounding=fold(seed, 4)), "split": move(sign, low=low)}
    return ways


def _summary(seconds: Sequence[float], add: Sequence[float], elements: int, bytes_each: int) -> dict[str, Any]:
    summary = comparison("", seconds, add, elements)
    del summary["overhead_ns_per_param"]
    return {
        **summary,
        "ns_per_element": min(seconds) / elements * 1e9,
        "gb_per_s": bytes_each * elements / statistics.median(seconds) / 1e9,
    }


def as_text(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [f"{'dtype':<10}{'pass':<12}{'x add_':>8}{'quartiles':>16}{'ns/element':>12}{'GB/s':>8}"]
    for dtype, ways in result["passes"].items():
        for way, r in ways.items():
            low, high = r["ratio_quartiles"]
            lines.append(
                f"{dtype:<10}{way:<12}{r['ratio']:>8.2f}{f'{low:.2f} - {high:.2f}':>16}"
                f"{r['ns_per_element']:>12.3f}{r['gb_per_s']:>8.1f}"
            )
    rest = ", ".join(f"{key} {value}" for key, value in result.items() if key != "passes")
    return "\n".join([*lines, rest])
