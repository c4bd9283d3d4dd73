"""Rules: from an estimate to the direction of the move, block by block."""

from zograd.rules.accelerated import FISTA
from zograd.rules.adafactor import Adafactor
from zograd.rules.adam import Adam
from zograd.rules.adamu import AdaMU
from zograd.rules.amsgrad import AMSGrad
from zograd.rules.anchored import Halpern
from zograd.rules.balanced import Balanced, BalancedNorms
from zograd.rules.base import Rule
from zograd.rules.bounded import Bounded
from zograd.rules.cosine import CosineAdam, CosineAdamFeedback, Trion
from zograd.rules.curvature import DiagonalNewton, PublishedHiZOO
from zograd.rules.evolution import SeparableCMA, SeparableNES
from zograd.rules.fisher import InverseFisher
from zograd.rules.frank_wolfe import FrankWolfe
from zograd.rules.improving import Improving
from zograd.rules.lion import Lion, NormalizedLion, RowLion, SpectralLion
from zograd.rules.lowrank import FactorMomentum, SubspaceMuon
from zograd.rules.mirror import Entropy, EuclideanMap, MirrorMap, OptimisticMirror
from zograd.rules.normalized import SpreadSGD
from zograd.rules.optimistic import Optimistic
from zograd.rules.proximal import Proximal
from zograd.rules.replayed import ReplayAdam
from zograd.rules.restricted import FastMovingNES
from zograd.rules.rotated import Rotated, Signs, Sinkhorn
from zograd.rules.sgd import SGD, Momentum, ReplayMomentum
from zograd.rules.sign import Sign
from zograd.rules.structured import LowRankSparse

__all__ = [
    "FISTA",
    "SGD",
    "AMSGrad",
    "AdaMU",
    "Adafactor",
    "Adam",
    "Balanced",
    "BalancedNorms",
    "Bounded",
    "CosineAdam",
    "CosineAdamFeedback",
    "DiagonalNewton",
    "Entropy",
    "EuclideanMap",
    "FactorMomentum",
    "FastMovingNES",
    "FrankWolfe",
    "Halpern",
    "Improving",
    "InverseFisher",
    "Lion",
    "LowRankSparse",
    "MirrorMap",
    "Momentum",
    "NormalizedLion",
    "Optimistic",
    "OptimisticMirror",
    "Proximal",
    "PublishedHiZOO",
    "ReplayAdam",
    "ReplayMomentum",
    "Rotated",
    "RowLion",
    "Rule",
    "SeparableCMA",
    "SeparableNES",
    "Sign",
    "Signs",
    "Sinkhorn",
    "SpectralLion",
    "SpreadSGD",
    "SubspaceMuon",
    "Trion",
]
