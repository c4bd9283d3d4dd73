"""Estimators: generators that yield points, receive losses and return a gradient estimate."""

from zograd.estimators.aligned import Aligned
from zograd.estimators.base import Estimator
from zograd.estimators.blockwise import (
    Backpropagation,
    ForwardResidual,
    FromBlocks,
    NodePerturbation,
    ResidualFeedback,
)
from zograd.estimators.comparison import Compared
from zograd.estimators.coordinate import Coordinates, grasp_densities
from zograd.estimators.curved import Curvatures, Curved, ProbeWeighted
from zograd.estimators.differences import Central, Forward, ForwardOrCentral, OneSided, Richardson, Spread
from zograd.estimators.evolution import Evolution, Restricted, RestrictedEvolution, population_size
from zograd.estimators.extrapolated import Extrapolated, Trial
from zograd.estimators.feasible import Feasible
from zograd.estimators.games import Players, Saddle
from zograd.estimators.page import Page, Tracker
from zograd.estimators.population import Consensus
from zograd.estimators.ranked import Mirrored, Preference, Ranked
from zograd.estimators.reduced import SVRG, ZPDVR, LooplessSVRG, Recentred
from zograd.estimators.simulated import Mixture, SimulatedMomentum
from zograd.estimators.unbiased import Geometric, Unbiased, Zipf, deepest_level
from zograd.estimators.vertices import Tried, Vertices
from zograd.estimators.watching import Watching
from zograd.estimators.wrappers import SAM, AdaptiveSAM, Conservative, InfoSAM

__all__ = [
    "SAM",
    "SVRG",
    "ZPDVR",
    "AdaptiveSAM",
    "Aligned",
    "Backpropagation",
    "Central",
    "Compared",
    "Consensus",
    "Conservative",
    "Coordinates",
    "Curvatures",
    "Curved",
    "Estimator",
    "Evolution",
    "Extrapolated",
    "Feasible",
    "Forward",
    "ForwardOrCentral",
    "ForwardResidual",
    "FromBlocks",
    "Geometric",
    "InfoSAM",
    "LooplessSVRG",
    "Mirrored",
    "Mixture",
    "NodePerturbation",
    "OneSided",
    "Page",
    "Players",
    "Preference",
    "ProbeWeighted",
    "Ranked",
    "Recentred",
    "ResidualFeedback",
    "Restricted",
    "RestrictedEvolution",
    "Richardson",
    "Saddle",
    "SimulatedMomentum",
    "Spread",
    "Tracker",
    "Trial",
    "Tried",
    "Unbiased",
    "Vertices",
    "Watching",
    "Zipf",
    "deepest_level",
    "grasp_densities",
    "population_size",
]
