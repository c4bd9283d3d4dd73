"""The errors of the hub: a download that failed, a model that is not there, a task that cannot be read.

Those named Unknown are of the question: no download and no file could make it right.
"""

from __future__ import annotations

from zograd.errors import UsageError

__all__ = ["FetchError", "ModelNotFoundError", "TaskError", "UnknownNameError", "UnknownTaskError"]


class FetchError(RuntimeError):
    """A wheel could not be brought, is not the expected one, or could not be converted. Nothing was stored."""


class ModelNotFoundError(FileNotFoundError):
    """A model was named that is neither an alias, nor an existing folder, nor a name of the form `owner/name`."""


class TaskError(ValueError):
    """A task is unknown, or a data file does not fit the template and the label words."""


class UnknownNameError(FetchError, UsageError):
    """A name of nothing that could be fetched."""


class UnknownTaskError(TaskError, UsageError):
    """A name that is neither a bundled task nor a file, or label words that do not parse."""
