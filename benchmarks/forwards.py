"""`python -m benchmarks.forwards`: what a language model learns per forward pass, by each way to get a gradient.

Every run is `zograd train` on SmolLM2-135M in float32 with a cosine schedule, 600 training questions and 300 of the
test split, and is appended to a file of lines, so that the command goes on where it was stopped. `--page` writes the
page from the file alone.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from benchmarks.results import load
from zograd.cli.options import script
from zograd.cli.output import say

RESULTS = Path("docs/forwards/results.jsonl")
PAGE = Path("docs/forwards.md")

PARTS: dict[str, dict[str, Any]] = {
    "last": {"train": "mlp", "layers": 1, "batch_size": 128},
    "four": {"train": "proj", "layers": 4, "batch_size": 64},
    "all": {"train": "proj", "batch_size": 32},
    "lora": {"train": "lora", "batch_size": 32},
}
"""What is trained: the MLP of the last block, all matrices of the last four blocks or of all, adapters on all."""

FORWARDS = {"zo_sgd": 2.0, "residual": 4.0, "backprop": 4.0}
"""Forwards of the trained blocks in a step: a backward counts for two. `residual` and `backprop` make a forward, run
each block again and take its derivative."""

RATES: dict[str, dict[str, Sequence[float]]] = {
    "residual": {"last": (1e-3, 2e-3), "four": (3e-4, 1e-3), "all": (1e-4, 2e-4), "lora": (1e-3, 3e-3)},
    "backprop": {"last": (1e-3, 2e-3), "four": (3e-4, 1e-3), "all": (1e-4, 2e-4), "lora": (1e-3, 3e-3)},
    "zo_sgd": {"last": (1e-3, 3e-3), "four": (3e-4, 1e-3), "all": (1e-5, 1e-4), "lora": (1e-3, 1e-2)},
}
"""Two learning rates for each method and part: the same effort for all."""


@dataclass(frozen=True)
class Line:
    """One run. curve: (step, accuracy, loss) on held-out questions. seconds: of the steps and their evaluations."""

    task: str
    part: str
    method: str
    lr: float
    seed: int
    steps: int
    curve: Sequence[Sequence[float]]
    seconds: float
    peak_bytes: int
    inference_peak_bytes: int

    @property
    def of(self) -> tuple[str, str, str, float, int, int]:
        """What was run."""
        return self.task, self.part, self.method, self.lr, self.seed, self.steps


def run(task: str, part: str, method: str, lr: float, seed: int, steps: int) -> Line:
    """Train, and read the curve off the log of the run."""
    from zograd.llm.settings import TrainSettings
    from zograd.llm.train import train

    settings = TrainSettings.model_validate({
        "model": "smollm2-135m", "task": task, "method": method, "lr": lr, "seed": seed, "steps": steps,
        "lr_schedule": "cosine", "lr_end": 0.05, "dtype": "float32", "threads": 1, "train_examples": 600,
        "eval_split": "test", "eval_examples": 300, "eval_every": max(steps // 4, 1), **PARTS[part],
        **({"mu": 2.0**-11} if method == "zo_sgd" else {}),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = train(settings, Path(folder) / "run", quiet=True)
        log = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        curve = [(line["step"], line["value"], line["eval_loss"]) for line in log if "value" in line]
    return Line(
        task, part, method, lr, seed, steps, curve, done["seconds"], done["peak_bytes"], done["inference_peak_bytes"]
    )


def written(lines: Iterable[Line]) -> str:
    """The page: for each task, part and method the learning rate with the lowest mean loss at the end."""
    groups: dict[tuple[str, str, str, int], dict[float, list[Line]]] = {}
    for line in lines:
        groups.setdefault((line.task, line.part, line.method, line.steps), {}).setdefault(line.lr, []).append(line)
    rows = []
    for (task, part, method, steps), rates in groups.items():
        lr, best = min(rates.items(), key=lambda pair: statistics.mean(line.curve[-1][2] for line in pair[1]))
        accuracy = [100 * line.curve[-1][1] for line in best]
        spread = f" [{min(accuracy):.1f}, {max(accuracy):.1f}]" if len(best) > 1 else ""
        peak = statistics.median(line.peak_bytes / line.inference_peak_bytes for line in best)
        loss = statistics.mean(line.curve[-1][2] for line in best)
        rows.append(
            f"| {task} | {part} | `{method}` | {lr:g} of {len(rates)} | {len(best)} | {steps} "
            f"| {steps * FORWARDS[method]:,.0f} | {100 * best[0].curve[0][1]:.1f} "
            f"| {statistics.mean(accuracy):.1f}{spread} | {loss:.3f} | {peak:.3f} |"
        )
    parts = "\n".join(f"- `{name}`: {json.dumps(given)}" for name, given in PARTS.items())
    return f"""# Learning per forward pass

The first command makes the runs of a part, those that `{RESULTS.as_posix()}` does not have yet; the second one writes
this page from that file:

<!-- not run: its runs take hours of one core -->
```bash
python -m benchmarks.forwards --parts last --seeds 3
python -m benchmarks.forwards --parts four --page
```

SmolLM2-135M in float32, one thread, a cosine schedule to 5 %, 600 training and 300 test questions. "lr" is the rate
with the lowest mean loss at the end, and of how many. "forwards" are forward passes of the trained blocks, where a
backward counts for two. Accuracies are in percent, over the seeds their mean and range. "peak" is the peak of the
process over that of inference. What is trained:

{parts}

| task | part | method | lr | seeds | steps | forwards | zero-shot | accuracy | loss | peak |
|---|---|---|---|---|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}
"""


def measure(
    tasks: Annotated[str, "Tasks, separated by commas."] = "trec",
    parts: Annotated[str, "Of last, four, all and lora, separated by commas."] = "last",
    methods: Annotated[str, "Of residual, backprop and zo_sgd; empty: none."] = "residual,backprop",
    seeds: Annotated[int, "Seeds 0 to this, less one."] = 1,
    steps: Annotated[int, "Steps of a run."] = 50,
    out: Annotated[str, "The file of lines."] = str(RESULTS),
    page: Annotated[bool, "Write the page at the end."] = False,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Run what is not in the file yet, one run after the other.

    Example: python -m benchmarks.forwards --parts last,four --seeds 3
    """
    file = Path(out)
    known = {line.of for line in read(file)}
    wanted = [
        (task, part, method, lr, seed)
        for task, part, method in product(*(filter(None, text.split(",")) for text in (tasks, parts, methods)))
        for lr in RATES[method][part]
        for seed in range(seeds)
    ]
    for of in wanted:
        if (*of, steps) not in known:
            line = run(*of, steps)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(line)) + "\n")
            progress(f"{line.of}: accuracy {line.curve[-1][1]:.3f}, loss {line.curve[-1][2]:.3f}")
    if page:
        PAGE.write_text(written(read(file)), encoding="utf-8")
    return {"runs": len(read(file))}


def read(file: Path) -> list[Line]:
    """The runs in a file; none where there is no file."""
    return [Line(**line) for line in load(file)]


app = script(measure)

if __name__ == "__main__":
    app()
