"""The menu, page for models with blocks: residual feedback, and backpropagation to compare it with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Final, Literal, TypeAlias, TypedDict, TypeVar, Unpack, cast, get_type_hints

from zograd.core.method import Method
from zograd.estimators.blockwise import (
    Backpropagation,
    ForwardResidual,
    FromBlocks,
    NodePerturbation,
    ResidualFeedback,
)
from zograd.laws import Rademacher
from zograd.methods.menu import LearningRate, entry
from zograd.rules import Adafactor, Adam
from zograd.rules.base import Rule
from zograd.rules.moments import Moments

__all__ = ["backprop", "forward_residual", "node_perturbation", "residual"]

BlockMoments: TypeAlias = Moments | Literal["factored"]


class AdamSettings(TypedDict, total=False):
    """What every method on blocks takes beside its own settings: those of Adam, or of Adafactor in its place."""

    beta1: float
    beta2: float
    eps: float
    moments: BlockMoments
    weight_decay: float


ADAM: Final[AdamSettings] = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "moments": "full", "weight_decay": 0.0}
"""Their defaults."""

Made = TypeVar("Made", bound=Callable[..., Method[None]])


def on_adam(build: Made) -> Made:
    """Decorator: the signature of a method names each of `AdamSettings` with its default, in place of **adam.

    So the menu lists them, and an unknown name is refused as by any function.
    """
    own, types = inspect.signature(build), get_type_hints(AdamSettings)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = [inspect.Parameter(name, kind, default=value, annotation=types[name]) for name, value in ADAM.items()]
    signature = own.replace(parameters=[*list(own.parameters.values())[:-1], *shared])

    @wraps(build)
    def named(*args: Any, **given: Any) -> Method[None]:
        try:
            settings = signature.bind(*args, **given).arguments
        except TypeError as e:
            raise TypeError(f"{build.__name__}() {e}") from None
        return build(**settings)

    named.__signature__ = signature  # type: ignore[attr-defined]
    return cast(Made, named)


def _method(estimator: FromBlocks, lr: LearningRate, adam: AdamSettings) -> Method[None]:
    """Adam, or Adafactor, on the gradients that an estimator has of the blocks."""
    s: AdamSettings = {**ADAM, **adam}
    moments = s["moments"]
    if moments not in ("full", "bfloat16", "factored"):
        raise ValueError(f"moments are 'full', 'bfloat16' (both Adam) or 'factored' (Adafactor), got {moments!r}")
    rule: Rule[None] = Adafactor() if moments == "factored" else Adam(s["beta1"], s["beta2"], s["eps"], moments)
    return Method(estimator, Rademacher(), rule, lr=lr, weight_decay=s["weight_decay"])


@entry(
    source="zero iterations of highway backpropagation, Fagnou et al. 2025, arXiv 2501.17086; Kingma and Ba 2015",
    extra_memory="two slots a trained weight, in float32 or bfloat16; the activations of one block; what enters each "
    "of the `exact` last blocks",
    formula="Adam on g_l = d<H, F_l(h_l; W_l)>/dW_l with H = dL/dh_{L - exact}, h_{l+1} = h_l + F_l(h_l; W_l); on the "
    "exact gradient of the last `exact` blocks",
    needs="blocks",
)
@on_adam
def residual(
    lr: LearningRate = 2e-4,
    exact: int = 4,
    **adam: Unpack[AdamSettings],
) -> Method[None]:
    """Residual feedback: each block of a transformer learns from the derivative of the loss behind the last block.

    exact: of so many last blocks the derivative is exact, and the others learn from the derivative in front of these.
    It needs the memory of what enters each of them, and little time. With all blocks it is `backprop`.
    moments="bfloat16" keeps those of Adam in 16 bits, rounded stochastically. moments="factored" takes Adafactor in
    place of Adam: a number a row and a column, no slots, and no momentum.
    """
    return _method(ResidualFeedback(exact=exact), lr, adam)


@entry(
    source="residual feedback with node perturbation inside of a block; Fagnou et al. 2025; Ren et al., ICLR 2023",
    extra_memory="two slots a trained weight, in float32 or bfloat16; what enters the trained layers of one block",
    formula="Adam on d/dW sum_t <e_t, y_t>: e_t = H_t where y is added to the block's output, else s_t xi_t "
    "(summed over t' >= t in attention), s_t = <H_t, F(y + mu xi)_t - F(y - mu xi)_t> / 2 mu",
    needs="blocks",
)
@on_adam
def forward_residual(
    lr: LearningRate = 2e-4,
    mu: float = 1e-2,
    draws: int = 1,
    **adam: Unpack[AdamSettings],
) -> Method[None]:
    """Residual feedback by forward passes alone: no derivative of any block is taken.

    Each block is evaluated 1 + 2 draws times, with noise on the outputs of its trained layers and a slope for each
    token. mu is a share of the size of these outputs.
    """
    estimator = ForwardResidual(mu=mu, draws=draws)
    return replace(_method(estimator, lr, adam), mu=mu)


@entry(
    source="Chen et al. 2016, arXiv 1604.06174 (checkpoints); Lv et al. 2023, arXiv 2306.09782 (LOMO: fused updates)",
    extra_memory="two slots a trained weight, float32 or bfloat16; what enters each block (with recompute, about "
    "sqrt(2 L) of L blocks); the activations of one block",
    formula="Adam on g = dL/dW, block by block from the last one, each of which moves at once",
    needs="blocks",
)
@on_adam
def backprop(
    lr: LearningRate = 1e-4,
    recompute: bool = False,
    **adam: Unpack[AdamSettings],
) -> Method[None]:
    """Backpropagation with checkpointed blocks and fused updates: the rival, by the same command.

    recompute=True keeps what enters about sqrt(2 L) of L blocks and computes the rest again: the same bits, in less
    memory, for at most one more forward of each block.
    """
    return _method(Backpropagation(recompute=recompute), lr, adam)


@entry(
    source="Williams 1992; Ren, Kornblith, Liao and Hinton, ICLR 2023, arXiv 2210.03310",
    extra_memory="two slots a trained weight, in float32 or bfloat16; the activations of one block",
    formula="Adam on d/dW sum_i <c_i xi_i, y_i>, c_i = (L_i(y + mu xi) - L_i(y - mu xi)) / 2 mu",
    needs="blocks",
)
@on_adam
def node_perturbation(
    lr: LearningRate = 5e-4,
    mu: float = 1e-2,
    at: Literal["layers", "blocks"] = "layers",
    draws: int = 1,
    center: Literal["none", "residual"] = "none",
    shrink: float = 1.0,
    **adam: Unpack[AdamSettings],
) -> Method[None]:
    """Node perturbation: each example has its own slope along noise on the outputs of the trained layers or blocks.

    Unbiased to O(mu^2), without the derivative of any block where at="layers". center="residual" (at="blocks")
    recentres it by residual feedback, and `shrink` weighs that correction.
    """
    estimator = NodePerturbation(mu=mu, at=at, draws=draws, center=center, shrink=shrink)
    return replace(_method(estimator, lr, adam), mu=mu)
