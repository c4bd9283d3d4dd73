"""Errors of the hub: a failed download, a missing model, a task that cannot be read.

Classes named Unknown are usage errors: no download and no file would help.
"""

from __future__ import annotations

from zograd.errors import UsageError

__all__ = ["FetchError", "ModelNotFoundError", "TaskError", "UnknownNameError", "UnknownTaskError"]


class FetchError(RuntimeError):
    """A wheel could not be downloaded, is not the expected one, or could not be converted. Nothing was stored."""


class ModelNotFoundError(FileNotFoundError):
    """The name of a model is neither an alias, nor an existing folder, nor of the form `owner/name`."""


class TaskError(ValueError):
    """A task is unknown, or a data file does not fit the template and the label words."""


class UnknownNameError(FetchError, UsageError):
    """There is nothing to fetch under this name."""


class UnknownTaskError(TaskError, UsageError):
    """A name is neither that of a bundled task nor that of a file, or label words do not parse."""
