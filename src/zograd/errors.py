"""What no file and no machine could make right: a command or a function that was not used as it is meant."""

from __future__ import annotations


class UsageError(ValueError):
    """An argument that is unknown or out of range. The command line ends with exit code 2 by it, otherwise with 1."""


def needs(what: str, package: str, extra: str) -> ImportError:
    """The error of a feature whose package is missing."""
    return ImportError(f"{what} needs the package {package}: pip install 'zograd[{extra}]'")
