"""Token ids of prompts and of their continuations, as the tokenizer splits the whole text.

A word alone may have other tokens than the same word after a prompt (Llama 2 and Mistral put a space in front of every
text), and a space at the end of a prompt belongs to the token of the next word. So the whole text, prompt and
continuation, is tokenized, and the tokens of the continuation are those after the tokens of the prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zograd.hub import Example, TaskError
from zograd.hub.examples import Chat
from zograd.llm.loading import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Token ids of one sequence, and the first one that is scored (len(ids) if the token after them is scored)."""

    ids: tuple[int, ...]
    scored_from: int


class Encoder:
    """The tokenizer of a model, with its ids checked against the rows of the model's embedding.

    rows: number of token ids of the model. A larger id raises ModelError.
    chat: write conversations with the tokenizer's chat template, where it has one.
    eos: a completion ends with the tokenizer's end of sequence, where it has one, unless a chat template writes it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: int, *, chat: bool = True, eos: bool = True) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        end = tokenizer.eos_token_id if eos else None
        self.end: Tokens = () if end is None or end >= rows else (end,)
        """What follows a completion."""
        self.chat = chat and bool(getattr(tokenizer, "chat_template", None))
        self._appended = self._appends()
        self._behind: dict[str, list[Tokens]] = {}

    def _appends(self) -> int:
        """Number of tokens that the tokenizer appends to a text (end of sequence). A text that continues has none."""
        whole, bare = self._ids("a"), self._ids("a", add_special_tokens=False)
        starts = (k for k in range(len(whole) - len(bare) + 1) if bare and whole[k : k + len(bare)] == bare)
        start = next(starts, None)
        return 0 if start is None else len(whole) - len(bare) - start

    def _ids(self, text: str, **options: Any) -> Tokens:
        return tuple(self.tokenizer.encode(text, **options))

    def text(self, text: str) -> Tokens:
        """The ids of a text with the tokens that the tokenizer puts in front of it, and without those it appends."""
        ids = self._ids(text)
        return self.known(ids[: len(ids) - self._appended])

    def known(self, ids: Tokens) -> Tokens:
        """The ids, where the model has a row for each of them; otherwise ModelError."""
        if ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise ModelError(
                f"the tokenizer ({self.tokenizer.name_or_path or type(self.tokenizer).__name__}, {len(self.tokenizer)} "
                f"tokens) gives {token!r} the id {max(ids)}, but the embedding of the model has {self.rows} rows; use "
                f"the tokenizer of this model, or save it after model.resize_token_embeddings({len(self.tokenizer)})"
            )
        return ids

    @property
    def padding(self) -> int:
        """An id for padding. Padding is masked, so any id of the model will do."""
        pad = int(self.tokenizer.pad_token_id or 0)
        return pad if pad < self.rows else 0

    def learned(self, example: Example) -> tuple[Tokens, int]:
        """The ids of an example without label, and the index of the first one that is learned.

        Of a text without a prompt that is the second, as the loss of transformers has it, or the first one behind those
        that the tokenizer puts in front. A single token follows the one that begins or ends a text.
        """
        if example.chat and self.chat:
            return self._turns(example)
        if example.prompt:
            ids, start = self.completed(example.prompt, example.completion)
            return (ids if not example.completion or ids[-1:] == self.end else ids + self.end), start
        ids, front = self.text(example.completion), len(self.text(""))
        if len(ids) == 1 and not front:
            first = next((i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None), None)
            ids, front = ((first, *ids), 1) if first is not None else (ids, front)
        return ids, min(max(front, 1), len(ids))

    def asked(self, example: Example) -> Tokens:
        """The ids of what stands before the answer of an example."""
        if example.chat and self.chat:
            text = self._rendered(example.chat[:-1], "change its roles", add_generation_prompt=True)
            return self.known(self._ids(text, add_special_tokens=False))
        return self.text(example.prompt.rstrip(" "))

    def whole(self, example: Example) -> Tokens:
        """The ids of a prompt with all that the tokenizer puts around it, as an encoder reads it."""
        return self.known(self._ids(example.prompt.rstrip(" "), verbose=False))

    def _turns(self, example: Example) -> tuple[Tokens, int]:
        """The ids of a conversation as the chat template writes it, and the first one of its last turn.

        That is where the whole and what asks for the turn part: some templates ask with words that they do not write
        before an answer (<think>). Where earlier turns are written otherwise once another follows, the text of the last
        one stands behind what asks for it.
        """
        turns, remedy = example.chat, "change its roles, or use --no-chat-template"
        whole = self._rendered(turns, remedy)
        before = self._rendered(turns[:-1], remedy, add_generation_prompt=True)
        follows = whole.startswith(before) or whole.startswith(self._rendered(turns[:-1], remedy))
        whole = whole if follows else before + turns[-1][1]
        start = self._ids(before, add_special_tokens=False)
        ids = self._ids(whole, add_special_tokens=False)
        return self.known(ids), _common(start, ids)

    def _rendered(self, turns: Chat, remedy: str, **options: Any) -> str:
        """A conversation as the chat template writes it. Raises TaskError, with a remedy, where it refuses."""
        said = [{"role": role, "content": text} for role, text in turns]
        try:
            return str(self.tokenizer.apply_chat_template(said, tokenize=False, **options))
        except Exception as e:  # of jinja, which the template may raise on purpose
            raise TaskError(
                f"the chat template of the tokenizer refuses the conversation that begins {turns[0][1][:40]!r} ({e}); "
                f"{remedy}"
            ) from e

    def completed(self, prompt: str, completion: str) -> tuple[Tokens, int]:
        """The ids of prompt + completion, and the index of the first token that the prompt alone does not have."""
        start = prompt.rstrip(" ")
        ids, whole = self.text(start), self.text(prompt + completion)
        common = _common(ids, whole)
        if not common:  # no token from which the first one is predicted
            return (*ids, *self.known(self._ids(completion, add_special_tokens=False))), len(ids)
        return whole, common

    def check_ends(self, examples: Iterable[Example]) -> None:
        """Warn if a prompt before a completion ends with a space."""
        found = next((e for e in examples if e.prompt.endswith(" ") and not (e.chat and self.chat)), None)
        if found is not None:
            _warn_of_space(" " + found.completion.lstrip()[:20])

    def words(self, prompts: Iterable[str], words: Sequence[str]) -> list[list[Tokens]]:
        """The distinct tokenizations of the words after these prompts. Warns if a prompt and a word merge."""
        ends = dict.fromkeys(map(_end, prompts)) or {"": None}
        if any(end.endswith(" ") for end in ends):
            _warn_of_space(words[0] if words[0][:1].isspace() else " " + words[0])
        found = []
        for end in ends:
            tails = self.behind(end, words)
            if tails not in found:
                found.append(tails)
        return found

    def behind(self, prompt: str, words: Sequence[str]) -> list[Tokens]:
        """The tokens of each word after a prompt; they depend on the end of the prompt only."""
        end = _end(prompt)
        if end not in self._behind:
            start = end.rstrip(" ")
            ids, space = self.text(start), end[len(start) :]
            tails = [self._word(start, ids, word if word[:1].isspace() else space + word) for word in words]
            for k, tail in enumerate(tails):
                if tail in tails[:k]:
                    tokens = ", ".join(self.tokenizer.convert_ids_to_tokens(list(tail)))
                    raise TaskError(
                        f"label words {words[tails.index(tail)]!r} and {words[k]!r} have the same tokens, {tokens}: "
                        f"use words that this tokenizer knows"
                    )
            self._behind[end] = tails
        return self._behind[end]

    def _word(self, start: str, ids: Tokens, word: str) -> Tokens:
        """The tokens of a word after the text `start` with its ids."""
        whole = self.text(start + word)
        if len(whole) > len(ids) and whole[: len(ids)] == ids:
            return whole[len(ids) :]
        alone = self.known(self._ids(word, add_special_tokens=False))
        if not alone:
            raise TaskError(f"label word {word!r} has no tokens in this tokenizer; use another word")
        warnings.warn(
            f"the label word {word!r} merges with the end of the prompt, {start[-20:]!r}, and is scored as a text of "
            f"its own; let it begin with a space, {' ' + word.lstrip()!r}",
            stacklevel=5,
        )
        return alone


def _warn_of_space(continuation: str) -> None:
    warnings.warn(
        f"a prompt ends with a space, which belongs to the token of the next word: it is moved there, so that the text "
        f"continues with {continuation!r}; leave the space out of the prompt template",
        stacklevel=4,
    )


def _common(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _end(prompt: str) -> str:
    """The last two words of a text with the space around them: the tokens after it depend on no more."""
    parts = prompt.rsplit(maxsplit=2)
    return prompt[len(parts[0]) :] if len(parts) == 3 else prompt
