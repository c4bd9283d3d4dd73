"""The arguments of `minimize` that a user of SciPy writes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

import zograd as zo
from zograd import methods, minimize
from zograd.api.strategies import CMA


def sphere(x: Any) -> Any:
    return ((x - 1.0) ** 2).sum()


class Watch:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, intermediate_result: Any) -> Any:
        self.seen.append(intermediate_result)
        return np.True_ if len(self.seen) == 3 else None

    def at(self, xk: Any) -> Any:
        self.seen.append(xk)
        return len(self.seen) == 3

    def stops(self, progress: Any) -> None:
        self.seen.append(progress)
        if len(self.seen) == 3:
            raise StopIteration


@pytest.mark.parametrize("method", ["cma", "rank", "lbfgs"])
@pytest.mark.parametrize("kind", ["look", "at", "stops", "partial", "lambda"])
def test_callbacks_of_every_kind_end_the_run(method: str, kind: str) -> None:
    watch = Watch()
    kinds = {
        "partial": functools.partial(lambda add, progress: add(progress) or len(watch.seen) == 3, watch.seen.append),
        "lambda": lambda progress: watch.seen.append(progress) or np.all(len(watch.seen) == 3),
    }
    callback = kinds.get(kind) or getattr(watch, kind)
    f = scipy.optimize.rosen
    result = minimize(f, np.zeros(4), method, budget=2000, callback=callback)
    assert (result.nit, len(watch.seen)) == (3, 3)
    assert result.message.startswith("stopped by the callback")
    points = watch.seen if kind == "at" else [progress.x for progress in watch.seen]
    assert all(x.shape == (4,) for x in points)
    assert not np.shares_memory(points[0], points[1])
    if kind == "look":
        assert [p.nit for p in watch.seen] == [1, 2, 3]
        assert watch.seen[0].best_fun >= watch.seen[-1].best_fun >= result.best_fun


def test_target_seconds_and_maximize() -> None:
    down = minimize(sphere, np.zeros(10), target=0.5, budget=5000)
    assert down.success
    assert down.fun <= 0.5
    assert down.message == "target reached"
    up = minimize(lambda x: 3 - sphere(x), np.zeros(10), maximize=True, target=2.5, budget=5000)
    assert 2.5 <= up.fun == 3 - sphere(up.x)
    assert minimize(sphere, np.zeros(10), target=100.0).message == "x0 reaches the target"
    assert minimize(sphere, np.zeros(10), "rank", seconds=0.0).nit == 0


def test_options_are_settings_of_a_name() -> None:
    wide = minimize(sphere, np.zeros(3), "cma", options={"sigma": 2.0}, budget=100)
    assert wide.tape == minimize(sphere, np.zeros(3), CMA(sigma=2.0), budget=100).tape
    two = minimize(sphere, np.zeros(3), "zo_sgd", options={"n": 2, "lr": 1e-2}, budget=100)
    assert two.tape == minimize(sphere, np.zeros(3), methods.zo_sgd(n=2, lr=1e-2), budget=100).tape
    needed = minimize(sphere, np.zeros(3), "zo_prox", options={"prox": zo.sets.L1(0.1), "lr": 1e-2}, budget=50)
    assert needed.nit > 0


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("cma", {"sigm": 1}, "method 'cma' has no option 'sigm'; it has sigma, separable, restarts"),
        ("zo_sgd", {"maxfev": 9}, "has no option 'maxfev'; it has lr, mu, .*; for maxfev use budget= of minimize"),
        ("auto", {"n": 3}, "method 'auto' has no option 'n'; it has none"),
        ("cma", [1], r"options=\[1\] is no dict"),
        (methods.rank(), {"n": 3}, "options go with a name; method=rank is made already"),
        ("no_such", {"n": 3}, "there is no method 'no_such'"),
    ],
)
def test_other_options_are_refused(method: Any, options: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        minimize(sphere, np.zeros(3), method, options=options)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tol": 1e-6}, "tol=1e-06: .* Pass target="),
        ({"jac": sphere}, "jac is given, but zograd needs no derivative"),
        ({"hess": sphere}, "hess is given, but zograd needs no derivative"),
        ({"hessp": sphere}, "hessp is given, but zograd needs no derivative"),
        ({"budget": float("inf")}, "budget=inf would never be used up"),
        ({"budget": float("nan")}, "budget=nan would never be used up"),
        ({"budget": "many"}, "budget='many' is no number of evaluations"),
        ({"method": methods.zo_sgd}, "method=zo_sgd is a function; call it"),
        ({"bounds": [(0, 1)]}, None),
        ({"jac": None, "tol": None, "bounds": None}, None),
    ],
)
def test_scipys_arguments_are_taken_or_answered(given: dict[str, Any], says: str | None) -> None:
    if says is None:
        assert minimize(sphere, np.zeros(3), **given).x.shape == (3,)
        return
    with pytest.raises((TypeError, ValueError), match=says):
        minimize(sphere, np.zeros(3), **given)


def test_f_has_to_be_a_function() -> None:
    with pytest.raises(TypeError, match="is no function; pass a callable"):
        minimize(3.0, np.zeros(3))  # type: ignore[arg-type]


def test_args_are_a_tuple_a_list_or_one() -> None:
    matrix = np.eye(3) * 2

    def f(x: Any, *rest: Any) -> float:
        return float(np.sum((sum(rest) @ x - 1) ** 2))

    for args in ((matrix,), [matrix], matrix, (matrix / 2, matrix / 2)):
        assert minimize(f, np.zeros(3), args=args).x == pytest.approx(np.full(3, 0.5), abs=1e-5)


def form(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: form(v) for k, v in x.items()}
    return (type(x), x.dtype, tuple(x.shape))


@pytest.mark.parametrize(
    ("x0", "expected"),
    [
        (0.0, (np.ndarray, np.float64, ())),
        ([0, 0], (np.ndarray, np.float64, (2,))),
        (np.zeros((2, 2), np.float32), (np.ndarray, np.float32, (2, 2))),
        (torch.zeros(2, 3), (torch.Tensor, torch.float32, (2, 3))),
        (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), (torch.Tensor, torch.float64, (2,))),
        (
            {"a": np.zeros(2), "b": torch.zeros(3)},
            {"a": (np.ndarray, np.float64, (2,)), "b": (torch.Tensor, torch.float32, (3,))},
        ),
    ],
    ids=["number", "list", "float32", "tensor", "parameter", "dict"],
)
@pytest.mark.parametrize("method", ["auto", "rank"])
def test_x_comes_back_as_what_x0_was(x0: Any, expected: Any, method: str) -> None:
    forms = []

    def value(x: Any) -> float:
        parts = x.values() if isinstance(x, dict) else [x]
        return float(sum(((np.asarray(torch.as_tensor(p).detach(), np.float64) - 1.0) ** 2).sum() for p in parts))

    def f(x: Any) -> float:
        forms.append(form(x))
        return value(x)

    result = minimize(f, x0, method, budget=300)
    assert form(result.x) == form(result.best_x) == expected
    assert all(seen == expected for seen in forms)
    assert result.fun < value(x0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_referred_to_the_optimizer(dtype: torch.dtype) -> None:
    for x0 in (torch.zeros(2, dtype=dtype), {"a": torch.zeros(2, dtype=dtype)}):
        with pytest.raises(TypeError, match=r"has dtype torch\.(b?)float16, .* zograd.ZOOptimizer"):
            minimize(sphere, x0)


def test_another_default_device_changes_nothing() -> None:
    x0 = torch.zeros(3)
    try:
        torch.set_default_device("meta")
        result = minimize(lambda x: float(((x - 1.0) ** 2).sum()), x0, budget=200)
        assert result.x.device.type == "cpu"
        with pytest.raises(TypeError, match="on the device 'meta', where it has no numbers"):
            minimize(sphere, torch.zeros(3))
    finally:
        torch.set_default_device(None)  # the device of before would stay in the way of every later call


def test_seeds_of_numpy() -> None:
    one = minimize(sphere, np.zeros(3), "rank", budget=60, seed=7)
    assert minimize(sphere, np.zeros(3), "rank", budget=60, seed=np.int32(7)).tape == one.tape
    two = minimize(sphere, np.zeros(3), "rank", budget=60, seed=np.random.default_rng(3))
    assert minimize(sphere, np.zeros(3), "rank", budget=60, seed=two.seed).tape == two.tape


def test_in_noise_the_mean_is_recommended_and_the_luckiest_value_kept_apart() -> None:
    rng = np.random.default_rng(0)
    result = minimize(lambda x: sphere(x) + 0.1 * rng.standard_normal(), np.zeros(4), budget=600)
    assert result.noise > 0
    assert result.best_fun < result.fun
    assert sphere(result.x) < 0.1
    assert not np.array_equal(result.x, result.best_x)


def test_a_named_strategy_recommends_the_best_point_where_values_repeat() -> None:
    """CMA-ES restarts far away at the end of such a budget."""
    result = minimize(sphere, np.zeros(4), "cma", budget=3000)
    assert result.success
    assert result.fun == result.best_fun == sphere(result.x) < 1e-10


# ---- as a method of SciPy --------------------------------------------------------------------------------------------


def test_a_method_of_scipy() -> None:
    seen: list[Any] = []

    def f(x: Any, a: float) -> float:
        return float(np.sum((x - a) ** 2))

    found = scipy.optimize.minimize(
        f, np.zeros(3), args=(1.0,), method=zo.scipy_method("rank", seed=3), bounds=scipy.optimize.Bounds(0, 0.5),
        callback=lambda xk: seen.append(xk), options={"maxfev": 100, "n": 4},
    )  # fmt: skip
    mine = minimize(f, np.zeros(3), "rank", args=(1.0,), seed=3, bounds=[(0, 0.5)], budget=100, options={"n": 4})
    assert found.tape == mine.tape
    assert len(seen) == found.nit
    assert found.x.max() <= 0.5
    assert found.nfev <= 100
    assert scipy.optimize.minimize(
        f, [0.0], args=(1.0,), method=zo.scipy_method("rank"), options={"maxiter": 2, "disp": False}
    ).nit == 2  # fmt: skip
    with pytest.raises(TypeError, match=r"tol=0\.1: "):
        scipy.optimize.minimize(f, [0.0], args=(1.0,), method=zo.scipy_method(), tol=0.1)
    with pytest.raises(TypeError, match="jac is given"):
        scipy.optimize.minimize(f, [0.0], args=(1.0,), method=zo.scipy_method(), jac=f)
    with pytest.raises(ValueError, match="method 'cma' has no option 'popsize'"):
        scipy.optimize.minimize(f, [0.0], args=(1.0,), method=zo.scipy_method("cma"), options={"popsize": 3})
