"""The cases of `methods/directions.py`, and the laws and estimators of directions."""

import numpy as np
import papers_directions as papers
import torch
from problems import Case

from zograd.estimators import Aligned
from zograd.laws import (
    DCT,
    Components,
    Coordinate,
    Gaussian,
    LowRank,
    Orthogonal,
    Projected,
    RankOne,
    Scattered,
    SmallWeights,
    Subspace,
    TopScores,
    Walsh,
)

MATRICES = ((4, 3), (8,))
OURS = ("n", "law", "rank", "refresh", "columns", "shaped")


def matrices(name: str, paper, settings: dict, label: str = "", **more) -> Case:
    return Case(name, paper, settings, label, **{"ours": OURS, "shapes": MATRICES, **more})


def some_scores(leaf) -> torch.Tensor:
    """A score for each weight, all different."""
    return torch.from_numpy(2 + np.sin(np.arange(leaf.numel) * 1.3 + leaf.index)).view(leaf.shape)


SMALL = ("n", "law")
CASES = [
    Case("zo_orthogonal", papers.zo_orthogonal, {"lr": 1e-2, "n": 3}),
    Case("zo_orthogonal", papers.zo_orthogonal, {"lr": 1e-2, "n": 5, "law": Walsh()}, "walsh"),
    matrices("lozo", papers.lozo, {"lr": 1e-2, "rank": 2, "refresh": 3}),
    matrices("lozo_m", papers.lozo_m, {"lr": 1e-2, "rank": 2, "refresh": 3}, ours=("n",)),
    matrices("subzero", papers.subzero, {"lr": 1e-2, "rank": 2, "refresh": 4}),
    matrices("tezo", papers.tezo, {"lr": 1e-2, "rank": 3}),
    matrices("eggroll", papers.eggroll, {"lr": 1e-2, "n": 3}),
    matrices("eggroll", papers.eggroll_unshaped, {"lr": 1e-2, "n": 3, "shaped": False}, "unshaped"),
    matrices("zo_dct", papers.zo_dct, {"lr": 1e-2, "rank": 2, "refresh": 5}),
    matrices("zo_dct", papers.zo_dct, {"lr": 1e-2, "rank": 2, "columns": (0, 2)}, "given"),
    matrices("zo_muon", papers.zo_muon, {"lr": 1e-3, "n": 3, "rank": 2, "refresh": 4, "plain": 1.0}, ours=("n",)),
    matrices("sparse_mezo", papers.sparse_mezo, {"lr": 1e-2, "sparsity": 0.5}, ours=SMALL),
    matrices("senszoq", papers.senszoq, {"lr": 1e-2, "density": 0.25, "scores": some_scores}, ours=SMALL),
    Case("dap", papers.dap, {"lr": 1e-2, "n": 4}),
    Case("dap", papers.dap, {"lr": 1e-2, "n": 4, "fixed_norm": False, "law": Gaussian(), "central": True}, "gaussian"),
    Case("dap", papers.dap, {"lr": 1e-2, "n": 3, "guide": "momentum"}, "momentum"),
]
LAWS = (
    Orthogonal(),
    Walsh(),
    Coordinate(),
    LowRank(2, 1),
    RankOne(),
    Components(2),
    Subspace(2, 1),
    Projected(2, 1),
    DCT(2, 1),
    SmallWeights(0.5),
    TopScores(0.5, some_scores),
    Scattered(0.5, 1 << 20),
)
ESTIMATORS = (Aligned(4),)
