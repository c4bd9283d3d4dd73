"""Rules for duplicates of texts and for the split of a text. Their results must never change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["fingerprint", "rank", "split_of"]


def fingerprint(text: str) -> str:
    """`text` without case, white space and punctuation: equal fingerprints are duplicates.

    >>> fingerprint("Who 's  there ?") == fingerprint("who's there")
    True

    A text without any letter or digit (":-)") is its own fingerprint, with white space removed.
    """
    folded = text.casefold()
    return "".join(c for c in folded if c.isalnum()) or "".join(folded.split())


def rank(salt: str, text: str) -> int:
    """A fixed pseudo-random number in [0, 2**64) of a fingerprint; sorting by it is a shuffle without a generator."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{fingerprint(text)}".encode()).digest()[:8], "big")


def split_of(parts: Iterable[str], seed: int) -> str:
    """`"train"`, `"validation"` or `"test"` with probability 8 : 1 : 1; equal fingerprints always go together."""
    tenth = rank(f"split {seed}", "".join(fingerprint(part) for part in parts)) * 10 >> 64
    return {8: "validation", 9: "test"}.get(tenth, "train")
