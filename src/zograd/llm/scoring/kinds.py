"""The scorer that fits a model, by what the model reads and predicts."""

from __future__ import annotations

from typing import Any

from zograd.hub import Task, TaskError
from zograd.llm import loading
from zograd.llm.loading.structure import kind_of
from zograd.llm.scoring.media import ImageScorer, SpeechScorer
from zograd.llm.scoring.others import ClassScorer, MaskedScorer, PairScorer
from zograd.llm.scoring.scorer import Scorer

OF_MEDIA = {"images": "efficientnet-lite0", "speech": "whisper-tiny.en"}
"""The bundled models of images and of speech."""

_HOLDS = {"text": "texts", "images": "images", "speech": "recordings"}

_KINDS: dict[str, type[Scorer]] = {
    "masked": MaskedScorer, "classes": ClassScorer, "pairs": PairScorer, "images": ImageScorer, "speech": SpeechScorer,
}  # fmt: skip


def scorer_of(model: Any, *args: Any, **options: Any) -> Scorer:
    """The scorer for this kind of model; arguments are those of `Scorer`.

    Raises TaskError for a task of images with a model of text, or the other way round.
    """
    base, task = loading.plain_model(model), args[1] if len(args) > 1 else options["task"]
    check_reads(type(base).__name__, reads_of(base), task)
    return _KINDS.get(kind_of(base), Scorer)(model, *args, **options)


def reads_of(base: Any) -> str:
    """What a transformers model reads: "text", "images" or "speech"."""
    kind = kind_of(base)
    return kind if kind in OF_MEDIA else "text"


def check_reads(model: str, reads: str, task: Task) -> None:
    """Raise TaskError where a model does not read what a task holds: "text", "images" or "speech"."""
    if task.reads != reads:
        instead = OF_MEDIA.get(task.reads)
        raise TaskError(
            f"{model} reads {reads}, and {task.source} holds {_HOLDS[task.reads]}: choose a model of {task.reads} with "
            f"--model{f' such as {instead}' if instead else ''}"
        )
