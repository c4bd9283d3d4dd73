"""`python -m benchmarks.compiled_blocks`: whether torch.compile makes the derivative of a block faster.

The last block of a model, alone: a forward, and a forward with the derivative of its matrices, compiled and not, in
turns. Times are of the processor, so other processes count little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import nn

from zograd.blockwise import record
from zograd.blockwise.calls import derivative
from zograd.cli.options import script
from zograd.llm import loading
from zograd.llm.parts import without_cache


def measure(
    model: Annotated[str, "The model."] = "smollm2-135m",
    batch_size: Annotated[int, "Examples of a batch."] = 16,
    tokens: Annotated[int, "Tokens of an example."] = 64,
    rounds: Annotated[int, "Times that each is measured."] = 10,
    threads: Annotated[int, "CPU threads."] = 1,
) -> dict[str, Any]:
    """Compare a compiled block with the block, by the processor's time.

    Example: python -m benchmarks.compiled_blocks --batch-size 4
    """
    torch.set_num_threads(threads)
    base, _ = loading.load(model, dtype="float32")
    base.requires_grad_(False)
    blocks = list(loading.blocks(base))
    last = len(blocks) - 1
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, loading.vocabulary(base), (batch_size, tokens), generator=drawn)
    with without_cache(base):
        _, (call,) = record(
            lambda: nn.functional.cross_entropy(base(input_ids=ids).logits[:, -1].float(), ids[:, 0]), blocks, last
        )
    hidden, signal = call.inputs[last], call.behind
    matrices = [p for p in blocks[last].parameters() if p.ndim == 2]

    def forward(block: nn.Module) -> object:
        with torch.no_grad():
            return call.run(block, last, hidden)

    def both(block: nn.Module) -> object:
        return derivative(block, call, last, hidden, signal, matrices)

    def spent(work: Callable[[nn.Module], object], block: nn.Module) -> float:
        begin = time.process_time()
        work(block)
        return time.process_time() - begin

    kinds: dict[str, nn.Module] = {"eager": blocks[last], "compiled": torch.compile(blocks[last])}  # type: ignore[dict-item]
    compiling = spent(both, kinds["compiled"]) + spent(forward, kinds["compiled"])
    found: dict[str, Any] = {"batch_size": batch_size, "tokens": tokens, "seconds_of_compiling": round(compiling, 1)}
    for name, work in (("forward", forward), ("derivative", both)):
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, block in kinds.items():
                times[kind].append(spent(work, block))
        middle = {kind: statistics.median(seen) for kind, seen in times.items()}
        found[name] = {kind: round(seconds, 4) for kind, seconds in middle.items()}
        found[name]["eager_over_compiled"] = round(middle["eager"] / middle["compiled"], 3)
    return found


app = script(measure)

if __name__ == "__main__":
    app()
