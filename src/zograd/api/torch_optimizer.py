"""`ZOOptimizer`: a `torch.optim.Optimizer` whose closure only evaluates."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zograd import methods
from zograd.core.method import Method
from zograd.core.record import Record
from zograd.core.run import Run
from zograd.core.schedules import Schedule
from zograd.core.seeds import Seed, as_seed
from zograd.oracles import Oracle, sequential
from zograd.stores import Rate, Rounding, Store

TRAINER = (
    "Trainer(..., optimizers=(opt, None)) write zograd.hf.forward_only(Trainer)(..., method=...), which makes its own "
    "optimizer"
)


def _instead(method: Any, settings: Mapping[str, Any]) -> str:
    """What to write where settings of a method, or torch's learning rate, were given to the optimizer."""
    if not isinstance(method, str | Method):
        given = {"lr": method} if isinstance(method, int | float) else {}
        return (
            f"method is {method!r}, and expected is a name or a Method: "
            f"ZOOptimizer(params, method={_made('zo_sgd', {**given, **settings})})"
        )
    name = method if isinstance(method, str) else method.name
    return (
        f"ZOOptimizer has no {', '.join(settings)}: settings of the steps belong to the method. Write "
        f"ZOOptimizer(params, method={_made(name, settings)})"
    )


def _made(name: str, settings: Mapping[str, Any]) -> str:
    return f"zograd.methods.{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


