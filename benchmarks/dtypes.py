"""`python -m benchmarks.dtypes`: whether this machine computes faster in bfloat16 than in float32.

Forwards of a language model, and steps of the default of `zograd train`, in both dtypes in turn, in one process and on
one thread. `zograd.llm.loading.models.fast_bfloat16` is the rule that follows from it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch

from zograd.cli.options import script
from zograd.distributed import Peers
from zograd.llm import loading
from zograd.llm.build import Work, resolve, set_up
from zograd.llm.loading import models as rules
from zograd.llm.oracle import from_blocks
from zograd.llm.settings import TrainSettings

DTYPES = ("float32", "bfloat16")
SHAPES = ((16, 64), (32, 24), (8, 16), (1, 64))
"""Examples and tokens of a forward."""


def seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread, which other processes disturb least."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def in_turn(name: str, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """The medians of both dtypes after a round that does not count, and how many times as fast bfloat16 is: the ratio
    of the medians, and the least and the largest ratio of a round.
    """
    times = [{dtype: seconds(work) for dtype, work in ways.items()} for _ in range(rounds + 1)][1:]
    found = {dtype: statistics.median(t[dtype] for t in times) for dtype in ways}
    ratios = [t["float32"] / t["bfloat16"] for t in times]
    return {"what": name, **found, "ratio": found["float32"] / found["bfloat16"], "range": [min(ratios), max(ratios)]}


def step(work: Work) -> None:
    """One step of a method on blocks, on its next batch."""
    run, source = work.prepared.run, work.prepared.store.source
    assert source is not None
    run.step(from_blocks(source, work.scorer, work.batches[run.step_number], Peers()))
    source.end()


def measure(
    model: Annotated[str, "The model."] = "smollm2-135m",
    task: Annotated[str, "The task of the steps."] = "trec",
    rounds: Annotated[int, "Rounds that count."] = 6,
) -> dict[str, Any]:
    """Compare the two dtypes.

    Example: python -m benchmarks.dtypes --rounds 3
    """
    torch.set_num_threads(1)
    rows = []
    models = {dtype: loading.load(model, dtype=dtype)[0] for dtype in DTYPES}
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        ids = torch.randint(0, loading.plain_model(models["float32"]).config.vocab_size, shape, generator=generator)
        with torch.no_grad():
            forwards = {dtype: lambda m=m, ids=ids: m.model(ids) for dtype, m in models.items()}
            rows.append(in_turn(f"forward of {shape[0]} x {shape[1]}", forwards, rounds))
    del models
    with tempfile.TemporaryDirectory() as folder:
        works = {}
        for dtype in DTYPES:
            s = resolve(TrainSettings(model=model, task=task, dtype=dtype, threads=1, eval_examples=2))
            works[dtype] = set_up(s, Path(folder) / dtype)
            for k in range(rounds + 1):  # what is below the trained blocks is computed once in a run
                works[dtype].scorer.remember(works[dtype].batches[k])
        rows.append(in_turn("step of the default", {d: lambda w=w: step(w) for d, w in works.items()}, rounds))
    return {"rows": rows, "auto": "bfloat16" if rules.fast_bfloat16() else "float32"}


def text(result: dict[str, Any]) -> str:
    """A line for each comparison."""
    rows = [
        f"{r['what']:<20} float32 {r['float32']:.3f} s  bfloat16 {r['bfloat16']:.3f} s  "
        f"ratio {r['ratio']:.2f} [{r['range'][0]:.2f}, {r['range'][1]:.2f}]"
        for r in result["rows"]
    ]
    return "\n".join([*rows, f"--dtype auto takes {result['auto']}"])


app = script(measure, text)

if __name__ == "__main__":
    app()
