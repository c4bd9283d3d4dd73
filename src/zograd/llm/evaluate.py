"""`zograd eval`: the metric of a model, or of a model with a run replayed onto it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zograd.hub import FetchError, Task, TaskError, load_task, select
from zograd.hub.sources import is_source
from zograd.hub.template import Template
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.build import digest, examples_of
from zograd.llm.restore import merged_model, restore
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings


def evaluate(
    model: str | None,
    task: str | None,
    run: Path | None,
    *,
    split: str | None = None,
    examples: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    quantized: bool = False,
    quantize: str | None = None,
    prompt_template: str | None = None,
    label_words: Mapping[str, str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Metric, calibrated metric, majority share and loss over a split; one forward an example (or class).

    A run is scored as the model that `zograd replay` saves, adapters merged. It brings its task with all that its data
    depended on: the seed, the columns, the template, the label words. So its splits are those that it was trained with,
    and `trained_on` counts the scored examples that it was trained on (None where that is not known). `failure` is a
    sentence where scores are not finite: then there is no metric.

    split: "train", "validation", "test", or "all". Default: "test"; all of a file that names no splits, unless it is
        the file of the run. Asked for a split, such a file is split as training with `seed` (default 0) splits it.
    """
    given: dict[str, Any] = {"prompt_template": prompt_template, "label_words": label_words}
    given |= {"text_column": text_column, "label_column": label_column}
    given = {name: value for name, value in given.items() if value}
    first, trained, steps = False, None, None
    module: Any
    if run is None:
        module, tokenizer = loading.load(
            model or "smollm2-135m", dtype=dtype, device=device, quantized=quantized, quantize=quantize
        )
        loaded, whole = load_task(task or "trec", seed=seed or 0, **given), True
    else:
        p, directory = restore(run, model)
        module, tokenizer, steps = merged_model(p.model), p.tokenizer, p.run.step_number
        stored = directory.meta["settings"]
        s = p.settings.model_copy(update={"draw": stored.get("draw", "first")})  # older runs took the first examples
        if seed not in (None, s.seed):
            raise SettingsError(f"--seed {seed}: the data of a run is split by its own seed, {s.seed}; leave it out")
        seed, first, whole = s.seed, s.draw == "first", not _same(task, s.task)
        if whole:
            loaded = load_task(str(task), seed=seed, **_kept(s, task) | given)
            with suppress(TaskError, FetchError):  # the data of the run may be gone
                trained = {e.prompt for e in examples_of(s)[1]}
        else:
            loaded, trained = _data(s, given, directory.meta["data"].get("sha256"))
    split = split or ("all" if whole and loaded.drawn else "test")
    if split != "all" and split not in loaded.splits:
        raise SettingsError(f"--split {split}: there are {', '.join(loaded.splits)} and all")
    chosen = select(loaded, split, examples, seed=seed or 0, first=first)
    if not chosen:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in loaded.splits.items() if part)
        raise TaskError(f"--split {split}: {loaded.source} has no example there, but {sizes}")
    scorer = Scorer(module, tokenizer, loaded)
    metrics = scorer.evaluate(chosen)
    seen = None if trained is None else sum(e.prompt in trained for e in chosen)
    if whole and seen:
        warnings.warn(f"{seen} of the {len(chosen)} examples of {loaded.source} were trained on", stacklevel=2)
    result = {**asdict(metrics), "task": loaded.name, "split": split, "steps": steps, "trained_on": seen}
    return dict(finite(result | {"failure": scorer.why_not_finite(metrics)}))


def _same(task: str | None, of_run: str) -> bool:
    """Whether a task that was asked for is the one of the run."""
    if task is None or task == of_run:
        return True
    return Path(task).exists() and Path(of_run).exists() and Path(task).samefile(of_run)


def _kept(s: TrainSettings, task: str | None) -> dict[str, Any]:
    """What the settings of a run say about another task: its prompt and words, and for a file its columns."""
    kept: dict[str, Any] = {"prompt_template": s.prompt_template, "label_words": s.label_words}
    if is_source(task):
        kept |= {"text_column": s.text_column, "label_column": s.label_column}
    return kept


def _data(s: TrainSettings, given: dict[str, Any], sha256: str | None) -> tuple[Task, set[str] | None]:
    """The task of a run with the splits that it trained with, whatever else is asked for, and its training prompts."""
    if given.get("text_column", s.text_column) != s.text_column:
        raise SettingsError(
            f"--text-column {given['text_column']}: the data of a run is split by its own text column; leave it out"
        )
    task, examples, held_out = examples_of(s)
    same = sha256 is None or sha256 == digest(task, examples, held_out)
    if given:
        split_by = Template(task.template).columns if task.own else None
        task = load_task(s.task, seed=s.seed, split_by=split_by, **_kept(s, s.task) | given)
        examples = select(task, "train", s.train_examples, seed=s.seed, first=s.draw == "first")
    if not same:
        warnings.warn(
            f"{task.source} is not what this run was trained on: it has changed since, so examples that are scored now "
            f"may have been trained on",
            stacklevel=3,
        )
    return task, {e.prompt for e in examples} if same else None
