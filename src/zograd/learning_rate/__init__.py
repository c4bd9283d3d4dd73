"""Controllers of the learning rate, and how large a stable zeroth-order step may be."""

from zograd.learning_rate.auto import AutoRate, Measured, as_controller
from zograd.learning_rate.backtracking import Backtracking
from zograd.learning_rate.controller import Controller
from zograd.learning_rate.levels import Levels
from zograd.learning_rate.radius import AutoRadius
from zograd.learning_rate.refined import refined, slope_norms
from zograd.learning_rate.stability import (
    MOMENTS,
    Moments,
    critical_lr,
    lr_bounds,
    moments,
    second_moment_map,
    second_moment_radius,
)
from zograd.learning_rate.trust import TrustRate

__all__ = [
    "MOMENTS", "AutoRadius", "AutoRate", "Backtracking", "Controller", "Levels", "Measured", "Moments", "TrustRate",
    "as_controller", "critical_lr", "lr_bounds", "moments", "refined", "second_moment_map", "second_moment_radius",
    "slope_norms",
]  # fmt: skip
