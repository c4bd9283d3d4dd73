"""The error of a run folder that cannot be used as asked."""

from __future__ import annotations


class RunError(ValueError):
    """A run directory that cannot be used as asked: the message names the file and what to do."""
