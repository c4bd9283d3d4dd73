"""Everything that the conformance tests are parametrised over, collected from the files `cases_*.py` beside this one.

A method that is on the menu and not in CASES fails `test_conformance_registry.py`, and every other conformance test
is parametrised over CASES: so a new method is either held to all the laws, or the suite is red. The same holds for
laws, estimators, spaces and rules. A file may list LAWS, ESTIMATORS and SPACES of its own; a part that none lists is
taken from the first case that has it.
"""

import importlib
from pathlib import Path
from typing import Any

import places
from problems import *  # noqa: F403

from zograd.laws import Gaussian, Rademacher, Sphere

PAGES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("cases_*.py"))]


def listed(name: str) -> list[Any]:
    """What the pages list under a name, in order."""
    return [thing for page in PAGES for thing in vars(page).get(name, ())]


def with_those_of_cases(parts: list[Any], kind: str) -> tuple[Any, ...]:
    """The parts, and of each kind that is not among them the first that a case has."""
    known = {type(part) for part in parts}
    more = {type(part): part for case in reversed(CASES) if type(part := vars(case.method())[kind]) not in known}
    return (*parts, *more.values())


CASES = listed("CASES")
LAWS = with_those_of_cases([Rademacher(), Gaussian(), Sphere(), *listed("LAWS")], "law")
ESTIMATORS = with_those_of_cases(listed("ESTIMATORS"), "estimator")
SPACES = with_those_of_cases([*places.SPACES, *listed("SPACES")], "space")
