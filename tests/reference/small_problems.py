"""Everything that the conformance tests are parametrised over.

A method that is on the menu and not in CASES fails `test_conformance_registry.py`, and every other conformance test
is parametrised over CASES: so a new method is either held to all the laws, or the suite is red. The same holds for
laws, estimators, spaces and rules.
"""

import cases_gradient
from problems import *  # noqa: F403

from zograd.estimators import Central, Forward, OneSided, Ranked
from zograd.laws import Gaussian, Rademacher, Sphere
from zograd.spaces import Euclidean, PositiveOrthant

CASES = [*cases_gradient.CASES]
LAWS = (Rademacher(), Gaussian(), Sphere())
ESTIMATORS = (Central(3), Forward(3), OneSided(4), Ranked(5))
SPACES = (Euclidean(), PositiveOrthant())
