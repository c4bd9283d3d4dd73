"""Errors about models, and the first line of an error of a library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zograd.errors import UsageError

if TYPE_CHECKING:
    pass


class ModelError(ValueError):
    """A model is missing, does not parse, or lacks what was asked for."""


class UnknownDtypeError(ModelError, UsageError):
    """The name of a dtype is unknown."""


class DeviceError(ModelError, UsageError):
    """There is no device of that name, or torch cannot use it on this machine."""


def extra(name: str) -> str:
    """How to install the packages that are missing."""
    return f'this needs more packages: pip install "zograd[{name}]"'


def first_line(e: BaseException) -> str:
    """The first line of the message of an exception, or the name of its class."""
    text = str(e).strip() or type(e).__name__
    return text.splitlines()[0]