class ZOOptimizer(torch.optim.Optimizer):
    """Zeroth-order steps in a torch training loop.

        opt = ZOOptimizer(model.parameters(), methods.fzoo(lr=1e-3))
        loss = opt.step(lambda: loss_fn(model(x), y))

    params: parameters or param groups (each with its own `lr` and `weight_decay`, which torch's LR schedulers drive).
        Those that do not require grad stay as they are, and a warning counts them.
    method: a menu name or a `Method`. Its lr and weight_decay are the defaults of the groups. A schedule inside of the
        method's lr is followed unless a torch scheduler is attached: set it in one place only.
        With lr="auto" the groups show the rate that was measured; setting theirs has no effect.
    settings: none; a TypeError says how a learning rate or another setting is given to the method.
    seed: see `zograd.Run`; the attribute `seed` holds the number. frozen: also train what does not require grad.
    rounding: see `zograd.stores.Store`. record: called with the `Record` of each step.

    `step(closure)` evaluates the closure `method.evaluations` times, without gradients, each time under the same
    random state of torch, `numpy.random` and `random` (the same dropout masks and augmentation; generators of your own
    are not known here), and returns the mean of the losses as a tensor. It never calls backward. A non-finite loss
    refuses the step. Memory: nothing of the size of the weights.

    Processes that share a model (DDP) need the same losses, or their weights drift apart. Where each has data of its
    own, the mean over all is

        peers = Peers(torch.distributed.group.WORLD)
        loss = lambda part, rows=None: loss_fn(model(x), y)
        opt.step_by(shared(loss, peers, weights=[1 / peers.world] * peers.world))

    from `zograd.distributed`. Pickle and deepcopy keep model and optimizer together when both are in
    one call: `copy.deepcopy((model, opt))`.
    """

    _own = ("method", "seed", "rounding", "frozen", "record", "run", "last", "_base", "_checked")
    """What torch's pickling of an optimizer would leave out."""

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        method: str | Method[Any] = "zo_sgd",
        *,
        seed: Seed = 0,
        rounding: Rounding = "stochastic",
        frozen: bool = False,
        record: Callable[[Record], object] | None = None,
        **settings: Any,
    ) -> None:
        if settings or not isinstance(method, str | Method):
            raise TypeError(_instead(method, settings))
        self.method = methods.make(method) if isinstance(method, str) else method
        self.seed, self.rounding, self.frozen, self.record = as_seed(seed), rounding, frozen, record
        self.run: Run[Any] | None = None
        self._base = Schedule(0.0) if self.method.controller.measures else self.method.controller
        super().__init__(params, {"lr": self._base.rate({}, 0), "weight_decay": self.method.weight_decay})
        self.last: Record | None = None
        self._checked = False
        self._build()
        given = [p for group in self.param_groups for p in group["params"]]
        if left := 0 if frozen else sum(not p.requires_grad for p in given):
            warnings.warn(
                f"ZOOptimizer leaves {left} of {len(given)} tensors as they are, since they do not require grad; pass "
                f"frozen=True to train them too",
                stacklevel=2,
            )

    def _build(self) -> None:
        tensors, groups = {}, {}
        for g, group in enumerate(self.param_groups):
            given = group.get("param_names")
            for i, p in enumerate(group["params"]):
                if p.requires_grad or self.frozen:
                    name = given[i] if given else f"group{g}.{i}"
                    tensors[name], groups[name] = p, g
        if not tensors:
            raise ValueError(
                "there is nothing to train: no tensor requires grad. Call requires_grad_() on those to train, or write "
                "ZOOptimizer(..., frozen=True) to train them all"
            )
        decays = [1.0] * len(self.param_groups)
        store = Store(tensors, space=self.method.space, rounding=self.rounding, groups=groups, decays=decays)
        self.equip(store)
        self.run = Run(store, self.method, self.seed)

    def equip(self, store: Store) -> None:
        """Give a new store what the method needs beside the tensors: nothing, where it needs values of the loss."""

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
            raise TypeError(
                f"ZOOptimizer.step needs the loss: opt.step(lambda: loss_fn(model(x), y)). In place of {TRAINER}"
            )
        self.check_surroundings()
        return self.step_by(sequential(closure))

    def check_surroundings(self) -> None:
        """Before the first step of a closure: warn where other processes, or accelerate, make it another step."""
        if self._checked:
            return
        self._checked = True
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and not self.store.sharded:
            warnings.warn(
                f"{dist.get_world_size()} processes run here, and each moves by the loss of its own closure: their "
                f"weights drift apart unless the losses are equal, under DDP too. Share the losses with "
                f"zograd.distributed.shared, as help(zograd.ZOOptimizer) shows",
                stacklevel=4,
            )
        accelerate = sys.modules.get("accelerate.state")
        state = getattr(getattr(accelerate, "GradientState", None), "_shared_state", {})
        every = int((state.get("plugin_kwargs") or {}).get("num_steps", 1))
        if every > 1 and state.get("sync_gradients", True):  # at the first of `every` batches it would not be
            warnings.warn(
                f"accelerate steps at one of {every} batches and leaves out the others, whose losses are never "
                f"evaluated: zeroth-order steps accumulate nothing. Use gradient_accumulation_steps=1, and a closure "
                f"that takes the mean over {every} batches",
                stacklevel=4,
            )

    def step_by(self, oracle: Oracle) -> Tensor:
        """One step whose queries are answered by an oracle instead of a closure."""
        assert self.run is not None
        t = self.run.step_number
        first = self._base.rate({}, 0)
        own = self._base.rate({}, t) / first if first else 1.0
        rates = [Rate(float(g["lr"]) * own, float(g["weight_decay"])) for g in self.param_groups]
        measures = self.method.controller.measures
        self.last = self.run.step(oracle, None if measures else rates)
        if measures:
            for group, rate in zip(self.param_groups, self.last.rates, strict=True):
                group["lr"] = rate.lr
        if self.record is not None:
            self.record(self.last)
        return torch.tensor(self.last.loss, dtype=torch.float64, device="cpu")

    def train(self) -> None:
        """TypeError: transformers' Trainer calls this before the first forward of a training that gives no loss."""
        raise TypeError(
            f"a Trainer calls step() without the loss, which ZOOptimizer has to evaluate. In place of {TRAINER}"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: there are no gradients. Kept because loops call it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._own}}

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
