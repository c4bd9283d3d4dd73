"""The cases of `methods/estimators.py`."""

import papers_estimators as papers
from problems import Case

from zograd.estimators import (
    SAM,
    SVRG,
    ZPDVR,
    Central,
    Conservative,
    Coordinates,
    Curved,
    Forward,
    Geometric,
    LooplessSVRG,
    Mirrored,
    OneSided,
    Preference,
    ProbeWeighted,
    Ranked,
    Recentred,
    Richardson,
    Unbiased,
    Zipf,
)

CHOICE = ("count", "refresh")
CASES = [
    Case("spsa15", papers.spsa15, {"lr": 1e-2, "n": 3, "mu": 1e-3, "alpha": 0.3}),
    Case("zo_richardson", papers.zo_richardson, {"lr": 1e-2, "n": 2, "mu": 0.25}),
    Case("zo_clip", papers.zo_clip, {"lr": 1e-2, "n": 2, "clip": 2.0}),
    Case("p4", papers.p4, {"lr": 1e-3, "mu": 0.25, "n": 2, "radii": Geometric(0.5), "levels": 4}),
    Case("p4", papers.p4, {"lr": 1e-3, "mu": 0.25, "n": 1, "radii": Zipf(3.0), "levels": 3}, "zipf"),
    Case("p3", papers.p3, {"lr": 1e-3, "mu": 0.25, "n": 2, "radii": Geometric(0.5), "levels": 4}),
    Case("zo_recentred", papers.zo_recentred, {"lr": 1e-3, "n": 2, "memory": "momentum"}),
    Case("zo_recentred", papers.zo_recentred, {"lr": 1e-3, "n": 2, "memory": "tracker"}, "tracker"),
    Case(
        "zo_recentred",
        papers.zo_recentred,
        {"lr": 1e-3, "n": 2, "memory": "snapshot", "every": 4, "pilot": 3},
        "snapshot",
        draws=5,
    ),
    Case("zo_svrg", papers.zo_svrg, {"lr": 1e-3, "batch": 2, "every": 3, "full": Central(4)}, draws=5, terms=6),
    Case("zo_lsvrg", papers.zo_svrg, {"lr": 1e-3, "batch": 1, "p": 0.3, "full": Central(4)}, draws=5, terms=6),
    Case("zpdvr", papers.zpdvr, {"lr": 1e-3}, draws=2, terms=6),
    Case("preference", papers.preference, {"lr": 1e-2, "n": 3}, draws=6),
    Case("mirrored_es", papers.mirrored_es, {"lr": 1e-2, "n": 3}),
    Case("cge", papers.cge, {"lr": 3e-2, "count": 6, "refresh": 2}, ours=CHOICE),
    Case("cge", papers.cge, {"lr": 3e-2, "count": 8, "central": True}, "central", ours=CHOICE),
    Case("deepzero", papers.deepzero, {"lr": 1e-2, "count": 13, "refresh": 5, "weight_decay": 0.0}, ours=CHOICE),
    Case("zo_conservative", papers.zo_conservative, {"lr": 1e-2, "n": 2}),
    Case("zo_sam", papers.zo_sam, {"lr": 1e-2, "n": 2}, draws=4),
]
ESTIMATORS = (
    Central(3),
    Forward(3),
    OneSided(4),
    Ranked(5),
    Curved(3),
    ProbeWeighted(3),
    Richardson(2),
    Unbiased(2),
    Recentred(2),
    SVRG(2, full=Central(2)),
    LooplessSVRG(2),
    ZPDVR(),
    Preference(2),
    Mirrored(2),
    Coordinates(4),
    Conservative(Central(2)),
    SAM(Central(2)),
)
