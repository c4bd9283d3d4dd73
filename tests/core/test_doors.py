"""The doors: `minimize`, `AskTell` and `ZOOptimizer` do what they say, and say what is wrong in one sentence."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problems import CASES, Case, digest, smooth, start
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from tests.turns import in_turn
from zograd import AskTell, Method, ZOOptimizer, methods, minimize
from zograd.core.query import Estimate, Query
from zograd.core.run import Run
from zograd.core.schedules import Schedule, cosine, linear
from zograd.core.vector import Noise, Slot, Vector
from zograd.estimators import Central, Estimator
from zograd.laws import Rademacher, Sphere
from zograd.noise import Kind
from zograd.rules import SGD
from zograd.sets import L1Ball
from zograd.spaces import PositiveOrthant
from zograd.stores import Rate, Store

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
on_arrays = pytest.mark.parametrize(
    "door",
    [lambda x0, m="zo_sgd": minimize(smooth, x0, m), lambda x0, m="zo_sgd": AskTell(x0, m)],
    ids=["minimize", "asktell"],
)


# ---- minimize --------------------------------------------------------------------------------------------------------


@by_case
@pytest.mark.parametrize("budget", [18, 100, 101])
def test_the_budget_is_never_exceeded_and_nearly_used(case, budget: int) -> None:
    """nfev is the number of calls, at most the budget, and one more step would not have fitted."""
    calls = []
    method = case.method()
    budget = max(budget, method.evaluations + 1)
    result = minimize(lambda x: calls.append(1) or smooth(x), start(method), method, budget=budget)
    assert len(calls) == result.nfev <= budget
    assert result.nfev + method.evaluations > budget
    assert result.nit == len(result.tape)
    beside = 1 + min(2, budget - method.evaluations - 1)  # f at the result, and at x0 as far as the budget goes
    assert result.nfev == beside + sum(record.evaluations for record in result.tape)
    assert result.success == (result.message == "budget used")
    assert result.fun < smooth(start(method)) or not result.success
    assert result.fun == smooth(result.x)


@pytest.mark.parametrize("name", [n for n in methods.names() if not methods.describe(n)["required"]])
def test_every_name_descends_with_the_defaults_of_a_black_box(name: str) -> None:
    x0 = start(methods.make(name))
    result = minimize(smooth, x0, name, budget=2000, seed=1)
    assert result.fun < smooth(x0)
    if name == "zo_muon":  # of one axis, it moves by 1e-4 lr
        assert result.message.startswith("f hardly came down, from ")
    if not result.message.startswith("the budget ended while f was falling"):
        assert result.success == (name != "zo_muon")


def test_a_name_alone_needs_defaults() -> None:
    with pytest.raises(
        ValueError, match=r"zo_prox has no default for 'prox'; pass methods.zo_prox\(prox=..., lr='auto'"
    ):
        minimize(smooth, start(), "zo_prox")
    said = minimize(smooth, start(), "zo_prox", options={"prox": L1Ball(2.0)}, budget=3000)
    assert "lr='auto'" not in said.message
    own = minimize(smooth, start(), methods.zo_prox(L1Ball(2.0)), budget=3000)
    assert said.fun < own.fun
    assert "which zo_prox has for the weights of language models, or lr='auto'" in own.message


def test_frank_wolfe_descends_inside_of_its_ball() -> None:
    ball = L1Ball(2.0)
    target = np.zeros(10)
    target[3] = 1.5
    result = minimize(lambda x: float(np.sum((x - target) ** 2)), np.zeros(10), methods.frank_wolfe(ball), budget=4000)
    assert result.fun < 0.1
    assert ball.explain(torch.from_numpy(result.x)) is None


def test_the_start_and_what_f_does_to_its_argument_do_not_matter() -> None:
    """x0 is copied; f may overwrite the array it gets."""
    x0 = start()

    def scribbling(x: np.ndarray) -> float:
        value = smooth(x)
        x[:] = np.nan
        return value

    result = minimize(scribbling, x0, budget=50, seed=3)
    np.testing.assert_array_equal(x0, start())
    np.testing.assert_array_equal(result.x, minimize(smooth, x0, budget=50, seed=3).x)
    assert math.isfinite(result.fun)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_f_gets_arrays_of_the_shape_and_dtype_of_x0(shape: tuple[int, ...], dtype: Any) -> None:
    seen = set()
    result = minimize(lambda x: seen.add((x.shape, x.dtype)) or float(np.sum(x**2)), np.ones(shape, dtype), budget=9)
    assert seen == {(shape, np.dtype(dtype))}
    assert (result.x.shape, result.x.dtype) == (shape, np.dtype(dtype))


@pytest.mark.parametrize("x0", [[1, 2, 3], [True, False, True], (1.0, 2.0, 3.0), np.arange(3, dtype=np.int8)], ids=repr)
def test_integers_and_lists_become_float64(x0: Any) -> None:
    result = minimize(lambda x: float(np.sum(x**2)), x0, budget=9)
    assert result.x.dtype == np.float64
    assert result.x.shape == (3,)


def test_any_memory_layout_gives_the_same_run() -> None:
    """Fortran order, strides and read-only arrays are NumPy's business, not the user's."""
    x0 = np.linspace(0, 1, 12).reshape(3, 4)
    expected = minimize(smooth, x0, budget=21).x
    readonly = x0.copy()
    readonly.flags.writeable = False
    wide = np.zeros((3, 8))
    wide[:, ::2] = x0
    for other in (np.asfortranarray(x0), readonly, wide[:, ::2], x0[::-1].copy()[::-1]):
        np.testing.assert_array_equal(minimize(smooth, other, budget=21).x, expected)


def test_args_and_callback() -> None:
    result = minimize(lambda x, a, b: a * smooth(x) + b, start(), args=(2.0, 1.0), budget=50)
    assert result.fun == 2 * smooth(result.x) + 1
    seen = []
    result = minimize(smooth, start(), budget=1000, callback=lambda progress: seen.append(progress) or len(seen) == 4)
    assert (result.nit, result.success, result.message) == (4, True, "stopped by the callback")
    assert result.tape == [progress.record for progress in seen]


def test_an_exception_of_f_passes_through() -> None:
    class OwnError(Exception):
        pass

    def f(x: np.ndarray) -> float:
        raise OwnError("solver diverged")

    with pytest.raises(OwnError, match="solver diverged"):
        minimize(f, start())


def test_nan_refuses_the_step_is_counted_and_ends_the_run() -> None:
    """max_failures refused steps in a row: success False, the value and the step in the message, the weights at x0."""
    calls = []
    result = minimize(lambda x: calls.append(1) or math.nan, start(), "zo_sgd", budget=10_000, max_failures=7)
    assert not result.success
    assert result.message == (
        "7 steps in a row had a non-finite value, the last nan at step 6; start where f is finite around x0, or pass a "
        "smaller lr or mu "
        f"({len(calls)} of {len(calls)} evaluations failed, the last: f returned nan)"
    )
    np.testing.assert_array_equal(result.x, start())
    assert (result.nit, result.nfev) == (7, len(calls))
    assert all(r.refused and r.moved == 0 for r in result.tape)


def test_failures_that_are_not_in_a_row_do_not_end_the_run() -> None:
    calls = []

    def flaky(x: np.ndarray) -> float:
        calls.append(1)
        return math.inf if len(calls) % 3 == 0 else smooth(x)

    result = minimize(flaky, start(), methods.zo_sgd(lr=1e-2), budget=300, max_failures=3)
    refused = sum(r.refused for r in result.tape)
    assert 0 < refused < result.nit
    assert result.nfev == len(calls) <= 300


def test_a_result_that_is_not_finite_is_no_success() -> None:
    calls = []
    f = lambda x: calls.append(1) or (smooth(x) if len(calls) <= 20 else math.nan)  # noqa: E731
    result = minimize(f, start(), methods.zo_sgd(lr=1e-2), budget=21)
    assert not result.success
    assert result.message.startswith("f is nan where zo_sgd ended; x is the lowest point seen instead, f=")
    assert result.fun == result.best_fun == smooth(result.x)


# ---- what bad input gets ---------------------------------------------------------------------------------------------


@on_arrays
@pytest.mark.parametrize(
    ("x0", "error", "says"),
    [
        ([], ValueError, "x0 is empty; pass an array with at least one element"),
        (np.zeros((0, 3)), ValueError, "x0 is empty"),
        ([1.0, math.nan], ValueError, "x0 holds NaN or infinite values; pass a finite starting point"),
        ([math.inf, 1.0], ValueError, "x0 holds NaN or infinite"),
        (np.ones(2, np.float16), TypeError, "x0 has dtype float16; pass float64 or float32"),
        (np.ones(2, np.complex128), TypeError, "x0 has dtype complex128"),
        (["a", "b"], (TypeError, ValueError), "x0|could not convert"),
    ],
    ids=["empty", "empty-2d", "nan", "inf", "float16", "complex", "text"],
)
def test_a_start_that_cannot_be_is_refused(door: Callable[..., Any], x0: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        door(x0)


@on_arrays
def test_a_start_outside_of_the_set_or_space_is_refused(door: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match=r"x0 is not in L1Ball: sum \|x_i\| = 3, but the l1 ball has radius 1; start inside"
    ):
        door(np.ones(3), methods.frank_wolfe(L1Ball(1.0)))
    door(np.full(4, 0.25), methods.frank_wolfe(L1Ball(1.0)))  # on the boundary is inside
    positive = Method(Central(), Rademacher(), SGD(), space=PositiveOrthant())
    for bad in (0.0, -2.0):
        with pytest.raises(ValueError, match=f"PositiveOrthant: element 1 is {bad:g}, but .* needs every element > 0"):
            door(np.array([1.0, bad, 3.0]), positive)


@on_arrays
def test_unknown_methods_name_the_menu(door: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="no method 'adamw'; the menu has zo_sgd, mezo"):
        door(start(), "adamw")


def test_a_method_that_needs_a_setting_says_which() -> None:
    """One sentence with the name of the method, of the setting, and a way to give it."""
    with pytest.raises((TypeError, ValueError), match=r"frank_wolfe.*set"):
        minimize(smooth, start(), "frank_wolfe")


def test_unknown_settings_and_laws_name_the_known() -> None:
    with pytest.raises(ValueError, match="zo_sgd has no setting 'beta'; it has lr, mu, n, law, weight_decay, central"):
        methods.make("zo_sgd", beta=0.9)
    with pytest.raises(ValueError, match=r"no law .cauchy.; use one of .*gaussian.*, rademacher.*, sphere"):
        methods.make("zo_sgd", law="cauchy")
    with pytest.raises(ValueError, match="no method 'sgd'"):
        methods.describe("sgd")
    assert methods.make("zo_sgd", law="sphere").law == Sphere()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mu": 0.0}, "mu must be > 0, got 0"),
        ({"mu": -1.0}, "-1"),
        ({"mu": math.nan}, "nan"),
        ({"lr": -1e-3}, "-0.001"),
        ({"lr": math.inf}, "inf"),
        ({"n": 0}, "n >= 1 directions, got n=0"),
        ({"n": 1.5}, "n=1.5"),
        ({"weight_decay": -0.1}, "weight_decay.*-0.1"),
        ({"weight_decay": math.nan}, "weight_decay.*nan"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        methods.zo_sgd(**settings)


def test_a_set_without_an_inside_is_refused() -> None:
    with pytest.raises(ValueError, match="radius > 0, got 0"):
        L1Ball(0.0)


@pytest.mark.parametrize("budget", [math.inf, math.nan])
def test_a_budget_without_an_end_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match=f"budget={budget} would never be used up; pass a number of evaluations"):
        minimize(smooth, start(), budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [-1, 0, 2])
def test_a_budget_too_small_for_one_step_is_refused(budget: int) -> None:
    method = methods.zo_sgd(lr=1e-2)
    with pytest.raises(ValueError, match=f"budget={budget} is less than one step and the final value: use at least 3"):
        minimize(smooth, start(), method, budget=budget)
    assert [minimize(smooth, start(), method, budget=b).nit for b in (3, 4, 5, 6, 7)] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.ones(2), r"one number, got an array of shape \(2,\); reduce it with .mean\(\) or .sum\(\)"),
        (np.ones((2, 2)), r"an array of shape \(2, 2\)"),
        (torch.ones(3), "one number"),
        (None, "one number, got None"),
        ("low", "one number, got 'low'"),
        ([1.0], r"one number, got \[1.0\]"),
        (1j, "one number"),
    ],
    ids=["vector", "matrix", "torch", "none", "text", "list", "complex"],
)
def test_a_loss_that_is_no_number_is_refused(value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        minimize(lambda x: value, start())
    loop = AskTell(start(), methods.zo_sgd())
    loop.ask()
    with pytest.raises(TypeError, match=says):
        loop.tell([value, value])
    np.testing.assert_array_equal(loop.x, start())


@pytest.mark.parametrize("value", [np.float32(2.0), np.array(2.0), torch.tensor(2.0), 2], ids=repr)
def test_every_kind_of_number_is_a_loss(value: Any) -> None:
    assert minimize(lambda x: value, start(), budget=5).fun == float(value)


def test_a_loss_in_an_array_of_one_is_a_number_or_a_clear_error() -> None:
    """NumPy deprecates float(array([1.0])); what leaves the library must not be that deprecation."""
    said: Any = None
    try:
        said = minimize(lambda x: np.array([2.0]), start(), budget=5).fun
    except TypeError as error:
        said = str(error)
    assert said == 2.0 or "shape (1,)" in said


def test_asktell_needs_an_ask_and_as_many_losses_as_points() -> None:
    loop = AskTell(start(), methods.zo_sgd(n=2))
    with pytest.raises(RuntimeError, match=r"tell\(\) without ask\(\)"):
        loop.tell([1.0] * 4)
    points = loop.ask()
    with pytest.raises(ValueError, match="asked for 4 losses, was told 3"):
        loop.tell([1.0] * 3)
    np.testing.assert_array_equal(np.stack(loop.ask()), np.stack(points))
    assert loop.tell([smooth(x) for x in points]) is not None
    with pytest.raises(RuntimeError, match="without ask"):
        loop.tell([1.0] * 4)


def test_asktell_counts_refused_steps_and_draws_anew() -> None:
    loop = AskTell(start(), methods.zo_sgd(lr=1e-2))
    first = np.stack(loop.ask())
    record = loop.tell([1.0, math.nan])
    assert record is not None
    assert record.refused
    assert (loop.evaluations, loop.run.step_number, len(loop.records)) == (2, 1, 1)
    np.testing.assert_array_equal(loop.x, start())
    assert not np.array_equal(np.stack(loop.ask()), first)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="64"):
        AskTell(start(), seed=seed).ask()


# ---- stores ----------------------------------------------------------------------------------------------------------


def test_stores_refuse_what_they_cannot_train() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        Store({})
    with pytest.raises(TypeError, match=r"'codes' has dtype torch\.int8; zograd trains float32"):
        Store({"codes": torch.zeros(3, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"'w' is not contiguous .* p\.data = p\.data\.contiguous\(\)"):
        Store({"w": torch.zeros(3, 4).t()})
    with pytest.raises(ValueError, match="unknown rounding 'up'; use 'stochastic', 'split' or 'nearest'"):
        Store({"w": torch.zeros(3)}, rounding="up")
    w = torch.zeros(4)
    with pytest.raises(ValueError, match="'half' and 'w' share memory but differ in shape or dtype"):
        Store({"w": w, "half": w[:2]})


def test_tied_tensors_are_one_leaf() -> None:
    w = nn.Parameter(torch.zeros(4))
    store = Store({"a": w, "b": w, "c": w.detach()})
    assert (len(store.leaves), store.dim) == (1, 4)


# ---- the torch optimizer ---------------------------------------------------------------------------------------------


def net(dtype: torch.dtype = torch.float64, seed: int = 0, case: Case | None = None) -> nn.Module:
    """A small network; with positive weights for a case on the positive orthant."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    if case is not None and isinstance(case.method().space, PositiveOrthant):
        for p in model.parameters():
            p.data.abs_().add_(0.01)
    return model


