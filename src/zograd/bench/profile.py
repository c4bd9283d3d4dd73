"""`zograd bench profile`: where the time of a step goes.

torch.profiler gives every operator of a step; ranges around the passes of noise (`watched`) and around the loss head
say what an operator belongs to. Time that no operator and no pass of noise accounts for is Python.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from zograd import kernels, noise
from zograd.bench.arguments import BatchSize, Device, Dtype, LawName, MethodName, Model, SeqLen, Threads, Together
from zograd.bench.workload import TimedModel, quiet_machine
from zograd.lens.lens import Lens
from zograd.llm import loading
from zograd.llm.scoring import loss
from zograd.noise import device as cuda
from zograd.noise import native, portable
from zograd.stores import Iterate

Part: TypeAlias = Literal["probes", "move"]

PARTS = ("matmul", "attention", "other", "noise_probes", "noise_move", "loss_head", "python")
RANGES = {"zograd::probes": "noise_probes", "zograd::move": "noise_move", "zograd::head": "loss_head"}
STEP = "zograd::step"
PRODUCTS = {"linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}


class Pass(NamedTuple):
    """One pass of noise: what it was for, elements written, noise drawn (elements times terms), where it wrote."""

    name: str
    part: Part
    elements: int
    drawn: int
    address: int
    bytes: int
    in_place: bool


@contextmanager
def watched(enter: Callable[[str], Any] = record_function) -> Iterator[list[Pass]]:
    """Gives a list that every pass of `zograd.noise` and every side branch of `zograd.kernels` inside is noted in.

    A pass within a query (`Lens`) is one for a probe, others and those of `Iterate` are for the move. `enter` makes a
    context manager of "zograd::probes" or "zograd::move", which is open during the pass (a move that makes a pair in
    passing is open as the move that it is part of, and noted as both). One thread; not nested.
    """
    passes: list[Pass] = []
    lenses, moves, inside = 0, 0, False

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # an engine whose `combine` is its `combine_group`
                return function(*args, **kwargs)
            part: Part = "probes" if lenses and not moves and name != "move_and_pair" else "move"
            inside = True
            try:
                with enter(f"zograd::{part}"):
                    result = function(*args, **kwargs)
            finally:
                inside = False
            if name == "add_outer" and result is None:  # it declined
                return None
            if name == "move_and_pair":
                plus, _, x, _, move, _, terms = args[:7]
                n, size = x.numel(), x.numel() * x.element_size()
                passes.append(Pass("combine", "move", n, n * len(move), x.data_ptr(), size, True))
                passes.append(Pass("combine_pair", "probes", n, n * len(terms), plus.data_ptr(), size, False))
                return result
            jobs = args[0] if name == "combine_group" else (cuda.Job(args[0], args[1] if name == "combine" else None),)
            terms = {"combine": 3, "combine_group": 2, "combine_pair": 3, "combine_rows": 3}.get(name)
            count = 1 if name == "signs" else 0 if terms is None else len(args[terms])
            for job in jobs:
                n, out = job.out.numel(), job.out
                in_place = job.in_place if name.startswith("combine") else args[1] is out
                passes.append(Pass(name, part, n, n * count, out.data_ptr(), n * out.element_size(), in_place))
            return result

        return call

    def looking(function: Callable[..., Any], by: int) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal lenses
            lenses += by
            return function(*args)

        return call

    def moving(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal moves
            moves += 1
            try:
                return function(*args, **kwargs)
            finally:
                moves -= 1

        return call

    with ExitStack() as stack:
        for engine in (native, portable, cuda):
            for name in ("combine", "combine_group", "combine_pair", "combine_rows", "move_and_pair", "signs"):
                if hasattr(engine, name):
                    stack.enter_context(replaced(engine, name, noted(name, getattr(engine, name))))
        for name in ("add_sides_", "add_outer"):
            stack.enter_context(replaced(kernels, name, noted(name, getattr(kernels, name))))
        stack.enter_context(replaced(Lens, "__enter__", looking(Lens.__enter__, 1)))
        stack.enter_context(replaced(Lens, "__exit__", looking(Lens.__exit__, -1)))
        stack.enter_context(replaced(Iterate, "add", moving(Iterate.add)))
        yield passes


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, owner.name is `value`."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def head_watched(model: Any) -> Iterator[None]:
    """Opens the range of the loss head: `llm.loss.token_losses`, or from the output matrix to the end of the model."""
    model = loading.plain_model(model)
    ranges: list[record_function] = []

    def begin(*_: Any) -> None:
        ranges.append(record_function("zograd::head"))
        ranges[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(*_: Any) -> None:
        while ranges:
            ranges.pop().__exit__(None, None, None)

    token_losses = loss.token_losses

    def tiled(*args: Any, **kwargs: Any) -> Any:
        with record_function("zograd::head"):
            return token_losses(*args, **kwargs)

    hooks = [
        model.get_output_embeddings().register_forward_pre_hook(begin),
        model.register_forward_hook(end, always_call=True),
    ]
    try:
        with replaced(loss, "token_losses", tiled):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def part_of(event: Any) -> str:
    """The part that the self time of a profiler event belongs to: that of the nearest range, else of the operator."""
    names = []
    while event is not None and event.name not in RANGES and event.name != STEP:
        names.append(event.name.removeprefix("aten::"))
        event = event.cpu_parent
    part = RANGES.get(getattr(event, "name", ""))
    if part is not None and (names or part != "loss_head"):
        return part
    if any("attention" in name for name in names):
        return "attention"
    if not PRODUCTS.isdisjoint(names):
        return "matmul"
    return "other" if names else "python"


def seconds_by_part(events: Any) -> dict[str, float]:
    """Seconds of each of `PARTS` in the profiled steps; their sum is the time of the steps."""
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in events:
        top = event
        while top.name != STEP and top.cpu_parent is not None:
            top = top.cpu_parent
        if top.name == STEP:
            seconds[part_of(event)] += event.self_cpu_time_total * 1e-6
    return seconds


def bench_profile(
    model: Model = "smollm2-135m",
    *,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    rounds: Annotated[int, "Profiled steps; best a multiple of 8."] = 8,
    threads: Threads = None,
    device: Device = "cpu",
    seed: int = 0,
    law: LawName = None,
    together: Together = None,
) -> dict[str, Any]:
    """Where the time of a step goes: products, attention, noise, the loss head, Python.

    Shares of the wall time of a step, over `rounds` profiled steps after a warm-up. law, together: see `TimedModel`.

    Moves may stay pending for up to 8 steps (`stores.deferred.LIMIT`): a multiple of 8 rounds has its share of them.

    `shares` and `seconds` (a step) have the keys of `PARTS`; the shares sum to 1:
        matmul        matrix products in front of the loss head
        attention     scaled_dot_product_attention, with all that it calls
        other         all other operators of the forward (norms, activations, embeddings, copies) and of the step
        noise_probes  regenerating weights at x + mu v, side branches of low rank, making their factors
        noise_move    writing the step
        loss_head     from the output matrix to the loss: its products, log-sum-exp (its noise is in noise_probes)
        python        what no operator accounts for: Python, dispatch, the profiler's own cost
    `t_step`: seconds of a step without the profiler, median of as many. `profiler_slowdown`: profiled over that; what
    it has above 1 is mostly in `python`. `noise_per_weight`: noise elements drawn a step over trained weights, for
    `probes` and for the `move`. `passes`: calls a step.
    `rounds` and the description of the workload.

    Cost: 2 rounds + 2 steps. A CUDA device needs CUDA_LAUNCH_BLOCKING=1 in the environment, so that an operator lasts
    as long as its kernels. Raises ValueError without, ModelError or ValueError as `bench_step` does.

    Example: zograd bench profile --batch-size 2 --seq-len 32 --threads 1
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if device.startswith("cuda") and os.environ.get("CUDA_LAUNCH_BLOCKING") != "1":
        raise ValueError("operators on a CUDA device return before their kernels end; set CUDA_LAUNCH_BLOCKING=1")
    with quiet_machine(threads):
        work = TimedModel(
            model, batch_size=batch_size, seq_len=seq_len, dtype=dtype, method=method, device=device, seed=seed,
            law=law, together=together,
        )  # fmt: skip
        plain = []
        with tqdm(total=2 * rounds + 2, unit="step", file=sys.stderr, disable=None, leave=False) as bar:

            def step() -> None:
                work.step()
                bar.update()

            step()
            for _ in range(rounds):
                start = time.perf_counter()
                step()
                plain.append(time.perf_counter() - start)
            with head_watched(work.model), watched() as passes, profile(activities=[ProfilerActivity.CPU]) as seen:
                step()  # warms the profiler up
                passes.clear()
                for _ in range(rounds):
                    with record_function(STEP):
                        step()
        total = seconds_by_part(seen.events())
        whole = sum(total.values())
        drawn = {
            part: sum(p.drawn for p in passes if p.part == part) / (rounds * work.dim) for part in ("probes", "move")
        }
        return {
            "shares": {part: total[part] / whole for part in PARTS},
            "seconds": {part: total[part] / rounds for part in PARTS},
            "t_step": statistics.median(plain),
            "profiler_slowdown": whole / rounds / statistics.median(plain),
            "noise_per_weight": drawn,
            "passes": len(passes) // rounds,
            "rounds": rounds,
            **work.description(),
            "noise_backend": noise.backend(work.device),
        }


def as_text(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{part:<14}{100 * share:>6.1f} %{1e3 * result['seconds'][part]:>10.1f} ms"
        for part, share in result["shares"].items()
    ]
    rest = ", ".join(f"{key} {value}" for key, value in result.items() if key not in ("shares", "seconds"))
    return "\n".join([*lines, rest])
