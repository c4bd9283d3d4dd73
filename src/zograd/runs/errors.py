"""The error about the folder of a run."""

from __future__ import annotations


class RunError(ValueError):
    """The folder of a run cannot be used as asked. The message names the file and the remedy."""
