"""`python -m benchmarks.forwards`: what a language model learns per forward pass, by each way to get a gradient.

Every run is `zograd train` on SmolLM2-135M with a cosine schedule, 600 training questions and 300 of the test split,
and is appended to a file of lines, so that the command goes on where it was stopped. `--page` writes the page from the
file alone.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from benchmarks.results import load, whole
from zograd.cli.options import script
from zograd.cli.output import say

RESULTS = Path("docs/forwards/results.jsonl")
PAGE = Path("docs/forwards.md")

_FLOAT32: dict[str, dict[str, Any]] = {
    "last": {"train": "mlp", "layers": 1, "batch_size": 128},
    "four": {"train": "proj", "layers": 4, "batch_size": 64},
    "all": {"train": "proj", "batch_size": 32},
    "lora": {"train": "lora", "batch_size": 32},
    "packed": {"train": "lora", "layers": 4, "batch_size": 64, "quantized": True},
    "scales": {"train": "scales", "layers": 4, "batch_size": 64, "quantized": True},
    "disk": {"train": "lora", "batch_size": 32, "offload": "disk", "cache_prefix": False},
}

BF16 = "-bf16"
"""The end of the name of a part whose model is in bfloat16: five times faster, where the processor has units for it."""

PARTS = _FLOAT32 | {part + BF16: given | {"dtype": "bfloat16"} for part, given in _FLOAT32.items() if part != "last"}
"""What is trained: the MLP of the last block, all matrices of the last four blocks or of all, adapters on all; adapters
and scales on a model packed in 4 bits; adapters on a model whose weights stay on the disk."""

COMPLETIONS = "completions"
"""The task of second halves of sentences, measured by the perplexity of a token in place of the accuracy."""

WAYS: dict[str, dict[str, Any]] = {
    **{f"residual+{n}" if n else "residual": {"method": "residual", "set": {"exact": n}} for n in (0, 4, 8, 16)},
    "recomputed": {"method": "backprop", "set": {"recompute": True}},
}
"""Methods by a name of their own: `residual` with so many exact blocks, `backprop` with states computed again."""

FORWARDS = {
    **dict.fromkeys(("residual", "residual+4", "residual+8", "residual+16", "forward_residual", "backprop"), 4.0),
    "recomputed": 5.0, "node_perturbation": 4.0, "zo_sgd": 2.0,
}  # fmt: skip
"""Forwards of the trained blocks in a step: a backward counts for two. `residual` and `backprop` make a forward, run
each block again and take its derivative; `recomputed` runs it twice again; `forward_residual` makes one, and runs each
block three times; `node_perturbation` makes two, and one with the products of its layers."""

EVALUATIONS = 60
"""Evaluations by values alone for each step of the others: 3,000 beside 50 steps."""

RACE = 5
"""Of parts other than `last`, MeZO's rates are compared by runs of a fifth of its steps, which take minutes each. The
best one and the next lower one then make whole runs: a rate that wins a short run may diverge in a long one."""

_OF_BLOCKS = {
    "last": (1e-3, 2e-3), "four": (3e-4, 1e-3), "all": (1e-4, 2e-4), "lora": (1e-3, 3e-3), "packed": (3e-3, 1e-2),
    "scales": (3e-3, 1e-2), "disk": (1e-3, 3e-3),
}  # fmt: skip

RATES: dict[str, dict[str, Sequence[float]]] = {
    **{method: _OF_BLOCKS for method in FORWARDS},
    "zo_sgd": {
        "last": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "four": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "all": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        **{part: (3e-4, 1e-3, 3e-3, 1e-2, 3e-2) for part in ("lora", "packed", "scales", "disk")},
    },
}  # fmt: skip
"""The learning rates of seed 0: two for each method and part, five for MeZO. Other seeds take the best one of them."""

RADII = {"last": 2.0**-11, "four": 2.0**-11, "all": 2.0**-11, "four-bf16": 2.0**-9, "all-bf16": 2.0**-9}
"""MeZO's radius where weights are trained. In bfloat16 it is the one whose slopes of four directions are nearest to
those of float32. Elsewhere it is the default."""


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
        "lr_schedule": "cosine", "lr_end": 0.05, "warmup": 0, "dtype": "float32", "threads": 1, "train_examples": 600,
        "eval_split": "test", "eval_examples": 300, "eval_every": max(steps // 10, 1), **PARTS[part],
        **({"mu": RADII.get(part)} if method == "zo_sgd" else {}), **WAYS.get(method, {}), "eos": False,
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if task == COMPLETIONS:
            settings = settings.model_copy(update={"task": str(halves(Path(folder)))})
        done = whole(train(settings, Path(folder) / "run", quiet=True))
        log = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        curve = [
            (line["step"], math.exp(line["eval_loss"]) if task == COMPLETIONS else line["value"], line["eval_loss"])
            for line in log if "value" in line
        ]  # fmt: skip
    return Line(
        task, part, method, lr, seed, steps, curve, done["seconds"], done["peak_bytes"], done["inference_peak_bytes"]
    )


def halves(folder: Path) -> Path:
    """Each sentence of mr as a prompt, its first half, and a completion, its second half: the perplexity of text."""
    from zograd.hub import load_task

    file, task = folder / "halves.jsonl", load_task("mr")
    with file.open("w", encoding="utf-8") as lines:
        for split, examples in task.splits.items():
            for example in examples[:1200]:
                words = example.prompt.removesuffix(" It was").split()
                middle = len(words) // 2
                if middle:
                    pair = {"prompt": " ".join(words[:middle]), "completion": " " + " ".join(words[middle:])}
                    lines.write(json.dumps({**pair, "split": split}) + "\n")
    return file


Group: TypeAlias = tuple[str, str, str, int]
"""Task, part, method and steps."""


def chosen(lines: Iterable[Line]) -> list[Line]:
    """The runs of seed 0 with the lowest loss at the end, and those of other seeds at its rate."""
    lines = list(lines)
    first = [line for line in lines if line.seed == 0] or lines
    lr = min(first, key=lambda line: line.curve[-1][2]).lr
    return [line for line in lines if line.lr == lr]


def grouped(lines: Iterable[Line]) -> dict[Group, list[Line]]:
    """The runs of each task, part, method and number of steps. Of MeZO only the longest."""
    groups: dict[Group, list[Line]] = {}
    for line in lines:
        groups.setdefault((line.task, line.part, line.method, line.steps), []).append(line)
    longest = {of[:2]: of[3] for of in sorted(groups) if of[2] == "zo_sgd"}
    return {of: found for of, found in groups.items() if of[2] != "zo_sgd" or of[3] == longest[of[:2]]}


def mean_curve(lines: Sequence[Line]) -> list[tuple[int, float]]:
    """(step, mean of what is measured) where all runs were evaluated."""
    accuracies = [{int(step): scale(line.task) * value for step, value, _ in line.curve} for line in lines]
    steps = sorted(set.intersection(*map(set, accuracies)))
    return [(step, statistics.mean(a[step] for a in accuracies)) for step in steps]


def scale(task: str) -> float:
    """Accuracies are shown in percent, perplexities as they are."""
    return 1.0 if task == COMPLETIONS else 100.0


def until(lines: Sequence[Line], wanted: float) -> int | None:
    """Forwards until the mean is as good as `wanted`, at the first evaluation that shows it; None: never."""
    lower = lines[0].task == COMPLETIONS
    reached = (step for step, found in mean_curve(lines) if (found <= wanted if lower else found >= wanted))
    step = next(reached, None)
    return None if step is None else round(step * FORWARDS[lines[0].method])


def row(of: Group, rates: int, best: Sequence[Line], mezo: Sequence[Line]) -> str:
    """A line of the table."""
    task, part, method, steps = of
    accuracy = [scale(task) * line.curve[-1][1] for line in best]
    spread = f" [{min(accuracy):.1f}, {max(accuracy):.1f}]" if len(best) > 1 else ""
    peak = statistics.median(line.peak_bytes / line.inference_peak_bytes for line in best)
    loss = statistics.mean(line.curve[-1][2] for line in best)
    reaches = ""
    if mezo and method != "zo_sgd":
        end = mean_curve(mezo)[-1][1]
        forwards = until(best, end)
        whole = mezo[0].steps * FORWARDS["zo_sgd"]
        reaches = (
            "never" if forwards is None else f"{forwards} ({float(f'{whole / max(forwards, 1):.2g}'):g} times fewer)"
        )
    return (
        f"| {task} | {part} | `{method}` | {best[0].lr:g} of {rates} | {len(best)} | {steps:,} "
        f"| {steps * FORWARDS[method]:,.0f} | {scale(task) * best[0].curve[0][1]:.1f} "
        f"| {statistics.mean(accuracy):.1f}{spread} | {loss:.3f} | {peak:.3f} | {reaches} |"
    )


def races(part: str, method: str) -> bool:
    """Whether shorter runs compare the rates (`RACE`)."""
    return method == "zo_sgd" and part != "last"


def whole_run(mezo: Group, groups: Iterable[Group]) -> bool:
    """Whether MeZO has run for as long as the others of its task and part ask for, so that its end is known."""
    task, part, method, steps = mezo
    others = [of[3] for of in groups if of[:2] == (task, part) and of[2] != method]
    return not races(part, method) or 2 * steps >= EVALUATIONS * max(others, default=0)


def written(lines: Iterable[Line]) -> str:
    """The page: for each task, part, method and number of steps the learning rate with the lowest loss at the end.

    MeZO's end is compared where its longest run has `EVALUATIONS` for each step of the others.
    """
    lines = list(lines)
    groups = grouped(lines)
    best = {of: chosen(found) for of, found in groups.items()}
    tried: defaultdict[Group, set[float]] = defaultdict(set)
    for x, of in product(lines, groups):
        if of[:3] == (x.task, x.part, x.method) and (x.steps == of[3] or races(x.part, x.method)):
            tried[of].add(x.lr)
    ends = {of[:2]: best[of] for of in groups if of[2] == "zo_sgd" and whole_run(of, groups)}
    rows = [
        row(of, len(tried[of]), best[of], ends.get(of[:2], []))
        for of in sorted(groups, key=lambda of: (list(PARTS).index(of[1]), of[0], list(FORWARDS).index(of[2]), -of[3]))
    ]
    parts = "\n".join(f"- `{name}`: {json.dumps(given)}" for name, given in _FLOAT32.items())
    return f"""# Learning per forward pass

