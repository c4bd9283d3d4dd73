"""What can be imported, and from where: public names in a fresh interpreter, and modules that have moved."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import zograd
from zograd import addresses


@pytest.mark.parametrize("old", addresses.MOVED)
def test_a_module_that_moved_is_found_at_its_old_address(old: str) -> None:
    assert importlib.import_module(old) is importlib.import_module(addresses.MOVED[old])


def test_names_of_an_old_address_are_the_names_of_today() -> None:
    code = "from zograd.llm.task import Scorer; from zograd.run import Run; import zograd; assert zograd.Run is Run"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0


def test_no_old_address_hides_a_module_that_exists() -> None:
    for old in addresses.MOVED:
        assert importlib.import_module(old).__name__ != old


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"zograd\.runner"):
        importlib.import_module("zograd.runner")


@pytest.mark.parametrize("name", sorted(set(zograd.__all__) | set(zograd._MODULES)))
def test_each_public_name_is_there_in_a_fresh_interpreter(name: str) -> None:
    """`zo.NAME` after nothing but `import zograd as zo`: one process for all would hide an import that is missing."""
    if name in ("distributed", "methods", "pairs", "slopes", "combination", "Routine", "problems", "lens"):
        code = f"import zograd as zo; print(zo.{name}, zo.methods.mezo.__doc__)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0
    assert getattr(zograd, name) is not None