def closure(model: nn.Module) -> Callable[[], torch.Tensor]:
    dtype = next(model.parameters()).dtype
    x = torch.linspace(-1, 1, 50).reshape(10, 5).to(dtype)
    return lambda: (model(x).double() - 0.7).square().mean()


def test_the_optimizer_is_a_torch_optimizer() -> None:
    """step returns the mean loss; zero_grad is harmless; backward never runs; the loss falls."""
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.02))
    assert isinstance(opt, torch.optim.Optimizer)
    f = closure(model)
    first = f().item()
    for _ in range(200):
        opt.zero_grad()
        loss = opt.step(f)
        assert loss.shape == ()
        assert not loss.requires_grad
    assert loss == np.mean(opt.last.losses)
    assert f().item() < 0.7 * first
    assert all(p.grad is None for p in model.parameters())
    assert "ZOOptimizer" in repr(opt)


def test_step_needs_a_closure() -> None:
    with pytest.raises(TypeError, match=r"needs the loss: opt.step\(lambda"):
        ZOOptimizer(net().parameters()).step()


@pytest.mark.parametrize("named", [False, True])
def test_parameters_with_or_without_names(named: bool) -> None:
    """model.named_parameters() gives the same run, with the names of the model."""
    model = net()
    opt = ZOOptimizer(model.named_parameters() if named else model.parameters(), methods.zo_sgd(lr=0.02))
    for _ in range(3):
        opt.step(closure(model))
    other = net()
    judge = ZOOptimizer(other.parameters(), methods.zo_sgd(lr=0.02))
    for _ in range(3):
        judge.step(closure(other))
    assert digest(model) == digest(other)
    assert (opt.store.leaves[0].name == "0.weight") == named


