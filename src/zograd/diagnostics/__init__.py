"""Diagnostics: properties of a loss from evaluations alone, and a comparison with its gradient if one exists."""

from zograd.diagnostics.batches import BatchCurvature, batch_curvature, spiked_edge
from zograd.diagnostics.calibration import Calibration, calibration
from zograd.diagnostics.curvature import flatness, gradient_hvp, largest_eigenvalue, trace, values_hvp
from zograd.diagnostics.gradient import gradient_cosine
from zograd.diagnostics.noise import NoiseFloor, noise_floor, signal_to_noise
from zograd.diagnostics.problem import Measurement, Problem, problem
from zograd.diagnostics.robustness import Attack, Robustness, one_word, robustness

__all__ = [
    "Attack", "BatchCurvature", "Calibration", "Measurement", "NoiseFloor", "Problem", "Robustness",
    "batch_curvature", "calibration", "flatness", "gradient_cosine", "gradient_hvp", "largest_eigenvalue",
    "noise_floor", "one_word", "problem", "robustness", "signal_to_noise", "spiked_edge", "trace", "values_hvp",
]  # fmt: skip
