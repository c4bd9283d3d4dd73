"""What a run reads before its model: its task, examples, metric and objective."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zograd.hub import Example, Task, TaskError, load_task, select
from zograd.llm.scoring.metrics import Metric, MetricFunction, metric_of
from zograd.llm.scoring.objectives import Contest, Objective, objective_of
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.methods import MENU


def examples_of(s: TrainSettings, split_by: Sequence[str] | None = None) -> tuple[Task, list[Example], list[Example]]:
    """The task of a run, its training examples and its held-out examples: a function of settings and data alone.

    split_by: the columns whose hash splits the data; None: those of its prompt. Raises TaskError for data that does
    not fit, or a split without examples.
    """
    options = {name: getattr(s, name) for name in OF_DATA}
    task = load_task(s.task, **options, hold_out=s.eval_split == "validation", seed=s.seed, split_by=split_by)
    for split, why in (("train", "trained on"), (s.eval_split, "held out")):
        if not task.splits[split]:
            file = {"validation": ", or --eval-file", "test": ", or --test-file"}.get(split, "")
            raise TaskError(no_examples(task, split, f"nothing can be {why}; {_together(task)}give more data{file}"))
    examples = select(task, "train", s.train_examples, seed=s.seed, draw=s.draw)
    return task, examples, select(task, s.eval_split, s.eval_examples, seed=s.seed, draw=s.draw)


def check_found(s: TrainSettings) -> None:
    """Raise TaskError where a file that a run names by a relative path is not found from the current folder."""
    for name in (s.task, s.eval_file, s.test_file):
        path = Path(name or "")
        if path.suffix and ":" not in path.name and not path.is_absolute() and not path.expanduser().exists():
            raise TaskError(
                f"the run was trained on {name}, which is not to be found from {Path.cwd()}: go to the folder in which "
                f"it was trained, or bring the file back"
            )


OF_DATA = (
    "prompt_template", "label_words", "text_column", "label_column", "completion_column", "records", "eval_file",
    "test_file",
)  # fmt: skip
"""Settings that say how data is read; arguments of `load_task`."""


def _together(task: Task) -> str:
    """A clause for data of which most records have the same text, so that a hash puts them into one split; else ""."""
    prompts = [e.prompt for part in task.splits.values() for e in part]
    different = len(set(prompts))
    if not task.drawn or different > len(prompts) / 2:
        return ""
    return (
        f"the {len(prompts):,} records have {different:,} different {' and '.join(task.split_by)}, and records with "
        f"the same one stay in one split: write the split of each into a column named split, or "
    )


def no_examples(task: Task, split: str, remedy: str) -> str:
    """The sentence for a split that has no examples: which ones have some."""
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in task.splits.items() if part) or "none at all"
    return f"{task.source} has no {split} example, but {sizes}: {remedy}"


def text_of(e: Example) -> str:
    """What an example is known by: its text with the answer or choices, or its image or recording; not its label."""
    return e.media.sha256 if e.media is not None else e.prompt + e.completion + "".join(e.choices)


def digest(task: Task, examples: Sequence[Example], held_out: Sequence[Example]) -> str:
    """SHA-256 of the data of a run: kind of task, label words, and the examples of both parts in their order."""
    h = hashlib.sha256(json.dumps([task.kind, *task.label_words]).encode())
    for part in (examples, held_out):
        h.update(b"\n")
        for e in part:
            more = [x for x in (e.chat, e.choices, e.also) if x]
            prompt = e.media.sha256 if e.media is not None else e.prompt
            h.update(json.dumps([prompt, e.label, e.completion, *more]).encode())
    return h.hexdigest()


def announce(task: Task, s: TrainSettings, examples: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Print how many examples of a user's file are used if not all are; warn of a class without an example."""
    if not task.own:
        return
    words = ", ".join(map(repr, task.label_words))
    scored = f", scored by {words}" if s.label_words is None and task.classes and task.reads == "text" else ""
    print(f"zograd: {task.said}{scored}", file=sys.stderr, flush=True)
    known = set(map(text_of, examples))
    if shared := sum(text_of(e) in known for e in held_out):
        warnings.warn(
            f"{shared} of the {len(held_out):,} {s.eval_split} examples are train examples too, so their metric says "
            f"little; remove them from one of the files",
            stacklevel=3,
        )
    for option, name, part in (("train", "train", examples), ("eval", s.eval_split, held_out)):
        counts = [(c, sum(e.label == k for e in part)) for k, c in enumerate(task.classes)]
        if len(part) < len(task.splits[name]):
            how = "the first ones" if s.draw == "first" else f"drawn by seed {s.seed}"
            of_each = "".join(f", {n:,} of label {c!r}" for c, n in counts)
            line = f"{len(part):,} of the {len(task.splits[name]):,} {name} examples are used, {how}{of_each}"
            print(f"zograd: {line}", file=sys.stderr)
        missing = [repr(c) for c, n in counts if not n]
        if missing and part:
            more = f"raise --{option}-examples"
            if len(part) == len(task.splits[name]):
                more = "add some" if option == "train" else "pass --eval-file with some, or add a column split"
            warnings.warn(
                f"none of the {len(part):,} {name} examples has the label {', '.join(missing)}; {more}, or check the "
                f"data",
                stacklevel=3,
            )


@dataclass(frozen=True)
class Data:
    """What a run reads before its model: its task and examples, what is reported of them, and what is lowered."""

    task: Task
    examples: list[Example]
    held_out: list[Example]
    metric: Metric
    objective: Objective | None

    @property
    def all(self) -> list[Example]:
        """The training examples and the held-out ones."""
        return [*self.examples, *self.held_out]


def data_of(s: TrainSettings, metric: MetricFunction | None = None) -> Data:
    """The data of a run; metric: a function in place of the setting. Raises what does not fit the task."""
    task, examples, held_out = examples_of(s)
    asked = metric_of(s.metric if metric is None else metric, task.kind, len(task.label_words))
    objective = objective_of(s.objective, task.kind, s.answer_tokens, s.answer_temperature)
    check_objective(s, objective, task)
    return Data(task, examples, held_out, asked, objective)


def check_of_texts(s: TrainSettings, task: Task) -> None:
    """Raise SettingsError for settings that are about texts, where the task holds images or recordings."""
    if task.reads == "text":
        return
    asked = {
        "--max-length": s.max_length is not None, "--truncate": s.truncate is not None, "--compile": bool(s.compile),
        "--offload disk": s.offload == "disk",
    }  # fmt: skip
    if option := next((name for name, given in asked.items() if given), None):
        raise SettingsError(f"{option} is for models of text, and {task.source} holds {task.reads}; leave it out")


def check_objective(s: TrainSettings, objective: Objective | None, task: Task) -> None:
    """Raise SettingsError for a method that does not go with what is lowered."""
    prefers = isinstance(objective, Contest)
    written = objective is not None and task.kind not in ("classification", "choice")
    if (written or prefers) and MENU[s.method].needs != "values":
        what = "answers of several points are compared" if prefers else "an answer is written in several"
        raise SettingsError(
            f"--method {s.method} looks into one forward of each example, and {what}; use a method that needs values "
            f"alone, such as zo_sgd or rank"
        )
    if not prefers:
        return
    if s.lr == "auto" or s.parallel != "data":
        given = "--lr auto measures a curvature" if s.lr == "auto" else f"--parallel {s.parallel} parts the points"
        raise SettingsError(
            f"--objective {s.objective} compares the points of a step, whose losses are shares of comparisons won; "
            f"{given}, which does not go with it: leave it out"
        )
