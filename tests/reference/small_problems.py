"""Everything that the conformance tests are parametrised over.

A method that is on the menu and not in CASES fails `test_conformance_registry.py`, and every other conformance test
is parametrised over CASES: so a new method is either held to all the laws, or the suite is red. The same holds for
laws, estimators, spaces and rules.
"""

import cases_directions
import cases_estimators
import cases_geometry
import cases_gradient
import cases_rules
import places
from problems import *  # noqa: F403

from zograd.laws import Gaussian, Rademacher, Sphere

CASES = [
    *cases_gradient.CASES,
    *cases_directions.CASES,
    *cases_estimators.CASES,
    *cases_geometry.CASES,
    *cases_rules.CASES,
]
LAWS = (Rademacher(), Gaussian(), Sphere(), *cases_directions.LAWS)
ESTIMATORS = (*cases_directions.ESTIMATORS, *cases_estimators.ESTIMATORS, *cases_rules.ESTIMATORS)
SPACES = (*places.SPACES, *cases_rules.SPACES)
