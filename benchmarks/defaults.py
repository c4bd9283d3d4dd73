"""`python -m benchmarks.defaults`: what `zograd train --task TASK` gives without options, on four kinds of data.

Beside it stands the exact gradient: `--method backprop` on the same blocks, for the same steps, examples and schedule.
Each run is appended to a file of lines, so the command goes on where it was stopped. `--page` writes the page from it.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks.forwards import halves
from benchmarks.results import load, whole
from zograd.cli.options import script
from zograd.cli.output import say
from zograd.hub import load_task
from zograd.llm.recipe import BLOCKS, WARMUP

RESULTS = Path("docs/defaults/results.jsonl")
PAGE = Path("docs/defaults.md")

DEFAULT, EXACT = "default", "backprop"
WAYS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    EXACT: {
        "method": "backprop", "layers": BLOCKS, "steps": 100, "batch_size": 32, "lr_schedule": "cosine", "lr_end": 0.05,
        "warmup": WARMUP,
    },
}  # fmt: skip
"""Settings beside the task, the seed and one thread."""

TASKS = {
    "mr": "sentiment of a sentence, as SST-2",
    "pairs": "whether a sentence follows from a question, as RTE",
    "trec": "six types of questions",
    "completions": "the second half of a sentence",
}

ASKS = {
    "ABBR": "an abbreviation", "DESC": "a description", "ENTY": "a thing", "HUM": "a person", "LOC": "a place",
    "NUM": "a number",
}  # fmt: skip


def pairs(folder: Path) -> Path:
    """RTE's columns, of real questions: a question of trec as the premise, and what it asks for as the hypothesis.

    For every second question of a class that is what the question asks for (entailment), for the others what a class
    drawn among the other five asks for. The splits are those of trec.
    """
    rng, task, file = np.random.Generator(np.random.Philox(0)), load_task("trec"), folder / "pairs.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for split, examples in task.splits.items():
            seen: dict[int, int] = {}
            for e in examples:
                seen[e.label] = seen.get(e.label, 0) + 1
                other = (e.label + 1 + int(rng.integers(len(ASKS) - 1))) % len(ASKS)
                follows = seen[e.label] % 2 == 1
                asks = ASKS[task.classes[e.label if follows else other]]
                record = {
                    "premise": e.prompt.removeprefix("Question: ").removesuffix("\nAnswer type:"),
                    "hypothesis": f"The question asks for {asks}.",
                    "label": "entailment" if follows else "not_entailment",
                    "split": split,
                }
                lines.write(json.dumps(record) + "\n")
    return file


@dataclass(frozen=True)
class Line:
    """One run: the metric on held-out examples (accuracy, or the perplexity of a token) before and after it."""

    task: str
    way: str
    seed: int
    model: str
    held_out: int
    metric: str
    before: float
    calibrated: float | None
    after: float
    steps: int
    start_seconds: float
    seconds: float

    @property
    def of(self) -> tuple[str, str, int, str, int]:
        """What was run."""
        return self.task, self.way, self.seed, self.model, self.held_out


def run(task: str, way: str, seed: int, model: str, held_out: int, **more: Any) -> Line:
    """Train as the command line would, in a folder that is gone afterwards. more: settings, for tests."""
    from zograd.llm.settings import TrainSettings
    from zograd.llm.train import train

    with tempfile.TemporaryDirectory() as folder:
        made = {"pairs": lambda: f"rte:{pairs(Path(folder))}", "completions": lambda: str(halves(Path(folder)))}
        given = {"model": model, "task": made[task]() if task in made else task, "seed": seed, "threads": 1}
        s = TrainSettings.model_validate({**given, "eval_examples": held_out, **WAYS[way], **more})
        done = whole(train(s, Path(folder) / "run", quiet=True))
    text = done["metric"] == "loss"
    return Line(
        task, way, seed, model, held_out, "perplexity" if text else done["metric"],
        done["perplexity_before"] if text else done["metric_before"], done["metric_calibrated"],
        done["perplexity_after"] if text else done["metric_after"], done["steps"], done["start_seconds"],
        done["seconds"],
    )  # fmt: skip


def shown(values: Sequence[float], metric: str) -> str:
    """The mean, and the range where there is one; accuracies in percent."""
    scale = 1.0 if metric == "perplexity" else 100.0
    low, high = scale * min(values), scale * max(values)
    spread = f" [{low:.1f}, {high:.1f}]" if low < high else ""
    return f"{scale * statistics.mean(values):.1f}{spread}"


def row(task: str, lines: Sequence[Line]) -> str:
    """A row of the table: both ways over their seeds; a cell without a run says so."""
    ways = {way: [line for line in lines if line.way == way] for way in WAYS}
    first, default = lines[0], ways[DEFAULT] or lines
    cells = [f"`{task}`", TASKS[task], first.metric, shown([line.before for line in default], first.metric)]
    calibrated = [line.calibrated for line in default if line.calibrated is not None]
    cells.append(shown(calibrated, first.metric) if calibrated else "-")
    for found in ways.values():
        cells += [shown([line.after for line in found], first.metric), str(len(found))] if found else ["not run", "0"]
    seconds = [line.start_seconds + line.seconds for line in default]
    low, high = f"{min(seconds):.0f}", f"{max(seconds):.0f}"
    return f"| {' | '.join(cells)} | {default[0].steps} | {low if low == high else f'{low} to {high}'} |"


def written(lines: Iterable[Line]) -> str:
    """The page, from the lines alone."""
    lines = list(lines)
    rows = [row(task, found) for task in TASKS if (found := [line for line in lines if line.task == task])]
    missing = ", ".join(f"`{task}`" for task in TASKS if task not in {line.task for line in lines})
    sizes = sorted({line.held_out for line in lines})
    models = ", ".join(sorted({line.model for line in lines}))
    return f"""# The default on four kinds of data

