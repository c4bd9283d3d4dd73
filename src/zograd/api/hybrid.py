"""`Hybrid`: zeroth order on some parameters, autograd on others, in one step (hybrid fine-tuning)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zograd.api.torch_optimizer import ZOOptimizer
from zograd.core.query import Query
from zograd.oracles import as_number, seeded, sequential
from zograd.stores import Store


class Hybrid:
    """x <- zeroth-order step, y <- first-order step, both from the same point (x, y), batch and random state.

        opt = Hybrid(ZOOptimizer(base, methods.mezo(lr=1e-6)), torch.optim.AdamW(adapter, lr=1e-3))
        loss = opt.step(lambda: loss_fn(model(inputs), labels))

    zo: a `ZOOptimizer` of x, whose gradients are never formed; a base that is frozen, as peft does it, needs its
    `frozen=True`. fo: any torch optimizer of y that steps without a closure. The two have no parameter in common, and
    each has its own learning rate: the paper takes 1e-6 for the base model and 1e-3 for its adapter, since the stable
    rate of x shrinks with its number of weights.

    Costs one forward and backward pass through what depends on y, and the evaluations of the method; the loss at (x, y)
    itself is not evaluated again, so `Forward(1)` costs one more forward. Memory: that of training y alone.
    A loss that is not finite refuses the part that met it. Ma, Yu and Huang 2026, arXiv 2604.09940.
    """

    def __init__(self, zo: ZOOptimizer, fo: torch.optim.Optimizer) -> None:
        self.zo, self.fo = zo, fo
        for p in self._first_order():
            if (shared := zo.store.by_id.get(id(p))) is not None:
                raise ValueError(
                    f"{shared.name!r} is in both optimizers; give each parameter to ZOOptimizer or to the torch one"
                )
            if not p.requires_grad:
                raise ValueError(
                    "a parameter of the torch optimizer does not require grad; call requires_grad_() on it"
                )

    def _first_order(self) -> list[Tensor]:
        return [p for group in self.fo.param_groups for p in group["params"]]

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step of both parts; the closure gives the loss as a tensor and never calls backward. Returns the loss."""
        self.zo.check_surroundings()
        plain = sequential(closure)
        losses: list[float] = []

        def oracle(store: Store, queries: Sequence[Query], key: int) -> list[float]:
            if not losses:
                losses.append(self._differentiate(closure, key))
            at_x = [i for i, query in enumerate(queries) if not query.at and query.rows is None]
            others = iter(plain(store, [q for i, q in enumerate(queries) if i not in at_x], key))
            return [losses[0] if i in at_x else next(others) for i in range(len(queries))]

        self.zo.step_by(oracle)
        if math.isfinite(losses[0]):
            self.fo.step()
        return torch.tensor(losses[0], dtype=torch.float64, device="cpu")

    def _differentiate(self, closure: Callable[[], Tensor], key: int) -> float:
        """The loss at (x, y); its gradient goes to the `grad` of y."""
        y = self._first_order()
        with seeded(self.zo.store, key) as reseed, self._frozen(), torch.enable_grad():
            reseed()
            loss = closure()
            value = as_number(loss)
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise TypeError(
                    f"Hybrid needs the loss as a tensor that depends on the parameters of the torch optimizer, got "
                    f"{type(loss).__name__} without a graph; return loss_fn(model(x), y) itself, not its item()"
                )
            grads = torch.autograd.grad(loss.sum(), y, allow_unused=True)
        for p, g in zip(y, grads, strict=True):
            p.grad = g
        return value

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Inside, x requires no grad: neither its gradients nor what they need is kept."""
        wanted = [leaf.tensor for leaf in self.zo.store.leaves if leaf.tensor.requires_grad]
        for p in wanted:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in wanted:
                p.requires_grad_(True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Kept because loops call it: `step` overwrites the gradients of y."""
        self.fo.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"zo": self.zo.state_dict(), "fo": self.fo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.zo.load_state_dict(state["zo"])
        self.fo.load_state_dict(state["fo"])
