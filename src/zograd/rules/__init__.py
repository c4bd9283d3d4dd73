"""Rules: from an estimate to the direction of the move, block by block."""

from zograd.rules.adam import Adam
from zograd.rules.base import Rule
from zograd.rules.frank_wolfe import FrankWolfe
from zograd.rules.normalized import SpreadSGD
from zograd.rules.sgd import SGD, Momentum, ReplayMomentum
from zograd.rules.sign import Sign

__all__ = ["SGD", "Adam", "FrankWolfe", "Momentum", "ReplayMomentum", "Rule", "Sign", "SpreadSGD"]
