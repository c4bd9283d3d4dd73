"""Losses by example that answer a round of an estimator: what is measured at the ascent point of SAM, for instance."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["overconfidence"]


def overconfidence(logits: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """[examples]: -(1 + p)^-gamma log p where p > 1/2, and -log p elsewhere, p the probability of the right class.

    The outer loss of CSAM (arXiv 2505.23866): at the ascent point of `estimators.SAM` it takes weight from examples of
    which the model is sure already, so that confidence is not driven further. With gamma = 0 it is cross-entropy. The
    loss jumps at p = 1/2, by a factor of 1.5^-gamma.

    logits: [examples, classes]; labels: int64 [examples]. Write `oracles.by_round(cross_entropy, overconfidence)` for
    CSAM. ValueError for shapes that do not fit and a negative gamma.

    >>> import torch
    >>> sure, open = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.1]])
    >>> right = torch.tensor([0])
    >>> cross = F.cross_entropy(sure, right)
    >>> bool(overconfidence(sure, right, 2.0) < cross / 3)
    True
    >>> bool(overconfidence(open, right, 2.0) == F.cross_entropy(open, right))
    True
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}; pass [examples, "
            f"classes] and [examples]"
        )
    if not gamma >= 0:
        raise ValueError(f"gamma is the power of the weight 1 / (1 + p), at least 0, got {gamma}")
    losses = F.cross_entropy(logits, labels, reduction="none")
    p = (-losses).exp()
    return losses * (1.0 + p).pow(-gamma).where(p > 0.5, p.new_ones(()))