SCHEDULERS = {
    "cosine": (lambda opt: CosineAnnealingLR(opt, 20), lambda t: 0.5 * (1 + math.cos(math.pi * t / 20))),
    "lambda": (lambda opt: LambdaLR(opt, lambda t: 0.9**t), lambda t: 0.9**t),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_torch_drive_the_rate(name: str) -> None:
    """Without a warning about their order, and the tape says which rate each step took."""
    make, law = SCHEDULERS[name]
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.02))
    schedule = make(opt)
    for t in range(10):
        opt.step(closure(model))
        schedule.step()
        assert opt.last.rates[0].lr == pytest.approx(0.02 * law(t), rel=1e-12)


def test_one_cycle_may_own_the_rate() -> None:
    """A scheduler that sets lr itself (and asks for a momentum, unless told not to)."""
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.02))
    schedule = OneCycleLR(opt, max_lr=0.1, total_steps=10, cycle_momentum=False)
    for _ in range(9):
        opt.step(closure(model))
        schedule.step()
    assert opt.last.rates[0].lr < 0.05


@pytest.mark.parametrize("schedule", [cosine(0.02, 8), linear(0.02, 8, warmup=3, end=0.1)], ids=["cosine", "linear"])
def test_a_schedule_inside_of_the_method_is_followed(schedule: Any) -> None:
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=schedule))
    for t in range(10):
        opt.step(closure(model))
        assert opt.last.rates[0].lr == pytest.approx(schedule(t), rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@by_case
def test_groups_have_their_own_rates(case, dtype: torch.dtype) -> None:
    """A group at lr = 0 stays bit-identical, another moves; the set of Frank-Wolfe spans all groups: left out."""
    if case.name.startswith("frank_wolfe"):
        pytest.skip("its step is towards a vertex over all tensors together")
    if case.name == "fd_fista":
        pytest.skip("its line search has one step size for all tensors together")
    model = net(dtype, case=case)
    frozen, free = digest(model[0]), digest(model[2])
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.05}]
    opt = ZOOptimizer(groups, case.method())
    for _ in range(4):
        opt.step(closure(model))
    assert digest(model[0]) == frozen
    assert digest(model[2]) != free
    assert [r.lr for r in opt.last.rates] == [0.0, 0.05]


