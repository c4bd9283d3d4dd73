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


FORKS = """
import os, sys
import scipy.optimize, torch
import zograd as zo
missing = []
for name in sys.argv[1:]:
    if os.fork() == 0:
        try:
            getattr(zo, name), zo.methods.mezo.__doc__
        except BaseException as e:
            print(name, repr(e), flush=True)
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        missing.append(name)
sys.exit(bool(missing))
"""


@pytest.mark.slow  # hundreds of processes
def test_each_public_name_is_there_in_a_fresh_interpreter() -> None:
    """`zo.NAME` after nothing but `import zograd as zo`, each in a fork: one after another, a name would import for the
    next."""
    names = sorted(set(zograd.__all__) | set(zograd._MODULES))
    done = subprocess.run([sys.executable, "-c", FORKS, *names], capture_output=True, timeout=600, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(getattr(zograd, name) is not None for name in names)
