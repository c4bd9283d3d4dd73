"""Diagnostics: properties of a loss from evaluations alone, and a comparison with its gradient if one exists."""

from zograd.diagnostics.curvature import flatness, gradient_hvp, largest_eigenvalue, trace, values_hvp
from zograd.diagnostics.gradient import gradient_cosine
from zograd.diagnostics.noise import NoiseFloor, noise_floor, signal_to_noise
from zograd.diagnostics.problem import Measurement, Problem, problem

__all__ = [
    "Measurement", "NoiseFloor", "Problem", "flatness", "gradient_cosine", "gradient_hvp", "largest_eigenvalue",
    "noise_floor", "problem", "signal_to_noise", "trace", "values_hvp",
]  # fmt: skip