def test_groups_have_their_own_weight_decay() -> None:
    """x <- (1 - lr wd) x with a loss that is constant in x."""
    a, b = (nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [a], "lr": 0.1, "weight_decay": 0.5}, {"params": [b], "lr": 0.1}]
    opt = ZOOptimizer(groups, methods.zo_sgd(weight_decay=0.2))
    for _ in range(3):
        opt.step(lambda: (a.sum() + b.sum()) * 0)
    np.testing.assert_allclose(a.detach(), 2 * 0.95**3, rtol=1e-15)
    np.testing.assert_allclose(b.detach(), 2 * 0.98**3, rtol=1e-15)


def test_groups_may_be_added_before_the_first_step_only() -> None:
    a, b, c = (nn.Parameter(torch.ones(3)) for _ in range(3))
    opt = ZOOptimizer([a], methods.zo_sgd(lr=0.1))
    opt.add_param_group({"params": [b], "lr": 0.5})
    opt.step(lambda: a.sum() + b.sum())
    assert [r.lr for r in opt.last.rates] == [0.1, 0.5]
    with pytest.raises(RuntimeError, match="before the first step only"):
        opt.add_param_group({"params": [c]})


@pytest.mark.filterwarnings("ignore:this step changed")
@pytest.mark.parametrize(
    ("case", "kind"),
    in_turn(
        CASES,
        ((torch.float64, "stochastic"), (torch.bfloat16, "split")),
        (lambda case: case.id, lambda kind: f"{kind[0]}-{kind[1]}"),
        slow=((torch.bfloat16, "stochastic"), (torch.float16, "split")),
    ),
)
def test_a_checkpoint_through_torch_save_goes_on_bit_identically(case, kind: tuple[torch.dtype, Any]) -> None:
    """torch.save and torch.load with its defaults (weights_only), together with a scheduler and the model."""
    dtype, rounding = kind

    def fresh(seed: int) -> tuple[nn.Module, ZOOptimizer, LambdaLR]:
        model = net(dtype, seed, case)
        opt = ZOOptimizer(model.parameters(), case.widened(100.0), seed=seed, rounding=rounding)
        return model, opt, LambdaLR(opt, lambda t: 1 / (1 + t))

    def steps(model: nn.Module, opt: ZOOptimizer, schedule: LambdaLR) -> list[float]:
        losses = []
        for _ in range(4):
            losses.append(float(opt.step(closure(model))))
            schedule.step()
        return losses

    run, other = fresh(0), fresh(1)
    steps(*run)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in run], file)
    later = steps(*run)
    file.seek(0)
    for part, state in zip(other, torch.load(file), strict=True):
        part.load_state_dict(state)
    assert steps(*other) == later
    assert digest(other[0]) == digest(run[0])
    assert digest(other[1].store.state_dict()) == digest(run[1].store.state_dict())
    assert other[1].run.state_dict() == run[1].run.state_dict()


