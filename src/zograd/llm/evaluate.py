"""`zograd eval`: the metric of a model, or of a model with a run replayed onto it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zograd.diagnostics import calibration as measured
from zograd.hub import Example, FetchError, Task, TaskError, load_task, select
from zograd.hub.sources import Source, is_source
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.data import OF_DATA, check_found, digest, examples_of, no_examples, text_of
from zograd.llm.prompts import Form
from zograd.llm.restore import check_own_model, merged_model, restore, stored_settings
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.scoring.metrics import Metric, MetricError, MetricFunction, metric_of
from zograd.llm.scoring.objectives import Objective, objective_of
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.stages import Stages
from zograd.runs.packed import opened
from zograd.runs.rundir import RunDirectory


@dataclass(frozen=True)
class Chosen:
    """The examples to score. trained: texts of a run's training examples, None where they are not known.

    whole: whether the data is other data than the run's.
    """

    task: Task
    split: str
    examples: Sequence[Example]
    trained: set[str] | None = None
    whole: bool = True


def evaluate(
    model: str | None,
    task: Source,
    run: Path | None,
    *,
    split: str | None = None,
    examples: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quantized: bool | None = None,
    quantize: str | None = None,
    seed: int | None = None,
    max_length: int | None = None,
    truncate: str | None = None,
    chat_template: bool | None = None,
    eos: bool | None = None,
    answer_tokens: int | None = None,
    metric: str | MetricFunction | None = None,
    calibration: bool = False,
    stages: Stages | None = None,
    **data: Any,
) -> dict[str, Any]:
    """Metric with a confidence interval, calibrated metric, loss and classes; one forward an example (or class).

    A run is scored as the model that `zograd replay` saves, adapters merged. It brings its task with all that its data
    depended on: the seed, the columns, the template, the label words. So its splits are those that it was trained with,
    and `trained_on` counts the scored examples that it was trained on (None where that is not known). `failure` is a
    sentence where scores are not finite: then there is no metric.

    run: a folder, or a packed run. device: where the model computes; None: the CPU, or where the run was trained.
    dtype, quantized, quantize: of a model; a run has its own, so they are refused beside one.
    task: a name or data, as `load_task` takes it; None: the run's, or "trec".
    split: "train", "validation", "test", or "all". Default: "test"; all of a file that names no splits, unless it is
        the file of the run. Asked for a split, such a file is split as training with `seed` (default 0) splits it.
    max_length, truncate, chat_template, eos: how examples become tokens, as in `TrainSettings`; None: as the run has
        it. answer_tokens: most tokens of a written answer.
    metric: a name, `module:function`, or a function of labels and predictions (`scoring.metrics.metric_of`); None: the
        run's, unless that is code, or accuracy, or loss.
    calibration: also whether the stated probabilities are met (`diagnostics.calibration`), under that name; for tasks
        with classes, else SettingsError.
    stages: what shows the loading and the evaluation; None: they are not shown.
    data: how the data is read, as arguments of `load_task`.

    What is wrong with the data is said before the model is loaded.
    """
    stages = Stages(quiet=True) if stages is None else stages
    given = {name: value for name, value in data.items() if value not in (None, "auto")}
    s = TrainSettings()
    if run is None:
        with stages.stage(f"reading {_shown('trec' if task is None else task)}"):
            loaded = load_task("trec" if task is None else task, seed=seed or 0, **given)
            chosen, asked = choose(loaded, split, examples, seed or 0), metric_for(metric, loaded)
    else:
        own = {"dtype": dtype, "quantized": quantized, "quantize": quantize}
        check_own_model([name for name, value in own.items() if value is not None])
        directory = opened(run)
        s = stored_settings(directory)
        with stages.stage(f"reading {_shown(s.task if task is None else task)}"):
            chosen = of_run(directory, s, task, given, split, examples, seed)
            asked = metric_for(_of_settings(s.metric, chosen.task) if metric is None else metric, chosen.task)
    module, tokenizer, steps = load_or_restore(
        model, run, stages, dtype=dtype, device=device, quantized=quantized, quantize=quantize
    )
    if calibration and chosen.task.kind != "classification":
        raise SettingsError(f"--calibration: {chosen.task.name} has no classes with probabilities; leave it out")
    encoding = {
        "max_length": max_length, "truncate": truncate, "chat_template": chat_template, "eos": eos,
        "answer_tokens": answer_tokens,
    }  # fmt: skip
    s = changed(s, encoding)
    objective = _objective(s, chosen.task)
    scorer: Scorer = scorer_of(module, tokenizer, chosen.task, metric=asked, objective=objective, **s.encoding)
    with stages.counted("evaluating", len(chosen.examples)) as progress:
        scores = scorer.all_scores(chosen.examples, progress=progress) if calibration else None
        metrics = scorer.evaluate(chosen.examples, interval=True, scores=scores, progress=progress)
    for said in (chosen.task.said if chosen.whole and chosen.task.own else "", scorer.said(len(chosen.examples))):
        if said:
            print(f"zograd: {said}", file=sys.stderr, flush=True)
    seen = None if chosen.trained is None else sum(text_of(e) in chosen.trained for e in chosen.examples)
    if chosen.whole and seen:
        warnings.warn(
            f"{seen} of the {len(chosen.examples)} examples of {chosen.task.source} were trained on", stacklevel=2
        )
    result = {**asdict(metrics), "task": chosen.task.name, "split": chosen.split, "steps": steps, "trained_on": seen}
    result["truncated"] = len(scorer.cut)
    if scores is not None and not metrics.not_finite:
        result["calibration"] = _calibration(scores, chosen.examples)
    return dict(finite(result | {"failure": scorer.why_not_finite(metrics)}))


def load_or_restore(
    model: str | None, run: Path | None, stages: Stages, *, dtype: str | None, device: str | None,
    quantized: bool | None, quantize: str | None,
) -> tuple[Any, Any, int | None]:  # fmt: skip
    """A model, or a run with its adapters merged; its tokenizer; the steps of the run. Arguments: see `evaluate`."""
    if run is not None:
        p, _ = restore(run, model, device=device, stages=stages)
        return merged_model(p.model), p.tokenizer, p.run.step_number
    loading.import_transformers(stages)
    with stages.stage(f"loading {model or 'smollm2-135m'}"):
        module, tokenizer = loading.load(
            model or "smollm2-135m", dtype=dtype or "auto", device=device or "cpu", quantized=bool(quantized),
            quantize=quantize,
        )  # fmt: skip
    return module, tokenizer, None


def changed(s: TrainSettings, given: Mapping[str, Any]) -> TrainSettings:
    """The settings with others in their place; what is None stays as it is."""
    return s.model_copy(update={name: value for name, value in given.items() if value is not None})


def _shown(task: Source) -> str:
    """A task in a line for people: its name or path, or the kind of object that holds it."""
    return os.fspath(task) if isinstance(task, str | os.PathLike) else f"a {type(task).__name__}"


def _calibration(scores: Tensor, examples: Sequence[Example]) -> dict[str, Any]:
    """Whether the probabilities of the classes, the softmax of their scores, are met."""
    if len(examples) < 2:
        raise SettingsError("--calibration: one example has no calibration; score at least 2")
    p = torch.softmax(scores.double().cpu(), 1)
    return asdict(measured(p.numpy(), [e.label for e in examples]))


def metric_for(asked: str | MetricFunction | None, task: Task) -> Metric:
    """The metric of this name or function, for a task. Raises MetricError where it does not fit."""
    return metric_of(asked, task.kind, len(task.label_words))


def _of_settings(metric: str | None, task: Task) -> str | None:
    """The metric of a run, for a task that it may not fit. Code that a run.json names is not run."""
    if metric is None or ":" in metric:
        return None
    try:
        return metric_for(metric, task).name
    except MetricError:
        return None


def _objective(s: TrainSettings, task: Task) -> Objective | None:
    """The objective of a run, which its evaluation reports. Code that a run.json names is not run."""
    return None if ":" in s.objective or task.kind == "text" else objective_of(s.objective, task.kind, s.answer_tokens)


def choose(
    task: Task, split: str | None, count: int | None, seed: int, draw: str = "stratified", whole: bool = True
) -> Chosen:
    """The examples of a split. Raises SettingsError for a split that is none, TaskError for one without examples."""
    split = split or ("all" if whole and task.drawn else "test")
    if split != "all" and split not in task.splits:
        raise SettingsError(f"--split {split}: there are {', '.join(task.splits)} and all")
    if count is not None and count < 1:
        raise SettingsError(f"--examples {count}: at least 1 is needed")
    found = select(task, split, count, seed=seed, draw=draw)
    if not found:
        raise TaskError(no_examples(task, split, "say which with --split"))
    return Chosen(task, split, found, whole=whole)


def of_run(
    directory: RunDirectory, s: TrainSettings, task: Source, given: dict[str, Any], split: str | None = None,
    count: int | None = None, seed: int | None = None,
) -> Chosen:  # fmt: skip
    """The examples with which a run is scored: of its own data, or of another task."""
    if seed not in (None, s.seed):
        raise SettingsError(f"--seed {seed}: the data of a run is split by its own seed, {s.seed}; leave it out")
    data = directory.meta.get("data", {})
    if _same(task, s.task):
        loaded, trained = _data(s, given, data.get("sha256"))
    else:
        loaded, trained = _other(s, task, given, Form.read(data.get("asks"))), None
        try:
            trained = set(map(text_of, examples_of(s)[1]))
        except (TaskError, FetchError) as e:
            if "sha256" in data:  # a checkpoint of a Trainer knows of no data
                warnings.warn(
                    f"whether the run was trained on examples of {loaded.source} is not known, since its own data "
                    f"cannot be read: {e}",
                    stacklevel=3,
                )
    chosen = choose(loaded, split, count, s.seed, s.draw, whole=not _same(task, s.task))
    return replace(chosen, trained=trained)


def _other(s: TrainSettings, task: Source, given: dict[str, Any], form: Form | None) -> Task:
    """Other data than that of a run, asked as the run was: in its prompt, and with its classes and their words.

    Raises TaskError for a label that the run does not have.
    """
    kept = _kept(s, task) | given
    if not is_source(task) or form is None or not form.classes or "label_words" in kept:
        return load_task(task, seed=s.seed, **kept)
    words = {c: w if isinstance(w, str) else list(w) for c, w in zip(form.classes, form.label_words, strict=True)}
    of_labels: TaskError | None = None
    for more in ({"prompt_template": form.template or None}, {}):  # its columns may be others
        try:
            return load_task(task, seed=s.seed, **({"label_words": words} | more | kept))
        except TaskError as e:
            of_labels = of_labels or e
    plain = load_task(task, seed=s.seed, **kept)
    if plain.kind != "classification":
        return plain
    raise TaskError(
        f"{of_labels} The run was trained with these labels and words; for data with others, give --label-words."
    ) from of_labels


def _same(task: Source, of_run: str) -> bool:
    """Whether a task that was asked for is the one of the run."""
    if task is None or not isinstance(task, str | os.PathLike):
        return task is None
    if os.fspath(task) == of_run:
        return True
    return Path(task).exists() and Path(of_run).exists() and Path(task).samefile(of_run)


def _kept(s: TrainSettings, task: Source) -> dict[str, Any]:
    """What the settings of a run say about other data: its prompt and words, and if it is no named task its columns."""
    files = ("eval_file", "test_file")
    named = {"prompt_template", "label_words"}
    kept = {name: getattr(s, name) for name in OF_DATA if name not in files and (name in named or is_source(task))}
    return {name: value for name, value in kept.items() if value is not None}


def _data(s: TrainSettings, given: dict[str, Any], sha256: str | None) -> tuple[Task, set[str] | None]:
    """The task of a run with the splits that it trained with, whatever else is asked for, and what it trained on."""
    if given.get("text_column", s.text_column) != s.text_column:
        raise SettingsError(
            f"--text-column {given['text_column']}: the data of a run is split by its own text column; leave it out"
        )
    check_found(s)
    task, examples, held_out = examples_of(s)
    same = sha256 is None or sha256 == digest(task, examples, held_out)
    if given:
        task, examples, _ = examples_of(s.model_copy(update=given), task.split_by if task.own else None)
    if not same:
        warnings.warn(
            f"{task.source} is not what this run was trained on: it has changed since, so examples that are scored now "
            f"may have been trained on",
            stacklevel=4,
        )
    return task, set(map(text_of, examples)) if same else None
