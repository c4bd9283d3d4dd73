"""Laws of directions: how v is drawn, with E[v v^T] = I in frame coordinates."""

from zograd.laws.base import Draw, Gaussian, Law, Rademacher, Sphere
from zograd.laws.coordinate import Coordinate, Unit
from zograd.laws.cosine import DCT, strongest_columns
from zograd.laws.inputs import OnLayerInputs
from zograd.laws.lowrank import Components, LowRank, Projected, Subspace
from zograd.laws.masked import Scattered, SmallWeights, TopScores
from zograd.laws.orthogonal import Orthogonal, Walsh
from zograd.laws.protected import Memory, NullSpace
from zograd.laws.rank_one import RankOne
from zograd.laws.scores import Scores, sensitivity, squared_weights

__all__ = [
    "DCT",
    "Components",
    "Coordinate",
    "Draw",
    "Gaussian",
    "Law",
    "LowRank",
    "Memory",
    "NullSpace",
    "OnLayerInputs",
    "Orthogonal",
    "Projected",
    "Rademacher",
    "RankOne",
    "Scattered",
    "Scores",
    "SmallWeights",
    "Sphere",
    "Subspace",
    "TopScores",
    "Unit",
    "Walsh",
    "sensitivity",
    "squared_weights",
    "strongest_columns",
]
