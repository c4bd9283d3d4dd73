"""The cases of `methods/geometry.py`."""

import papers_geometry as papers
from problems import Case

OURS = ("n", "law", "trust")
CASES = [
    Case("hozo", papers.hozo, {"lr": 2e-2, "mu": 2.0**-6, "n": 2, "trust": 0.05}),
    Case("hozo", papers.hozo, {"lr": 2e-2, "mu": 2.0**-6, "clip": 1.5, "trust": None}, "clip", ours=OURS),
    Case("qzo", papers.qzo, {"lr": 1e-2, "mu": 1e-3, "n": 2, "clip": 2.0}, pulls=True),
]
