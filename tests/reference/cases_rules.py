"""The cases of `methods/rules.py`."""

import papers_rules as papers
from problems import Case

from zograd.estimators import Central, Compared, Consensus, SimulatedMomentum, Tracker
from zograd.rules import EuclideanMap
from zograd.sets import L1, GroupL2, L1Ball, L2Ball, Nuclear, NuclearBall
from zograd.spaces import Diagonal

MATRICES = ((4, 3), (8,))
OURS = ("n", "law", "replay")

CASES = [
    Case("adamezo", papers.adamezo, {"lr": 1e-2, "n": 2, "window": 7}),
    Case("zo_lion", papers.zo_lion, {"lr": 1e-2, "n": 2}),
    Case("zo_lion_l2", papers.zo_lion_l2, {"lr": 1e-2, "n": 2}),
    Case("zo_adamm", papers.zo_adamm, {"lr": 1e-2}),
    Case("zo_sign_scalar", papers.zo_sign_scalar, {"lr": 1e-2, "n": 3}),
    Case("zo_optimistic", papers.zo_optimistic, {"lr": 1e-2}),
    Case("zo_saddle", papers.zo_saddle, {"lr": 1e-2, "ascend": ("[!a]*",), "inner": Central(2)}, ours=(*OURS, "inner")),
    Case("zo_prox", papers.zo_prox, {"lr": 1e-2, "prox": L1(0.5)}, "l1", pulls=True),
    Case("zo_prox", papers.zo_prox, {"lr": 1e-2, "prox": GroupL2(0.5)}, "group", pulls=True, shapes=MATRICES),
    Case("zo_prox", papers.zo_prox, {"lr": 1e-2, "prox": Nuclear(0.5)}, "nuclear", pulls=True, shapes=MATRICES),
    Case("zo_prox", papers.zo_prox, {"lr": 1e-2, "prox": L2Ball(0.4)}, "l2-ball", pulls=True),
    Case("frank_wolfe", papers.frank_wolfe, {"set": L2Ball(4.0), "n": 2}, "l2", pulls=True),
    Case("frank_wolfe", papers.frank_wolfe, {"set": NuclearBall(4.0), "n": 2}, "nuclear", pulls=True, shapes=MATRICES),
    Case("frank_wolfe_vr", papers.frank_wolfe_vr, {"set": L1Ball(4.0), "batch": 2}, draws=2, terms=6, pulls=True),
    Case(
        "frank_wolfe_page",
        papers.frank_wolfe_page,
        {"set": L1Ball(4.0), "batch": 2, "p": 0.4, "refine": 3},
        draws=4,
        terms=6,
        pulls=True,
    ),
    Case("zo_halpern", papers.zo_halpern, {"lr": 1e-2, "n": 2, "batch": 2, "full": Central(3)}, draws=5, terms=6),
    Case("optimistic_mirror", papers.optimistic_mirror, {"map": EuclideanMap(L2Ball(4.0)), "n": 2}, pulls=True),
    Case("hizoo", papers.hizoo, {"lr": 1e-3, "alpha": 1e-4, "n": 2}),
    Case("hizoo", papers.hizoo, {"lr": 1e-3, "alpha": 1e-4, "published": True}, "published"),
    Case("hizoo_row", papers.hizoo_row, {"lr": 1e-3, "alpha": 1e-4}, shapes=MATRICES),
    Case("zo_adamu", papers.zo_adamu, {"lr": 1e-2, "start": 10, "stop": 60}, draws=2),
    Case("cbo", papers.cbo, {"n": 4}, pulls=True),
    Case("cbo", papers.cbo, {"n": 4, "sigma": 0.2, "componentwise": False}, "isotropic", pulls=True),
]
ESTIMATORS = (Compared(3), Consensus(4), SimulatedMomentum(), Tracker(2))
SPACES = (Diagonal(),)