def test_the_optimizers_state_does_not_hold_the_weights() -> None:
    opt = ZOOptimizer(net().parameters(), methods.zo_adam())
    assert not [k for k in opt.state_dict()["zograd"]["tensors"] if k.startswith("x.")]


def test_records_are_handed_out() -> None:
    seen: list[Any] = []
    model = net()
    opt = ZOOptimizer(model.parameters(), methods.fzoo(lr=1e-3), record=seen.append)
    for _ in range(3):
        opt.step(closure(model))
    assert [r.step for r in seen] == [0, 1, 2]
    assert seen[-1] is opt.last


def test_a_non_finite_loss_is_refused_and_shown() -> None:
    model = net()
    before = digest(model)
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.1))
    loss = opt.step(lambda: closure(model)() * math.nan)
    assert torch.isnan(loss)
    assert opt.last.refused
    assert digest(model) == before


# ---- 16 bits ---------------------------------------------------------------------------------------------------------


def half_problem(
    rounding: str, lr: float, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, ZOOptimizer, Any]:
    w = nn.Parameter(torch.full((64, 64), 1.0, dtype=dtype))
    opt = ZOOptimizer([w], methods.zo_sgd(lr=lr, mu=2.0**-6), rounding=rounding)
    return w, opt, lambda: w.double().mean() * 64


