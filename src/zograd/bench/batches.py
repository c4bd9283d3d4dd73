"""Steps on batches of text whose sequences share rows, beside steps on the same batches padded."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Annotated, Any

import torch

from zograd.bench.arguments import BatchSize, Device, Dtype, LabelWords, MethodName, Model, Rounds, Task, Threads
from zograd.bench.step import CLOCKS, clock_of, interleaved, ratio
from zograd.bench.workload import method_named, quiet_machine
from zograd.core.run import Run
from zograd.errors import UsageError
from zograd.hub import load_task
from zograd.llm import loading
from zograd.llm.scoring import Batches, Scorer
from zograd.llm.scoring.kinds import check_reads, reads_of
from zograd.oracles import batched
from zograd.stores import Store

EXAMPLES = 1000
"""Training examples that batches are drawn from, as in `zograd train`."""


def bench_batches(
    model: Model = "smollm2-135m",
    task: Task = "mr",
    *,
    batch_size: BatchSize = 16,
    train: Annotated[str, "full, lora, or a pattern of parameter names."] = "full",
    label_words: LabelWords = None,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    steps: Annotated[int, "Steps per round."] = 4,
    rounds: Rounds = 5,
    threads: Threads = None,
    device: Device = "cpu",
    seed: int = 0,
) -> dict[str, Any]:
    """Steps on text whose sequences share rows, against steps on padded batches.

    ratio = median over rounds of (time of `steps` steps on packed batches) / (time of as many on padded ones).

    Both go through the same batches of the task, in as many forwards as cost least; they take turns in one process.
    label_words: in place of the task's. Where they have several tokens, they share one prompt in a packed batch, and
    each has a prompt of its own in a padded one.

    Keys: `ratio`, `ratio_quartiles`, `ratio_min` (fastest over fastest); `packs`, whether the model allows packing;
    `real_packed` and `real_padded`, the share of the tokens of those forwards that are no padding; `t_packed`,
    `t_padded` (seconds of a step, medians); `clock`, and the settings.

    Raises ModelError, TaskError, or ValueError for a method not on the menu, before anything is timed.

    Example: zograd bench batches --task trec --batch-size 8
    """
    if steps < 1 or rounds < 1:
        raise UsageError(f"steps and rounds must be at least 1, got {steps} and {rounds}")
    with quiet_machine(threads):
        base, tokenizer = loading.load(model, dtype=dtype, device=device)
        loaded, menu = load_task(task, label_words=label_words), method_named(method)
        check_reads(type(base).__name__, reads_of(base), loaded)
        module = loading.attach_lora(base, loading.LoraSpec(), seed) if train == "lora" else base
        chosen = loading.select(module, train)
        module.requires_grad_(False)
        batches = Batches(list(loaded.splits["train"])[:EXAMPLES], batch_size, seed)

        def way(pack: bool) -> tuple[Scorer, Callable[[], None]]:
            scorer = Scorer(module, tokenizer, loaded)
            if not pack:
                scorer.packs, scorer.answers = False, None
            run = Run(Store(chosen), menu, seed)
            run.store.deferred.start(run.store.leaves)  # as in training
            batch: list[Any] = []
            points = batched(lambda n: scorer.copy_losses(batch, n), lambda: scorer.together(batch))

            def go() -> None:
                for _ in range(steps):
                    batch[:] = batches[run.step_number]
                    run.step(points)

            return scorer, go

        (packing, packed), (padding, padded) = way(True), way(False)
        clock = clock_of(packing.device)
        seconds = interleaved({"packed": packed, "padded": padded}, rounds, CLOCKS[clock])
        first = [batches[t] for t in range(steps * (rounds + 1))]
        return {
            **ratio("ratio", seconds["packed"], seconds["padded"]),
            "packs": packing.packs,
            "real_packed": _real(packing, first),
            "real_padded": _real(padding, first),
            **{f"t_{name}": statistics.median(values) / steps for name, values in seconds.items()},
            "clock": clock,
            "model": model,
            "task": loaded.name,
            "label_words": list(loaded.label_words),
            "batch_size": batch_size,
            "train": train,
            "method": menu.name,
            "dtype": dtype,
            "steps": steps,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        }


def _real(scorer: Scorer, batches: list[list[Any]]) -> float:
    """The share of the tokens of the forwards of these batches that are no padding."""
    real = total = 0
    for batch in batches:
        for bucket in scorer.buckets(batch):
            lengths = scorer.lengths([batch[i] for i in bucket])
            real += sum(lengths)
            total += scorer.layout(lengths).tokens
    return real / total