`zograd train --task TASK` without further options: 100 steps on the last {BLOCKS} blocks by residual feedback, which is
exact for these. Beside it `--method backprop` on the same blocks, with the same steps, batches, schedule and default
rate: in exact arithmetic the two are the same run. Where they differ for one seed, so do their values before training,
which no method changes. The first command makes the runs that `{RESULTS.as_posix()}` does not have yet; the
second writes this page from that file:

<!-- not run: its runs take hours of one core -->
```bash
python -m benchmarks.defaults --seeds 3 --held-out {max(sizes, default=200)}
python -m benchmarks.defaults --seeds 0 --page
```

Model: {models}; one thread; {" or ".join(map(str, sizes))} held-out examples of the validation split. Accuracies are
in percent, perplexities those of a token; shown are the mean over the seeds and, in brackets, the range. "calibrated"
is the zero-shot accuracy after the mean score of each label word is subtracted. "seconds" are those of the whole
default run, its two evaluations included, on a machine that other programs shared.

- `pairs` has the columns of RTE and is read as `rte:FILE`. It is made of real text: a question of trec is the premise,
  and "The question asks for a person." and the like is the hypothesis, true for every second question of a class.
- `completions` are sentences of mr cut in the middle; the second half is learned.

| data | what it is | metric | zero-shot | calibrated | default | seeds | backprop | seeds | steps | seconds |
|---|---|---|---|---|---|---:|---|---:|---:|---|
{chr(10).join(rows)}
{f"{chr(10)}Not run so far: {missing}.{chr(10)}" if missing else ""}"""


def measure(
    tasks: Annotated[str, f"Of {', '.join(TASKS)}, separated by commas."] = ",".join(TASKS),
    ways: Annotated[str, f"Of {' and '.join(WAYS)}, separated by commas."] = ",".join(WAYS),
    seeds: Annotated[int, "Seeds 0 to this, less one."] = 3,
    held_out: Annotated[int, "Held-out examples of a run."] = 500,
    model: Annotated[str, "Model, as `zograd train` takes it."] = "smollm2-135m",
    out: Annotated[str, "The file of lines."] = str(RESULTS),
    page: Annotated[bool, "Write the page at the end."] = False,
    *,
    progress: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Run what is not in the file yet, one run after the other: all tasks with seed 0 first.

    Example: python -m benchmarks.defaults --tasks trec --seeds 1
    """
    file = Path(out)
    for seed, task, way in product(range(seeds), filter(None, tasks.split(",")), filter(None, ways.split(","))):
        if (task, way, seed, model, held_out) in {line.of for line in read(file)}:
            continue
        line = run(task, way, seed, model, held_out)
        if not all(map(math.isfinite, (line.before, line.after))):
            raise ArithmeticError(f"{line.of} ended with {line.after}: the row would hide it; see the run by hand")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(line)) + "\n")
        progress(f"{line.of}: {line.metric} {line.before:.3f} -> {line.after:.3f}, {line.seconds:.0f} s")
    if page:
        PAGE.write_text(written(read(file)), encoding="utf-8")
    return {"runs": len(read(file))}


def read(file: Path) -> list[Line]:
    """The runs in a file; none where there is no file."""
    return [Line(**line) for line in load(file)]


app = script(measure)

if __name__ == "__main__":
    app()
