"""How many tokens the examples of a task have, from its data and a tokenizer alone: no weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zograd.hub import Example, Task, TaskError, resolve_model
from zograd.hub.labels import flat_words
from zograd.llm.data import examples_of
from zograd.llm.loading.errors import ModelError, extra, first_line
from zograd.llm.loading.models import check_folder
from zograd.llm.scoring.batches import Batches
from zograd.llm.scoring.encoding import Encoder
from zograd.llm.settings import TrainSettings

MANY = 2**31
"""Rows of an embedding that is not looked at."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the training examples of a task.

    longest: of an example, with all of its choices. cut: examples that `max_length` cuts. batch: of the largest batch
    of the first epoch. seq_len: the length that equal examples in such a batch would have: batch over its size.
    """

    examples: int
    longest: int
    cut: int
    batch: int
    seq_len: int


def lengths_of(s: TrainSettings) -> Lengths:
    """The lengths with which `zograd train` would train with these settings. Raises TaskError, ModelError.

    Cost: the data is read and tokenized.
    """
    task, examples, _ = examples_of(s)
    if task.reads != "text":
        raise TaskError(
            f"{s.task} holds {task.reads}, and what is planned is the memory of language models, from the lengths of "
            f"texts: `zograd train --steps 2` measures the peak of a model of images"
        )
    encoder = Encoder(tokenizer_of(s.model), MANY, chat=s.chat_template, eos=s.eos)
    most = s.max_length or MANY
    found = {id(e): sequences(encoder, task, e) for e in examples}
    tokens = {of: sum(min(n, most) for n in each) for of, (each, _) in found.items()}
    batches = Batches(examples, s.batch_size, s.seed)
    batch = max(sum(tokens[id(e)] for e in part) for part in batches.first_uses())
    cut = sum(longest > most for _, longest in found.values())
    return Lengths(len(examples), max(tokens.values()), cut, batch, math.ceil(batch / batches.size))


def sequences(encoder: Encoder, task: Task, e: Example) -> tuple[list[int], int]:
    """The tokens of each sequence by which an example is scored, and those that must not be more than the model takes.

    It has one sequence, or one for each choice. Label words of several tokens share their prompt, whose sequence has
    their other tokens behind it.
    """
    if task.kind == "choice":
        each = [len(encoder.completed(e.prompt, choice)[0]) for choice in e.choices]
        return each, max(each)
    if task.kind == "classification":
        words = encoder.behind(e.prompt, flat_words(task.label_words)[0])
        prompt, longest = len(encoder.text(e.prompt.rstrip(" "))), max(map(len, words))
        return [prompt + sum(len(word) - 1 for word in words)], prompt + (longest if longest > 1 else 0)
    only = len(encoder.learned(e)[0])
    return [only], only


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a model as `loading.load` takes it. Raises ModelError."""
    try:
        from transformers import AutoTokenizer
    except ImportError as e:
        raise ModelError(extra("llm")) from e
    path = Path(resolve_model(model))
    folder, file = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    check_folder(str(path))
    try:
        return AutoTokenizer.from_pretrained(str(folder), **file)
    except Exception as e:  # transformers raises OSError, ValueError ... for bad files
        raise ModelError(f"cannot read the tokenizer of {model}: {first_line(e)}") from e
