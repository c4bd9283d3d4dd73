"""Rules: from an estimate to the direction of the move, block by block."""

from zograd.rules.accelerated import FISTA
from zograd.rules.adafactor import Adafactor
from zograd.rules.adam import Adam
from zograd.rules.adamu import AdaMU
from zograd.rules.amsgrad import AMSGrad
from zograd.rules.balanced import Balanced
from zograd.rules.base import Rule
from zograd.rules.bounded import Bounded
from zograd.rules.curvature import DiagonalNewton, PublishedHiZOO
from zograd.rules.evolution import SeparableCMA, SeparableNES
from zograd.rules.frank_wolfe import FrankWolfe
from zograd.rules.improving import Improving
from zograd.rules.lion import Lion, NormalizedLion
from zograd.rules.lowrank import FactorMomentum, SubspaceMuon
from zograd.rules.normalized import SpreadSGD
from zograd.rules.optimistic import Optimistic
from zograd.rules.proximal import Proximal
from zograd.rules.replayed import ReplayAdam
from zograd.rules.restricted import FastMovingNES
from zograd.rules.sgd import SGD, Momentum, ReplayMomentum
from zograd.rules.sign import Sign

__all__ = [
    "FISTA",
    "SGD",
    "AMSGrad",
    "AdaMU",
    "Adafactor",
    "Adam",
    "Balanced",
    "Bounded",
    "DiagonalNewton",
    "FactorMomentum",
    "FastMovingNES",
    "FrankWolfe",
    "Improving",
    "Lion",
    "Momentum",
    "NormalizedLion",
    "Optimistic",
    "Proximal",
    "PublishedHiZOO",
    "ReplayAdam",
    "ReplayMomentum",
    "Rule",
    "SeparableCMA",
    "SeparableNES",
    "Sign",
    "SpreadSGD",
    "SubspaceMuon",
]