def test_a_step_of_length_zero_is_not_called_too_small() -> None:
    """The loss has the same value at every point: neither a larger rate nor another rounding would move anything."""
    w, opt, _ = half_problem("stochastic", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(lambda: w.double().mean() * 0.0 + 1.0)
    assert w.eq(1.0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_steps_that_vanish_are_told_once(rounding: str, dtype: torch.dtype) -> None:
    _, opt, f = half_problem(rounding, 1e-6, dtype)
    with pytest.warns(UserWarning, match=f"far below their spacing.*{rounding} rounding.*rounding='split'") as caught:
        opt.step(f)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            opt.step(f)


@pytest.mark.parametrize(("lr", "warned"), [(2.0**-7, 0), (1e-6, 1)])
def test_short_steps_of_a_warm_up_and_of_the_end_are_meant(lr: float, warned: int) -> None:
    """Where the largest rate of a schedule moves many of the weights, no step is told; otherwise those at that rate."""
    w = nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.bfloat16))
    schedule = Schedule(lr, "cosine", total=40, warmup=20, end=0.01)
    opt = ZOOptimizer([w], methods.zo_sgd(lr=schedule, mu=2.0**-6, n=8))
    told, moved = [], []
    for step in range(40):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step(lambda: w.double().mean() * 64)
        told += [step] * len(caught)
        moved.append(opt.last.moved)
    assert len(told) == warned
    assert all(schedule(step) >= lr / 2 for step in told)
    assert min(moved) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_split_weights_never_vanish_and_never_warn(dtype: torch.dtype) -> None:
    """The master adds up steps that the 16-bit half cannot show, exactly like float32 weights do."""
    w, opt, f = half_problem("split", 1e-6, dtype)
    for _ in range(5):
        opt.step(f)
    assert opt.last.moved == pytest.approx(1.0, abs=0.01)
    assert (w == 1.0).all(), "the high half has not moved yet"
    master = opt.store.master(opt.store.leaves[0])
    assert (master != 1.0).float().mean() > 0.5


