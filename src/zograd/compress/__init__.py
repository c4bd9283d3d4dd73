"""Smaller matrices of trained models: which weights matter, masks, and thin factors. Forward passes are enough."""

from zograd.compress.factors import (
    Factored,
    factorise_,
    load_factors,
    rank_of,
    replace_,
    row_fisher,
    row_fisher_by_autograd,
    save_factors,
    weighted_svd,
)
from zograd.compress.scores import activation_norms, linear_layers, magnitude, prune_, task_aware, wanda

__all__ = [
    "Factored",
    "activation_norms",
    "factorise_",
    "linear_layers",
    "load_factors",
    "magnitude",
    "prune_",
    "rank_of",
    "replace_",
    "row_fisher",
    "row_fisher_by_autograd",
    "save_factors",
    "task_aware",
    "wanda",
    "weighted_svd",
]
