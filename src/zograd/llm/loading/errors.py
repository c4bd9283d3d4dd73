"""What can go wrong with a model, and the first line of what a library says about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zograd.errors import UsageError

if TYPE_CHECKING:
    pass


class ModelError(ValueError):
    """A model that is not there, does not parse, or does not have what was asked for."""


class UnknownDtypeError(ModelError, UsageError):
    """A name that is no dtype of weights."""


def extra(name: str) -> str:
    return f'this needs more packages: pip install "zograd[{name}]"'


def first_line(e: BaseException) -> str:
    text = str(e).strip() or type(e).__name__
    return text.splitlines()[0]