def test_stochastic_rounding_is_right_on_average_and_nearest_is_not() -> None:
    """A step of 1/20 of the spacing, taken 20 times: on average the weights move by one spacing, or never."""
    spacing = 2.0**-7
    moved = {}
    for rounding in ("stochastic", "nearest"):
        w = nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.bfloat16))
        store = Store({"w": w}, rounding=rounding)
        store.require({"g": 1.0})
        for t in range(20):
            store.iterate([Rate(-spacing / 20)], t).step_(Vector(((Slot("g"), 1.0),)))
        moved[rounding] = (w.detach().double() - 1.0).mean().item() / spacing
    error = math.sqrt(20 * (1 / 20) * (19 / 20) / 64**2)  # binomial, 4096 weights
    assert abs(moved["stochastic"] - 1.0) <= 4.5 * error
    assert moved["nearest"] == 0.0


@dataclass(frozen=True)
class Fixed(Estimator):
    """An estimate that is the slot "g", whatever the loss."""

    evaluations: int = 1

    def __call__(self, ask: Any) -> Any:
        (f,) = yield [Query()]
        return Estimate(Vector(((Slot("g"), 1.0),)), f, [f], None)


def test_every_step_of_a_run_rounds_with_bits_of_its_own() -> None:
    """20 steps of 1/20 of the spacing move 1 - (19/20)^20 = 64 % of the weights; with one draw for all steps, 5 %."""
    spacing = 2.0**-7
    w = torch.full((64, 64), 1.0, dtype=torch.bfloat16)
    run = Run(Store({"w": w}), Method(Fixed(), Rademacher(), SGD(), lr=spacing / 20), 0)
    run.store.require({"g": -1.0})
    for _ in range(20):
        run.ask()
        run.tell([0.0])
    p = 1 - (19 / 20) ** 20
    assert abs((w != 1.0).double().mean().item() - p) <= 4.5 * math.sqrt(p * (1 - p) / 64**2)


