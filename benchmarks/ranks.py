"""`python -m benchmarks.ranks`: processes that share the evaluations of a step, against one, each on one core."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from tqdm import tqdm

from zograd.bench.arguments import BatchSize, Dtype, MethodName, Model, Rounds, SeqLen
from zograd.bench.workload import TimedModel
from zograd.cli.options import script
from zograd.core.run import Run
from zograd.distributed import Deal, Peers, shared
from zograd.errors import UsageError
from zograd.oracles import Oracle, sequential
from zograd.stores import Store


def bench_ranks(
    model: Model = "smollm2-135m",
    *,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    parallel: Annotated[Deal, "What the processes share."] = "data",
    ranks: Annotated[int, "Processes, each on one core."] = 2,
    rounds: Rounds = 5,
    steps: Annotated[int, "Steps of a repeat."] = 1,
) -> dict[str, Any]:
    """Steps of several processes that share the evaluations, against one, each on one core.

    Steps of one process on one core and of `ranks` processes on a core each, by turns, from the same weights.

    All have the same global batch. Three ways: "together" by all ranks; "alone" by rank 0, which evaluates the same
    parts one after the other; "whole" by rank 0 with the batch in one piece, as it runs without other ranks.

    speedup: wall time of "alone" over that of "together", median of the rounds, with quartiles. speedup_whole: the same
        for "whole". speedup_cpu: CPU time of "alone" over that of the busiest rank of "together", which is what idle
        cores would give; cpu_share: CPU time over wall time of "together", below 1 where something else ran or ranks
        waited. seconds_*: wall time of a step, median. bytes_per_step: payload that a rank sends in a step.
        identical: whether "alone" and every rank of "together" end at the same bits. cores: that ranks were pinned to.

    Memory: twice the weights in each process. Raises ValueError for fewer than 2 ranks or a batch that they do not cut.

    Example: python -m benchmarks.ranks --batch-size 16 --seq-len 64
    """
    if ranks < 2:
        raise UsageError(f"ranks={ranks}: one process has nobody to share with; use at least 2")
    if batch_size < ranks:
        raise UsageError(f"a batch of {batch_size} cannot be cut into {ranks} parts; use batch_size >= {ranks}")
    if rounds < 1 or steps < 1:
        raise UsageError(f"rounds={rounds} and steps={steps} must be at least 1")
    settings = {"batch_size": batch_size, "seq_len": seq_len, "dtype": dtype, "method": method}
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{Path(folder).resolve()}/rendezvous"
        queue = processes.get_context("spawn").SimpleQueue()
        arguments = (ranks, place, model, settings, parallel, rounds, steps, queue)
        processes.spawn(_rank, arguments, ranks)  # type: ignore[attr-defined, no-untyped-call]
        result: dict[str, Any] = queue.get()
    return result


def _rank(
    rank: int,
    ranks: int,
    place: str,
    model: str,
    settings: dict[str, Any],
    parallel: Deal,
    rounds: int,
    steps: int,
    queue: Any,
) -> None:
    core = _pin(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)
    work = TimedModel(model, **settings, device="cpu", seed=0)
    start = {name: p.detach().clone() for name, p in work.parameters.items()}
    peers, alone = Peers(dist.group.WORLD), Peers()
    parts = [work.ids[part::ranks] for part in range(ranks)]
    weights = [len(part) / len(work.ids) for part in parts]
    network: Any = work.model

    def loss(part: int, rows: object = None) -> float:
        return float(network(input_ids=parts[part], labels=parts[part], use_cache=False).loss)

    ways: dict[str, Oracle] = {
        "together": shared(loss, peers, weights=weights, deal=parallel),
        "alone": shared(loss, alone, weights=weights, deal=parallel),
        "whole": sequential(work.loss),
    }
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    digests: dict[str, str] = {}

    def turn(way: str) -> tuple[float, float, str]:
        """Wall and CPU seconds of `steps` steps from the first weights, and where they end."""
        with torch.no_grad():
            for name, p in work.parameters.items():
                p.copy_(start[name])
        run = Run(Store(work.parameters, space=work.method.space), work.method, work.seed)
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        if rank == 0 or way == "together":
            for _ in range(steps):
                run.step(ways[way])
        return time.perf_counter() - wall, time.process_time() - cpu, run.store.digest()

    with tqdm(
        total=(rounds + 1) * len(ways), unit="run", file=sys.stderr, disable=rank > 0 or None, leave=False
    ) as bar:
        for number in range(rounds + 1):  # the first warms up
            for way in ways if number % 2 else reversed(ways):
                wall, cpu, digests[way] = turn(way)
                if number:
                    spent[way].append((wall, cpu))
                bar.update()
    told: list[Any] = [None] * ranks
    dist.all_gather_object(told, (spent["together"], digests["together"], core))
    if rank == 0:
        queue.put(
            {
                **_summary(spent, [together for together, _, _ in told], steps),
                "bytes_per_step": peers.sent / ((rounds + 1) * steps),
                "identical": {digest for _, digest, _ in told} == {digests["alone"]},
                "ranks": ranks,
                "cores": [place for _, _, place in told],
                "parallel": parallel,
                "rounds": rounds,
                "steps": steps,
                **work.description(),
            }
        )
    dist.destroy_process_group()


def _pin(rank: int) -> int | None:
    """Keep this process on one of the cores that it may use; None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    core = cores[rank % len(cores)]
    os.sched_setaffinity(0, {core})
    return core


def _summary(
    spent: dict[str, list[tuple[float, float]]], together: list[list[tuple[float, float]]], steps: int
) -> dict[str, Any]:
    """Ratios round by round; `together` holds those of every rank."""

    def ratios(way: str, of: Callable[[tuple[float, float]], float]) -> list[float]:
        slowest = [max(of(times) for times in turn) for turn in zip(*together, strict=True)]
        return [of(times) / slow for times, slow in zip(spent[way], slowest, strict=True)]

    def wall(times: tuple[float, float]) -> float:
        return times[0]

    def cpu(times: tuple[float, float]) -> float:
        return times[1]

    speedup = ratios("alone", wall)
    low, _, high = statistics.quantiles(speedup, n=4, method="inclusive") if len(speedup) > 1 else speedup * 3
    return {
        "speedup": statistics.median(speedup),
        "speedup_quartiles": [low, high],
        "speedup_whole": statistics.median(ratios("whole", wall)),
        "speedup_cpu": statistics.median(ratios("alone", cpu)),
        "speedup_whole_cpu": statistics.median(ratios("whole", cpu)),
        "cpu_share": statistics.median(c / w for turn in together for w, c in turn),
        **{f"seconds_{way}": statistics.median(w for w, _ in times) / steps for way, times in spent.items()},
    }


app = script(bench_ranks)

if __name__ == "__main__":
    app()
