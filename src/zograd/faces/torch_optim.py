"""`ZOOptimizer`: a `torch.optim.Optimizer` whose closure only evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from zograd import methods
from zograd.control import AutoRate
from zograd.oracles import Oracle, sequential
from zograd.run import Method, Record, Run
from zograd.schedules import as_schedule
from zograd.stores.base import Rate, Rounding, Store


class ZOOptimizer(torch.optim.Optimizer):
    """Zeroth-order steps in a torch training loop.

        opt = ZOOptimizer(model.parameters(), methods.fzoo(lr=1e-3))
        loss = opt.step(lambda: loss_fn(model(x), y))

    params: parameters or param groups (each with its own `lr` and `weight_decay`, which torch's LR schedulers drive).
        All of them are trained, whatever their `requires_grad`.
    method: a menu name or a `Method`. Its lr and weight_decay are the defaults of the groups. A schedule inside of the
        method's lr is followed unless a torch scheduler is attached: set it in one place only.
        With lr="auto" the groups show the rate that was measured; setting theirs has no effect.
    rounding: see `zograd.stores.Store`. record: called with the `Record` of each step.

    `step(closure)` evaluates the closure `method.evaluations` times, without gradients, each time under the same
    torch random state (the same dropout masks), and returns the mean of the losses as a tensor. It never calls
    backward. A non-finite loss refuses the step. Memory: nothing of the size of the weights.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        method: str | Method[Any] = "zo_sgd",
        *,
        seed: int = 0,
        rounding: Rounding = "stochastic",
        record: Callable[[Record], object] | None = None,
    ) -> None:
        self.method = methods.make(method) if isinstance(method, str) else method
        self.seed, self.rounding, self.record = seed, rounding, record
        self.run: Run[Any] | None = None
        self.auto = isinstance(self.method.lr, AutoRate)
        lr = as_schedule(0.0 if isinstance(self.method.lr, AutoRate) else self.method.lr)  # type: ignore[arg-type]
        super().__init__(params, {"lr": lr(0), "weight_decay": self.method.weight_decay})
        self._base = lr
        self.last: Record | None = None
        self._build()

    def _build(self) -> None:
        tensors, groups = {}, {}
        for g, group in enumerate(self.param_groups):
            given = group.get("param_names")
            for i, p in enumerate(group["params"]):
                name = given[i] if given else f"group{g}.{i}"
                tensors[name], groups[name] = p, g
        decays = [1.0] * len(self.param_groups)
        store = Store(tensors, space=self.method.space, rounding=self.rounding, groups=groups, decays=decays)
        self.run = Run(store, self.method, self.seed)

    @property
    def store(self) -> Store:
        assert self.run is not None
        return self.run.store

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group before the first step; afterwards the directions of the run would change under it."""
        run = getattr(self, "run", None)
        if run is not None and run.step_number:
            raise RuntimeError("param groups can be added before the first step only; make a new ZOOptimizer")
        super().add_param_group(param_group)
        if run is not None:
            self._build()

    def step(self, closure: Callable[[], float | Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """One step: returns the mean loss over the points evaluated, a 0-dim float64 tensor."""
        if closure is None:
            raise TypeError("ZOOptimizer.step needs the loss: opt.step(lambda: loss_fn(model(x), y))")
        return self.step_by(sequential(closure))

    def step_by(self, oracle: Oracle) -> Tensor:
        """One step whose queries are answered by an oracle instead of a closure."""
        assert self.run is not None
        t = self.run.step_number
        own = (
            1.0
            if self._base.shape == "constant" and not self._base.warmup
            else self._base(t) / max(self._base(0), 1e-300)
        )
        rates = [Rate(float(g["lr"]) * own, float(g["weight_decay"])) for g in self.param_groups]
        self.last = self.run.step(oracle, None if self.auto else rates)
        if self.auto:
            for group, rate in zip(self.param_groups, self.last.rates, strict=True):
                group["lr"] = rate.lr
        if self.record is not None:
            self.record(self.last)
        return torch.tensor(self.last.loss, dtype=torch.float64)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: there are no gradients. Kept because loops call it."""

    def state_dict(self) -> dict[str, Any]:
        """Param groups as torch has them; under "zograd" the step, the seed, slots and low halves (not the weights)."""
        assert self.run is not None
        state: dict[str, Any] = super().state_dict()
        tensors = {k: v.clone() for k, v in self.store.state_dict().items() if not k.startswith("x.")}
        state["zograd"] = {"run": self.run.state_dict(), "tensors": tensors}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run; the weights come from the model's own state_dict, loaded before."""
        assert self.run is not None
        own = state_dict["zograd"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zograd"})
        weights = {k: v for k, v in self.store.state_dict().items() if k.startswith("x.")}
        self.store.load_state_dict({**weights, **own["tensors"]})
        self.run.load_state_dict(own["run"])
