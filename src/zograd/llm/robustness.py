"""`zograd robustness`: accuracy of a language model when words are swapped, or sentences that do not matter come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from zograd.diagnostics.robustness import compared, one_word, robustness
from zograd.hub import Example, load_task
from zograd.hub.perturb import NUMBERS, PLAIN, Sentences, WithoutQuestion, WordSwap
from zograd.hub.sources import Source
from zograd.jsons import finite
from zograd.llm import loading
from zograd.llm.evaluate import Chosen, changed, choose, of_run
from zograd.llm.restore import check_own_model, run_or_model, stored_settings
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.stages import Stages
from zograd.runs.packed import opened

Kind = Literal["words", "numbers"]
STRENGTHS = (1, 2, 4)


def measure(
    model: str | None,
    task: Source,
    *,
    kind: Kind,
    run: Path | None = None,
    split: str | None = None,
    examples: int = 50,
    candidates: int = 10,
    strengths: Sequence[int] = STRENGTHS,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "cpu",
    max_length: int | None = None,
    truncate: str | None = None,
    chat_template: bool | None = None,
    stages: Stages | None = None,
    **data: Any,
) -> dict[str, Any]:
    """Accuracy before and after changes that leave the answer of an example; rows of `diagnostics.robustness`.

    kind "words": the worst swap of a single word for one of its `candidates` nearest words, by the cosine of the
    model's own embeddings (`diagnostics.one_word`), and the best of random swaps at as many evaluations. "numbers":
    `strengths` irrelevant sentences in front, without and with numbers in them, and the text without its question.
    model, or run: a folder or a packed run, which brings its task, its prompt and words, and how examples become
    tokens, as for `evaluate`. Words are single tokens; names, numbers and stop words stay. stages:
    what shows the work; None: nothing does.

    Cost for words: up to (words of an example) x (candidates + 1) forwards for each right answer. Raises SettingsError
    for tasks without classes or choices, other kinds, and counts below 1.
    """
    if kind not in ("words", "numbers"):
        raise SettingsError(f"--kind {kind}: choose words or numbers")
    for name, value in (("examples", examples), ("candidates", candidates), ("strengths", min(strengths, default=0))):
        if value < 1:
            raise SettingsError(f"--{name} {value}: at least 1 is needed")
    s, chosen = asked_of(run, task, data, split, examples, seed, dtype)
    loaded = chosen.task
    if loaded.reads != "text":
        raise SettingsError(f"{loaded.name} holds {loaded.reads}, and what is changed is words or sentences of a text")
    if loaded.kind not in ("classification", "choice"):
        raise SettingsError(
            f"{loaded.name} has no classes and no choices, and a changed answer could not be told from a right one; "
            f"use a task of classification or of multiple choice"
        )
    encoding = {"max_length": max_length, "truncate": truncate, "chat_template": chat_template}
    s = changed(s, encoding)
    stages = Stages(quiet=True) if stages is None else stages
    base, tokenizer = run_or_model(run, model, dtype=dtype or "float32", device=device, stages=stages)
    scorer = scorer_of(base, tokenizer, loaded, **s.encoding)

    def score(asked: Sequence[Example]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = scorer.all_scores(asked).double().cpu().numpy()
        return found

    labels = [e.label for e in chosen.examples]
    if kind == "numbers":
        plain, numbers = Sentences(PLAIN), Sentences(NUMBERS)
        with stages.stage(f"changing {len(labels):,} examples"):
            rows = robustness(
                score, chosen.examples, labels, {"sentences": plain, "numbers": numbers}, strengths, seed=seed
            )
            rows += robustness(score, chosen.examples, labels, {"no question": WithoutQuestion()}, (1,), seed=seed)
        evaluations = 2 * len(labels) + sum(row.examples for row in rows)
    else:
        with stages.stage("comparing the embeddings of words"):
            near = neighbours(base, tokenizer, candidates)
        with stages.counted("changing words", len(labels)) as progress:
            rows, evaluations = by_words(score, chosen.examples, labels, near, seed, progress)
    return dict(finite({
        "kind": kind, "task": loaded.name, "split": chosen.split, "examples": len(labels), "evaluations": evaluations,
        "rows": [{**asdict(row), "significant": row.significant} for row in rows],
    }))  # fmt: skip


def asked_of(
    run: Path | None, task: Source, data: dict[str, Any], split: str | None, count: int | None, seed: int,
    dtype: str | None,
) -> tuple[TrainSettings, Chosen]:  # fmt: skip
    """(settings that say how examples are read, the examples): of a run as `evaluate` takes them, or of a task.

    A run is split by its own seed. Raises SettingsError for a dtype beside a run.
    """
    data = {name: value for name, value in data.items() if value not in (None, "auto")}
    if run is None:
        return TrainSettings(), choose(
            load_task("trec" if task is None else task, seed=seed, **data), split, count, seed
        )
    check_own_model(["dtype"] if dtype is not None else [])
    directory = opened(run)
    s = stored_settings(directory)
    return s, of_run(directory, s, task, data, split, count)


def by_words(
    score: Any, examples: Sequence[Example], labels: Sequence[int], near: Callable[[str], Sequence[str]], seed: int,
    progress: Callable[[float], object],
) -> tuple[list[Any], int]:  # fmt: skip
    """The rows of the search and of random swaps at equal evaluations. progress: told of each example."""
    right = np.argmax(score(examples), axis=1) == np.asarray(labels)
    swap, rng = WordSwap(near), np.random.default_rng(seed)
    kept, luck, total = right.copy(), right.copy(), len(examples)
    for k, example in enumerate(examples):
        progress(1)
        if not right[k]:
            continue
        attack = one_word(score, example, near)
        kept[k] = attack.found is None
        drawn = [new for _ in range(attack.evaluations) if (new := swap(example, 1, rng)) is not None]
        if drawn:
            luck[k] = bool((np.argmax(score(drawn), axis=1) == labels[k]).all())
        total += attack.evaluations + len(drawn)
    return [compared("one word, searched", 1, right, kept), compared("one word, at random", 1, right, luck)], total


def neighbours(model: Any, tokenizer: Any, count: int) -> Callable[[str], Sequence[str]]:
    """word -> the `count` words of the vocabulary with the nearest embeddings, by cosine; () for one of several tokens.

    A word is a token that begins with a space, of at least three lower-case letters. Inflections of the same beginning
    (the first four letters) are left out.
    """
    table = loading.plain_model(model).get_input_embeddings().weight.detach().float()
    words: dict[str, int] = {}
    for token in range(min(len(tokenizer), len(table))):
        text = tokenizer.decode([token])
        plain = text.strip()
        if len(plain) >= 3 and plain.isalpha() and plain.islower() and plain.isascii():
            ids = tokenizer.encode(f" {plain}", add_special_tokens=False)
            if ids == [token]:
                words[plain] = token
    names = list(words)
    unit = torch.nn.functional.normalize(table[list(words.values())], dim=1)

    @lru_cache(maxsize=100_000)
    def nearest(word: str) -> tuple[str, ...]:
        if word not in words:
            return ()
        order = (unit @ unit[names.index(word)]).argsort(descending=True, stable=True).tolist()
        found = (names[k] for k in order if names[k][:4] != word[:4])
        return tuple(name for name, _ in zip(found, range(count), strict=False))

    return nearest
