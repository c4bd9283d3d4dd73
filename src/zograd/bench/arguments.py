"""Arguments that several measurements take, each with the help that the command line shows for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

from zograd.llm.settings import TrainSettings


def of_training(name: str, default: str = "") -> str:
    """The description of a setting of `zograd train`, which means the same here; default: what None stands for."""
    text = TrainSettings.model_fields[name].description or ""
    return f"{text} [{default}]" if default else text


Model: TypeAlias = Annotated[str, "Alias, folder, or hub name."]
Task: TypeAlias = Annotated[str, of_training("task")]
BatchSize: TypeAlias = Annotated[int, of_training("batch_size")]
SeqLen: TypeAlias = Annotated[int, "Tokens per example."]
Dtype: TypeAlias = Annotated[str, "float32, bfloat16 or float16."]
AnyDtype: TypeAlias = Annotated[str | None, "float32, bfloat16 or float16. [all three]"]
MethodName: TypeAlias = Annotated[str, of_training("method")]
LawName: TypeAlias = Annotated[str | None, "Law of directions, in lower case. [the method's]"]
LabelWords: TypeAlias = Annotated[
    Mapping[str, str] | Sequence[str] | str | None, of_training("label_words", "the task's")
]
Together: TypeAlias = Annotated[int | None, of_training("together", "as many as pay")]
Compiled: TypeAlias = Annotated[bool, "Compile the blocks with torch.compile."]
Rounds: TypeAlias = Annotated[int, "Interleaved repeats."]
Device: TypeAlias = Annotated[str, of_training("device")]
Threads: TypeAlias = Annotated[int | None, of_training("threads", "all")]
Seed: TypeAlias = Annotated[int, "Fixes directions and data."]
