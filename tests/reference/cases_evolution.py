"""The cases of `methods/evolution.py`."""

import papers_evolution as papers
from problems import Case

from zograd.estimators import Evolution, RestrictedEvolution

CASES = [
    Case("snes", papers.snes, {"sigma": 0.5, "n": 8}),
    Case("snes", papers.snes, {"n": 6}, "from-x0"),
    Case("sep_cma", papers.sep_cma, {"sigma": 0.5, "n": 8}),
    Case("sep_cma", papers.sep_cma, {"n": 7}, "from-x0"),
    Case("cr_fm_nes", papers.cr_fm_nes, {"sigma": 0.5, "n": 8}, draws=5),
    Case("cr_fm_nes", papers.cr_fm_nes, {"n": 6}, "from-x0", draws=4),
]
ESTIMATORS = (Evolution(6), Evolution(5, "cma"), RestrictedEvolution(6))
