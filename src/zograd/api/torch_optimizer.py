"""`ZOOptimizer`: a `torch.optim.Optimizer` whose closure only evaluates."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
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
from zograd.rules import FrankWolfe
from zograd.stores import Rate, Rounding, Store

STILL = 10
"""Steps without a move after which a measured rate of 0, or a loss that is the same everywhere, is spoken of."""

ROUNDING = 1e-12
"""A schedule that ends at 0 may be so far below it."""

NO_EFFECT = {
    "alpha", "amsgrad", "betas", "capturable", "dampening", "differentiable", "eps", "etas", "foreach", "fused",
    "lambd", "lr_decay", "momentum", "momentum_decay", "mu", "n", "nesterov", "rho", "step_sizes",
}  # fmt: skip
"""Settings of torch's optimizers and of methods, which a param group does not have here."""

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


def _kind(method: Method[Any]) -> list[str]:
    """What a state belongs to: the parts of a method that keep numbers, without their settings."""
    return [type(part).__name__ for part in (method.estimator, method.rule, method.space, method.controller)]


class ZOOptimizer(torch.optim.Optimizer):
    """Zeroth-order steps in a torch training loop.

        opt = ZOOptimizer(model.parameters(), methods.fzoo(lr=1e-3))
        loss = opt.step(lambda: loss_fn(model(x), y))

    params: parameters or param groups (each with its own `lr` and `weight_decay`, which torch's LR schedulers drive).
        Those that do not require grad stay as they are, and a warning counts them. What torch does with gradients has
        no effect: hooks on them, `padding_idx` of an embedding (that row moves as the others do).
    method: a menu name or a `Method`. Its lr and weight_decay are the defaults of the groups. Of a schedule inside of
        the method's lr that is the peak, and what the schedule is of its peak multiplies the rates of all groups. A
        torch scheduler multiplies them too: set one of the two.
        With lr="auto" the groups show the rate that was measured; setting theirs has no effect, setting their
        weight_decay has.
    settings: none; a TypeError says how a learning rate or another setting is given to the method.
    seed: see `zograd.Run`; the attribute `seed` holds the number. frozen: also train what does not require grad.
    rounding: see `zograd.stores.Store`. record: called with the `Record` of each step.

    `step(closure)` evaluates the closure up to `method.evaluations` times, without gradients, each time under the same
    random state of torch, `numpy.random` and `random` (the same dropout masks and augmentation; generators of your own
    are not known here), and returns the mean of the losses as a tensor. It never calls backward. A loss that is not
    finite is left out by estimators that can do without it, and otherwise refuses the step: nothing moves. Memory: the
    slots of the method, and beside them nothing of the size of the weights.

    Processes that share a model (DDP) need the same losses, or their weights drift apart. Where each has data of its
    own, the mean over all is

        peers = Peers(torch.distributed.group.WORLD)
        loss = lambda part, rows=None: loss_fn(model(x), y)
        opt.step_by(shared(loss, peers, weights=[1 / peers.world] * peers.world))

    from `zograd.distributed`. Pickle and deepcopy keep model and optimizer together when both are in
    one call: `copy.deepcopy((model, opt))`.
    """

    _own = (
        "method",
        "seed",
        "rounding",
        "frozen",
        "record",
        "run",
        "last",
        "_base",
        "_checked",
        "_still",
        "_told",
        "_decays",
        "_left",
    )
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
        super().__init__(params, {"lr": self._peak, "weight_decay": self.method.weight_decay})
        if any(group.get("maximize") for group in self.param_groups):
            raise ValueError("maximize=True has no effect here: let the closure return the negative of what is to grow")
        self.last: Record | None = None
        self._checked = self._told = False
        self._decays = {self.method.weight_decay}
        """Weight decays that the method takes."""
        self._still = 0
        """Steps in a row with a measured rate of 0."""
        self._left: list[Tensor] = []
        """Tensors of the groups that did not require grad when the store was made."""
        self._build()
        given = [p for group in self.param_groups for p in group["params"]]
        if self._left:
            warnings.warn(
                f"ZOOptimizer leaves {len(self._left)} of {len(given)} tensors as they are, since they do not require "
                f"grad; pass frozen=True to train them too",
                stacklevel=2,
            )
        if hooked := sum(bool(getattr(p, "_backward_hooks", None)) for p in given):
            warnings.warn(
                f"{hooked} of {len(given)} tensors have hooks on their gradients, which never run: here are no "
                f"gradients. To train a part of a tensor, make that part a parameter of its own",
                stacklevel=2,
            )

    @property
    def _peak(self) -> float:
        """The highest rate of the schedule inside of the method, or that of the first step where it has none."""
        peak = float(getattr(self._base, "peak", 0.0))
        return peak if 0 < peak < math.inf else self._base.rate({}, 0)

    def _check_groups(self) -> None:
        """Raise where the rates or decays of groups are such as the method does not take."""
        decay = max(float(group["weight_decay"]) for group in self.param_groups)
        if decay not in self._decays:
            replace(self.method, weight_decay=decay)
            self._decays.add(decay)
        rates = {float(group["lr"]) for group in self.param_groups}
        if wrong := [rate for rate in rates if not -ROUNDING < rate < math.inf]:
            raise ValueError(f"a param group has lr={wrong[0]:g}, and a learning rate is a number >= 0")
        if isinstance(self.method.rule, FrankWolfe) and not self.method.controller.measures and max(rates) > 1:
            replace(self.method, lr=max(rates))  # it says why not
        if self.method.rule.one_rate and len(rates) > 1:
            raise ValueError(
                f"{type(self.method.rule).__name__} moves all tensors by one share of the way, and the groups have the "
                f"learning rates {', '.join(f'{rate:g}' for rate in sorted(rates))}: give them one"
            )

    def _build(self) -> None:
        tensors, groups = {}, {}
        self._left = []
        for g, group in enumerate(self.param_groups):
            given = group.get("param_names")
            for i, p in enumerate(group["params"]):
                if not (p.requires_grad or self.frozen):
                    self._left.append(p)
                    continue
                name = given[i] if given else f"group{g}.{i}"
                if name in tensors:  # of another module
                    name = f"group{g}.{i}.{name}"
                tensors[name], groups[name] = p, g
        if not tensors:
            raise ValueError(
                "there is nothing to train: no tensor requires grad. Call requires_grad_() on those to train, or write "
                "ZOOptimizer(..., frozen=True) to train them all"
            )
        decays = [1.0] * len(self.param_groups)
        store = Store(tensors, space=self.method.space, rounding=self.rounding, groups=groups, decays=decays)
        self.equip(store)
        decay = max(float(group["weight_decay"]) for group in self.param_groups)
        method = self.method
        if method.controller.measures and not method.weight_decay:  # a controller that goes back has to know of decay
            method = replace(method, weight_decay=decay)
        self.run = Run(store, method, self.seed)

    def equip(self, store: Store) -> None:
        """Give a new store what the method needs beside the tensors: nothing, where it needs values of the loss."""

    @property
    def store(self) -> Store:
        assert self.run is not None
        return self.run.store

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group before the first step; afterwards the directions of the run would change under it."""
        run = getattr(self, "run", None)
        if own := sorted(NO_EFFECT & set(param_group)):
            raise TypeError(
                f"a param group has {', '.join(own)}, and here groups have lr and weight_decay alone: settings of the "
                f"steps belong to the method, such as {_made(self.method.name, {own[0]: param_group[own[0]]})}"
            )
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
        if not callable(closure):
            raise TypeError(
                f"step takes a function that computes the loss, and got a {type(closure).__name__}: write "
                f"opt.step(lambda: loss_fn(model(x), y))"
            )
        self.check_surroundings()
        self._check_frozen()
        try:
            loss = self.step_by(sequential(closure))
            self._watch_values()
            return loss
        except RuntimeError as e:
            if "does not require grad" not in str(e):
                raise
            raise RuntimeError(
                f"the closure calls backward(), and its loss has no graph: ZOOptimizer evaluates it without gradients. "
                f"Return the loss, and leave backward() and zero_grad() out ({e})"
            ) from e

    def _watch_values(self) -> None:
        """Warn where the loss has had the same value at all points of several steps."""
        assert self.run is not None
        if self.run.flat_in_a_row == STILL:
            warnings.warn(
                f"the loss had the same value at all points of {STILL} steps, and nothing has moved: compute it inside "
                f"of the closure, from the tensors that the optimizer was given (not from a copy, or from others that "
                f"were loaded in their place)",
                stacklevel=3,
            )

    def _check_frozen(self) -> None:
        """Warn once of tensors that were frozen since the optimizer was made and are trained all the same, and of those
        that were released and are not trained.
        """
        released = 0 if self._told else sum(tensor.requires_grad for tensor in self._left)
        if released:
            self._told = True
            warnings.warn(
                f"{released} tensors require grad now, and stay as they are: a ZOOptimizer settles which ones are "
                f"trained when it is made. Make a new one",
                stacklevel=3,
            )
        frozen = 0 if self.frozen or self._told else sum(not leaf.tensor.requires_grad for leaf in self.store.leaves)
        if frozen:
            self._told = True
            warnings.warn(
                f"{frozen} tensors no longer require grad, and are trained as before: a ZOOptimizer settles which ones "
                f"are trained when it is made. Make a new one, or pass frozen=True if this is what you want",
                stacklevel=3,
            )

    def _watch(self, record: Record) -> None:
        """Warn once where the measured rate stays at 0."""
        self._still = 0 if record.refused or any(rate.lr for rate in record.rates) else self._still + 1
        if self._still == STILL:
            why = self.method.controller.standstill or "the measured learning rate is 0"
            warnings.warn(f"nothing has moved in {STILL} steps: {why}", stacklevel=4)

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
        peak = self._peak
        self._check_groups()
        own = self._base.rate({}, t) / peak if peak else 1.0
        rates = [Rate(float(g["lr"]) * own, float(g["weight_decay"])) for g in self.param_groups]
        measures = self.method.controller.measures
        self.run.weight_decays = [rate.weight_decay for rate in rates] if measures else None
        self.last = self.run.step(oracle, None if measures else rates)
        if measures:
            for group, rate in zip(self.param_groups, self.last.rates, strict=True):
                group["lr"] = rate.lr
            self._watch(self.last)
        if self.record is not None:
            self.record(self.last)
        return torch.tensor(self.last.loss, dtype=torch.float64, device="cpu")

    def train(self) -> None:
        """TypeError: transformers' Trainer calls this before the first forward of a training that gives no loss."""
        raise TypeError(
            f"a Trainer calls step() without the loss, which ZOOptimizer has to evaluate. In place of {TRAINER}"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, for gradients that others have left; a step needs none and leaves none."""
        super().zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._own}}

    def state_dict(self) -> dict[str, Any]:
        """Param groups as torch has them; under "zograd" the step, the seed, slots and low halves (not the weights)."""
        assert self.run is not None
        state: dict[str, Any] = super().state_dict()
        tensors = {k: v.clone() for k, v in self.store.state_dict().items() if not k.startswith("x.")}
        state["zograd"] = {"run": self.run.state_dict(), "tensors": tensors, "method": _kind(self.method)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run; the weights come from the model's own state_dict, loaded before.

        Raises ValueError for the state of another optimizer or of another method; then nothing has changed.
        """
        assert self.run is not None
        own = state_dict.get("zograd")
        if own is None:
            raise ValueError("this is no state of a ZOOptimizer: it has no entry 'zograd'. Load what state_dict() gave")
        before, now = own.get("method"), _kind(self.method)
        if before is not None and before != now:
            raise ValueError(f"the state is of {', '.join(before)}, and this optimizer has {', '.join(now)}")
        slots = {k: (v.shape, v.dtype) for k, v in self.store.state_dict().items() if not k.startswith("x.")}
        if slots != {k: (v.shape, v.dtype) for k, v in own["tensors"].items()}:
            raise ValueError("the state has other slots than this optimizer: it is of another method, or other tensors")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "zograd"})
        weights = {k: v for k, v in self.store.state_dict().items() if k.startswith("x.")}
        self.store.load_state_dict({**weights, **own["tensors"]})
        self.run.load_state_dict(own["run"])