These commands make the runs of some parts, those that `{RESULTS.as_posix()}` does not have yet, and write this page
from that file:

<!-- not run: its runs take hours of one core -->
```bash
python -m benchmarks.forwards --parts last --tasks trec,mr,sms --seeds 3
python -m benchmarks.forwards --parts four --methods residual+4,zo_sgd --seeds 3
python -m benchmarks.forwards --parts all-bf16 --methods recomputed,zo_sgd --page
```

SmolLM2-135M in float32, one thread, a cosine schedule to 5 %, 600 training and 300 test questions. A part whose name
ends with `{BF16}` is the same in bfloat16. `zo_sgd` is MeZO
with signs. "lr" is the rate with the lowest loss at the end of seed 0, and of how many; other seeds take it. Of MeZO,
except in `last`, runs of a fifth of its steps choose two rates: the best one, and the next lower one (on sms, `four`,
the best one alone; a row with one rate made no choice).
"forwards" are forward passes of the trained blocks, where a backward counts for two. Accuracies are in percent, over
the seeds their mean and range. "peak" is the peak of the process over that of inference. "MeZO's end after" are the
forwards until the mean accuracy is at least that of `zo_sgd` at its end, at one of ten evaluations; empty where its
rates have been compared, and no whole run has been made. The task
`{COMPLETIONS}` is the second halves of the sentences of mr: there the perplexity of a token stands in place of the
accuracy, and lower is better. `residual` is with `exact=0`; `residual+4` has the exact derivative of the last four
blocks, and so on;
`recomputed` is `backprop` with states that are computed again, to the same bits. Weights on the disk give the bits of
weights in memory (`tests/offload/test_offload_train.py`), so the rows of `lora` are those of `disk` too. What is
trained:

