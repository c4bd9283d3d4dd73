"""What a language model is trained on and scored by: an example, and the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["Chat", "Example"]

Chat: TypeAlias = tuple[tuple[str, str], ...]
"""The turns of a conversation: (role, text) each."""


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` is the text after the template; `label` indexes the classes, or is -1 beside a `completion`.

    chat: the turns of a conversation, of which the last is learned; the tokenizer's chat template writes them. Prompt
        and completion are the same as plain text.
    spans: where columns stand in the prompt, (start, end) each: what may be cut if the prompt is too long.
    """

    prompt: str
    label: int
    completion: str = ""
    chat: Chat = ()
    spans: tuple[tuple[int, int], ...] = field(default=(), compare=False)
