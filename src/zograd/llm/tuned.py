"""A model, or a run on its base model, that answers prompts: with labels and their probabilities, or with text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zograd.hub import Example, Task, resolve_model
from zograd.hub.labels import LabelWords
from zograd.hub.records import Record
from zograd.hub.registry import REGISTRY
from zograd.llm import loading
from zograd.llm.data import examples_of
from zograd.llm.generation import Generated, generate
from zograd.llm.prompts import CHOICE, IMAGES, SPEECH, Form, form_of_task
from zograd.llm.restore import check_own_model, merged_model, restore, stored_settings
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.stages import Stages
from zograd.runs.packed import holds_run, opened

Inputs = Iterable[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """The answer to a prompt: the label with the highest probability, and the probability of each label.

    The probabilities are those of the label words, which add up to 1; other words of the vocabulary do not count. Of
    multiple choice, labels are the choices of this prompt.
    label and probability are None, and probabilities empty, where a score is not finite.
    """

    prompt: str
    label: str | None
    probability: float | None
    probabilities: dict[str, float]


class Tuned:
    """A model, or a run on its base model, that answers prompts. The model is loaded with the first answer.

    source: the folder of a run, a packed run, or a model as `zograd.llm.loading.load` takes it.
    base: where the base model of a run is now; None: where the run found it.
    task, prompt_template, label_words: how a prompt is made of an input, and the word of each label. A run knows its
        own; what is given replaces it. Without any, an input is the prompt.
    text_column: of records, the column that {text} stands for; None: that of the run, in records that have it.
    device: where the model computes; None: the CPU, or where the run was trained.
    dtype, quantized, quantize: of a model, as `loading.load` takes them; a run has its own.
    stages: what shows the loading and the answers; None: they are not shown.

    After `predict`, `truncated` is the number of inputs that were cut, since they have more tokens than the run takes.

    Raises SettingsError and TaskError for what does not fit, before anything is loaded.

        Tuned("runs/a").predict(["Who wrote Hamlet ?"])[0].label
        Tuned("smollm2-135m").generate(["The capital of France is"], max_new_tokens=8)[0].text
    """

    def __init__(
        self,
        source: str | Path,
        *,
        base: str | None = None,
        task: str | None = None,
        prompt_template: str | None = None,
        label_words: LabelWords | None = None,
        text_column: str | None = None,
        label_column: str | None = None,
        device: str | None = None,
        stages: Stages | None = None,
        **loaded: Any,
    ) -> None:
        self.stages = Stages(quiet=True) if stages is None else stages
        self.source, self.base, self.device, self.loaded = str(source), base, device, loaded
        self.is_run, self.truncated = holds_run(source), 0
        self.text_column = text_column
        columns = {"text_column": text_column, "label_column": label_column} if task and Path(task).suffix else {}
        if not self.is_run:
            if base is not None:
                raise SettingsError(
                    f"--model {base} is the base model of a run, and {source} is no run; check the path, or leave "
                    f"--model out"
                )
            self.form = form_of_task(task, prompt_template, label_words, **columns)
            known = REGISTRY.get(self.source)
            of_text = known is not None and known.kind not in ("vision", "speech")  # known before it is fetched
            if not (of_text or task or prompt_template or label_words):
                loading.import_transformers(self.stages)
                self.form = form_of_media(self.source) or self.form
            return
        check_own_model([name for name, value in loaded.items() if value is not None])
        if task is None:
            self.text_column = text_column or stored_settings(opened(self.source)).text_column
            self.form = self._form_of_run().changed(prompt_template, label_words)
        else:
            self.form = form_of_task(task, prompt_template, label_words, **columns)

    def _form_of_run(self) -> Form:
        """What run.json says; of a run of an earlier release, what its task says."""
        directory = opened(self.source)
        asks, s = directory.meta.get("data", {}).get("asks"), stored_settings(directory)
        form = Form.read(asks) or Form.of(examples_of(s)[0])
        return replace(form, choices=s.completion_column or form.choices)

    @cached_property
    def encoding(self) -> dict[str, Any]:
        """How examples become tokens: as in the run, or as in training by default."""
        return (stored_settings(opened(self.source)) if self.is_run else TrainSettings()).encoding

    @cached_property
    def _ready(self) -> tuple[Any, Any, int | None]:
        """The model without adapters beside it, its tokenizer, and the steps of the run."""
        if not self.is_run:
            loading.import_transformers(self.stages)
            with self.stages.stage(f"loading {self.source}"):
                model, tokenizer = loading.load(self.source, device=self.device or "cpu", **self.loaded)
            return model, tokenizer, None
        p, _ = restore(self.source, self.base, device=self.device, stages=self.stages)
        return merged_model(p.model), p.tokenizer, p.run.step_number

    @property
    def steps(self) -> int | None:
        """Steps of the run that answers; None for a model. Loads the model."""
        return self._ready[2]

    def _examples(self, inputs: Inputs) -> list[Example]:
        """The prompts of the inputs, of which records may hold their text in the column `text_column`."""
        column, found = self.text_column, list[str | Mapping[str, Any] | Record]()
        for value in inputs:
            values = value.values if isinstance(value, Record) else value
            if column is not None and isinstance(values, Mapping) and column in values:
                values = {**values, "text": values[column]}
                value = replace(value, values=values) if isinstance(value, Record) else values
            found.append(value)
        return self.form.examples(found)

    def check_labels(self) -> None:
        """Raise SettingsError where there are no labels to choose from."""
        if self.form.classes or self.form.records == CHOICE:
            return
        what = f"the model {self.source} has no labels"
        if self.is_run:
            what = f"the run {self.source} was trained to write"
        elif self.source not in REGISTRY and not Path(self.source).expanduser().exists():
            what = f"there is no run {self.source} here; check its path. As for a model of that name, it has no labels"
        raise SettingsError(
            f"{what}: choose the labels with --task, or with --prompt-template and --label-words; `zograd generate` "
            f"answers with text"
        )

    def predict(self, inputs: Inputs, *, calibrate: bool = False) -> list[Prediction]:
        """The label of each input, with probabilities. Cost: one forward an input, or one of each of its classes.

        Inputs that are too long are cut as in training, and a line on stderr says how many; `truncated` is their
        number.

        calibrate: subtract the mean log-probability of each label over all inputs before probabilities are taken, as
            the metric `calibrated` of `zograd eval` does: it removes a preference for one label. It needs two inputs.

        Raises TaskError for an input that does not fit the template or the model, before the first forward.
        """
        self.check_labels()
        examples = self._examples(inputs)
        if calibrate and self.form.records == CHOICE:
            raise SettingsError("--calibrate compares the inputs of the same labels, and here each has its own choices")
        if calibrate and len(examples) < 2:
            raise SettingsError("--calibrate subtracts the mean score of the inputs, and here is one; give several")
        model, tokenizer, _ = self._ready
        scorer = scorer_of(model, tokenizer, self._as_task(examples), **self.encoding)
        with self.stages.counted("answering", len(examples), "inputs") as progress:
            scores = scorer.all_scores(examples, progress=progress)
        self.truncated = sum(e in scorer.cut for e in examples)
        if said := scorer.said(len(examples)):
            print(f"zograd: {said}", file=sys.stderr, flush=True)
        logp = torch.log_softmax(scores.double(), 1)
        if calibrate:
            logp = torch.log_softmax(logp - logp.mean(0), 1)
        return [self._prediction(e, row.exp()) for e, row in zip(examples, logp, strict=True)]

    def _as_task(self, examples: Sequence[Example]) -> Task:
        """The inputs as the test split of a task."""
        form, licence = self.form, "the user's own data"
        return Task(
            "predict", form.template, form.label_words, {"test": examples}, self.source, licence, classes=form.classes,
            kind="choice" if form.records == CHOICE else "classification",
            reads="images" if form.records == IMAGES else "text",
        )  # fmt: skip

    def _prediction(self, e: Example, row: torch.Tensor) -> Prediction:
        if not bool(row.isfinite().all()):
            return Prediction(e.prompt, None, None, {})
        names = [choice.strip() for choice in e.choices] or self.form.classes
        found = dict(zip(names, row.tolist()[: len(names)], strict=True))
        label = max(found, key=found.__getitem__)
        return Prediction(e.prompt, label, found[label], found)

    def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[Generated]:
        """The text with which each input goes on: see `zograd.llm.generation.generate`."""
        examples = self._examples(inputs)
        model, tokenizer, _ = self._ready
        with self.stages.counted("writing", len(examples), "answers") as progress:
            return generate(
                model, tokenizer, examples, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop,
                seed=seed, progress=progress, chat=self.encoding["chat"],
            )  # fmt: skip


def form_of_media(model: str) -> Form | None:
    """How a model of images or of speech is asked; its classes are those of its configuration. None for others."""
    try:
        config = loading.configuration_of(resolve_model(model))
        reads = loading.takes_no_text(config)
        if reads != IMAGES:
            return Form(records=SPEECH) if reads == SPEECH else None
    except Exception:  # the loader says what is wrong with it
        return None
    names = tuple(str(config.id2label[k]) for k in range(config.num_labels))
    return Form(classes=names, label_words=names, records=IMAGES)
