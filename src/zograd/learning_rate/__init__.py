"""Controllers: how large a zeroth-order step may be, and a learning rate that nobody has to search."""

from zograd.learning_rate.auto import AutoRate, Measured
from zograd.learning_rate.stability import (
    MOMENTS,
    Moments,
    critical_lr,
    lr_bounds,
    moments,
    second_moment_map,
    second_moment_radius,
)

__all__ = [
    "MOMENTS", "AutoRate", "Measured", "Moments", "critical_lr", "lr_bounds", "moments", "second_moment_map",
    "second_moment_radius",
]  # fmt: skip