{parts}

| task | part | method | lr | seeds | steps | forwards | zero-shot | accuracy | loss | peak | MeZO's end after |
|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---|
{chr(10).join(rows)}
"""


def measure(
    tasks: Annotated[str, "Tasks, separated by commas."] = "trec",
    parts: Annotated[str, "Of those of the page, separated by commas."] = "last",
    methods: Annotated[
        str, "Of residual, residual+4, +8 and +16, recomputed, backprop, forward_residual, node_perturbation, zo_sgd."
    ] = "residual,backprop,zo_sgd",
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
    for task, part, method in product(*(filter(None, text.split(",")) for text in (tasks, parts, methods))):
        taken = steps * EVALUATIONS // 2 if method == "zo_sgd" else steps
        short = taken // RACE if races(part, method) else taken
        rates = RATES[method][part.removesuffix(BF16)]
        for lr in rates:
            made(file, (task, part, method, lr, 0, short), progress)
        done = [line for line in read(file) if (line.task, line.part, line.method, line.steps) == (
            task, part, method, short)]  # fmt: skip
        best = chosen(done)[0].lr
        if races(part, method):
            lower = max((lr for lr in rates if lr < best), default=best)
            full = [made(file, (task, part, method, lr, 0, taken), progress) for lr in (best, lower)]
            best = chosen(full)[0].lr
        for seed in range(seeds):
            made(file, (task, part, method, best, seed, taken), progress)
    if page:
        PAGE.write_text(written(read(file)), encoding="utf-8")
    return {"runs": len(read(file))}


def made(file: Path, of: tuple[str, str, str, float, int, int], progress: Callable[[str], None]) -> Line:
    """A run, from the file; it is made and appended to it where it is not there."""
    known = {line.of: line for line in read(file)}
    if of in known:
        return known[of]
    line = run(*of)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(line)) + "\n")
    progress(f"{line.of}: accuracy {line.curve[-1][1]:.3f}, loss {line.curve[-1][2]:.3f}")
    return line


def read(file: Path) -> list[Line]:
    """The runs in a file; none where there is no file."""
    return [Line(**line) for line in load(file)]


app = script(measure)

if __name__ == "__main__":
    app()
