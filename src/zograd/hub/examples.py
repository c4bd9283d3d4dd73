"""What a model is trained on and scored by: an example, and the turns of a conversation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from zograd.hub.media import Media

__all__ = ["Chat", "Example"]

Chat: TypeAlias = tuple[tuple[str, str], ...]
"""The turns of a conversation: (role, text) each."""


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` is the text after the template; `label` indexes the classes, or is -1 beside a `completion`.

    choices: of multiple choice, the continuations of the prompt of which one is chosen; `label` is the index of a right
        one. also: further right answers: choices, or texts that are as good as the completion.
    chat: the turns of a conversation, of which the last is learned; the tokenizer's chat template writes them. Prompt
        and completion are the same as plain text.
    media: the image or the recording that is read in place of a text; `prompt` is then its name.
    spans: where columns stand in the prompt, (start, end) each: what may be cut if the prompt is too long.
    """

    prompt: str
    label: int
    completion: str = ""
    chat: Chat = ()
    spans: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    media: Media | None = None

    @property
    def right(self) -> tuple[bool, ...]:
        """Of multiple choice, whether each choice is right; of choices with the same text all or none are.

        >>> Example("1 + 1 =", 1, choices=(" 1", " 2", " two"), also=(" two",)).right
        (False, True, True)
        """
        answers = {*self.choices[self.label : self.label + 1], *self.also} if self.label >= 0 else ()
        return tuple(choice in answers for choice in self.choices)