def test_split_bfloat16_is_float32_bit_for_bit() -> None:
    """Half a model in memory, a float32 run in effect: masters equal the float32 weights after every move."""
    torch.manual_seed(0)
    w16 = nn.Parameter(torch.randn(16, 16).to(torch.bfloat16))
    w32 = nn.Parameter(w16.detach().float())
    stores = [Store({"w": w16}, rounding="split"), Store({"w": w32})]
    for t in range(30):
        for store in stores:
            store.iterate([Rate(1e-3, 0.01)], t).step_(Vector(((Noise(Kind.NORMAL, t), 1.0),)))
        assert torch.equal(stores[0].master(stores[0].leaves[0]), w32.detach().view(-1))


def test_gains_and_biases_of_16_bit_models_are_always_split() -> None:
    """A gain of 1 in bfloat16 would not feel a probe of 2^-10."""
    norm = nn.LayerNorm(8).to(torch.bfloat16)
    opt = ZOOptimizer(norm.parameters(), methods.zo_sgd(lr=1e-3))
    assert all(leaf.low is not None for leaf in opt.store.leaves)
    x = torch.linspace(-1, 1, 16).reshape(2, 8).to(torch.bfloat16)
    opt.step(lambda: norm(x).double().square().sum())
    plus, minus = opt.last.losses
    assert plus != minus


READS_A_GAIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "multiply": lambda w, x: w * x,
    "multiply-right": lambda w, x: torch.mul(x, w),
    "add": lambda w, x: x + w,
    "subtract": lambda w, x: torch.sub(x, other=w),
    "divide": lambda w, x: x / w,
    "layer-norm": lambda w, x: F.layer_norm(x, (32,), weight=w),
    "layer-norm-bias": lambda w, x: F.layer_norm(x, (32,), None, w),
    "rms-norm": lambda w, x: F.rms_norm(x, (32,), w),
    "group-norm": lambda w, x: F.group_norm(x, 4, w),
    "float": lambda w, x: w.float() * x,
    "to": lambda w, x: w.to(torch.float32) * x,
    "to-keyword": lambda w, x: w.to(dtype=torch.float64) * x,
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", READS_A_GAIN)
def test_a_gain_feels_a_probe_far_below_its_spacing(way: str, dtype: torch.dtype) -> None:
    """It is shown in float32 wherever norms and elementwise arithmetic read it; the result keeps the dtype it had.

    The gain is 161/128: products with rounder numbers lie on the 16-bit grid, and a small probe is rounded back to it.
    """
    w = nn.Parameter(torch.full((32,), 161 / 128, dtype=dtype))
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = READS_A_GAIN[way](w, x).dtype
    opt = ZOOptimizer([w], methods.zo_sgd(mu=2.0**-13))
    seen = set()

    def loss() -> torch.Tensor:
        y = READS_A_GAIN[way](w, x)
        seen.add(y.dtype)
        return y.double().square().sum()

    opt.step(loss)
    plus, minus = opt.last.losses
    assert plus != minus
    assert seen == {plain}


def test_a_bias_of_a_frozen_16_bit_layer_feels_a_probe_too() -> None:
    """Training biases alone: 1 + 2^-10 is shown in float32, although the weight next to it is no trained tensor."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 64).to(torch.bfloat16)
    nn.init.ones_(layer.bias)
    x = torch.randn(8, 16).to(torch.bfloat16)
    opt = ZOOptimizer([layer.bias], methods.zo_sgd(lr=1e-6, mu=2.0**-10))
    opt.step(lambda: layer(x).double().square().mean())
    plus, minus = opt.last.losses
    assert plus != minus
