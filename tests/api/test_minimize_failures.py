"""Failed evaluations of `minimize`: they are data, no hang and no loss of the run."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from zograd import AskTell, methods, minimize
from zograd.errors import needs
from zograd.methods.defaults import black_box
from zograd.sets import L1

RANK = methods.rank(n=8, lr=0.1)


def sphere(x: Any) -> float:
    return float(np.sum((x - 1.0) ** 2))


def failing(numbers: tuple[int, ...]) -> list[bytes]:
    """The points of these evaluations of a run, in which those before them fail."""
    bad: list[bytes] = []
    for number in numbers:
        seen: list[bytes] = []

        def f(x: Any, seen: list[bytes] = seen) -> float:
            seen.append(x.tobytes())
            return math.nan if seen[-1] in bad else sphere(x)

        minimize(f, np.zeros(12), RANK, budget=60, seed=5)
        bad.append(seen[number])
    return bad


def test_one_killed_one_hanging_one_raising_and_one_nan_change_nothing_else() -> None:
    """With 8 processes: the trajectory is that of a run in which these four evaluations return NaN."""
    bad = dict(zip(("killed", "hangs", "raises", "nan"), failing((9, 19, 30, 31)), strict=True))

    def fails(x: Any) -> float:
        return math.nan if x.tobytes() in bad.values() else sphere(x)

    def f(x: Any) -> float:
        at = x.tobytes()
        if at == bad["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if at == bad["hangs"]:
            time.sleep(600)
        if at == bad["raises"]:
            raise ValueError("no mesh")
        return fails(x)

    one = minimize(fails, np.zeros(12), RANK, budget=60, seed=5)
    began = time.monotonic()
    many = minimize(f, np.zeros(12), RANK, budget=60, seed=5, workers=8, timeout=2.0, on_error="nan")
    assert time.monotonic() - began < 60
    assert repr(many.tape) == repr(one.tape)
    assert many.x.tobytes() == one.x.tobytes()
    assert many.best_x.tobytes() == one.best_x.tobytes()
    assert (many.fun, many.nfev, many.nit, many.nfail) == (one.fun, one.nfev, one.nit, one.nfail)
    assert one.nfail == 4


def test_processes_give_the_same_run_and_take_any_function() -> None:
    offset = np.array(1.0)
    one = minimize(lambda x: float(np.sum((x - offset) ** 2)), np.zeros(4), RANK, budget=60, seed=5)
    two = minimize(lambda x: float(np.sum((x - offset) ** 2)), np.zeros(4), RANK, budget=60, seed=5, workers=2)
    assert two.tape == one.tape
    assert not [c for c in multiprocessing.active_children() if c.name == "pebble_pool_worker"]


def test_random_numbers_in_processes_do_not_depend_on_who_evaluates() -> None:
    def noisy(x: Any) -> float:
        return sphere(x) + float(np.random.standard_normal())  # noqa: NPY002

    runs = [minimize(noisy, np.zeros(4), RANK, budget=40, seed=5, workers=n, timeout=60) for n in (1, 3)]
    assert runs[0].tape == runs[1].tape
    assert len({r.loss for r in runs[0].tape}) > 1


def test_every_worker_killed_and_every_evaluation_too_late() -> None:
    dies = minimize(lambda x: os._exit(9), np.zeros(2), budget=20, workers=2)
    assert (dies.success, dies.nfail, dies.nfev) == (False, 2, 2)
    assert "f is not finite at x0" in dies.message
    assert "a worker of the pool ended with exit code 9" in dies.message
    late = minimize(lambda x: time.sleep(60), np.zeros(2), budget=20, timeout=0.3)
    assert (late.success, late.nfail) == (False, 2)
    assert "f took longer than timeout=0.3 s" in late.message


def test_an_idle_process_of_ours_may_be_killed() -> None:
    killed: list[int] = []

    def kill(progress: Any) -> None:
        if progress.nit == 2:
            for child in multiprocessing.active_children():
                if child.name == "pebble_pool_worker":
                    killed.append(child.pid or 0)
                    os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.5)

    one = minimize(sphere, np.zeros(4), RANK, budget=60, seed=5)
    two = minimize(sphere, np.zeros(4), RANK, budget=60, seed=5, workers=2, callback=kill)
    assert len(killed) == 2
    assert two.tape == one.tape
    assert two.nfail == 0


def raises_at(number: int, error: BaseException) -> Any:
    calls: list[int] = []

    def f(x: Any) -> float:
        calls.append(1)
        if len(calls) == number:
            raise error
        return sphere(x)

    return f


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs", "zo_sgd"])
def test_an_exception_in_the_middle_ends_the_run_with_what_is_there(method: str) -> None:
    error = ZeroDivisionError("at the hundredth")
    result = minimize(raises_at(100, error), np.zeros(30), method, budget=500)
    assert (result.success, result.status, result.nfev, result.nfail) == (False, 3, 100, 1)
    assert result.exception is error
    assert result.message == "f raised ZeroDivisionError: at the hundredth, at evaluation 100"
    assert result.best_fun <= sphere(np.zeros(30))
    assert result.best_fun == sphere(result.best_x)
    assert math.isfinite(result.fun)


def test_an_exception_at_the_first_evaluation_is_raised_as_it_is() -> None:
    error = ZeroDivisionError("at once")
    with pytest.raises(ZeroDivisionError, match="at once") as caught:
        minimize(raises_at(1, error), np.zeros(3))
    assert caught.value is error
    with pytest.raises(KeyError):
        minimize(raises_at(50, KeyError("x")), np.zeros(3), "rank", budget=200, on_error="raise")
    with pytest.raises(ZeroDivisionError):
        minimize(raises_at(1, error), np.zeros(3), workers=map)
    with pytest.raises(ValueError, match="on_error='ignore' is none of 'stop', 'nan', 'raise'"):
        minimize(sphere, np.zeros(3), on_error="ignore")


def test_an_exception_may_be_a_failed_evaluation() -> None:
    result = minimize(raises_at(50, KeyError("x")), np.zeros(3), "cma", budget=200, on_error="nan")
    assert (result.nfail, result.success, result.exception) == (1, True, None)
    never = minimize(lambda x: 1 / 0, np.zeros(3), budget=50, on_error="nan")
    assert not never.success
    assert "the last: ZeroDivisionError: division by zero" in never.message


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_exception_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(RuntimeError, match="Unpicklable: 1 and 2"):
        minimize(raises_at(1, Unpicklable(1, 2)), np.zeros(3), workers=2)
    with pytest.raises(Unpicklable):
        minimize(raises_at(1, Unpicklable(1, 2)), np.zeros(3), workers=map)


@pytest.mark.parametrize("method", ["auto", "cma", "lbfgs", "rank"])
@pytest.mark.parametrize("number", [1, 2, 57])
def test_an_interrupt_returns_what_is_there(method: str, number: int) -> None:
    result = minimize(raises_at(number, KeyboardInterrupt()), np.zeros(5), method, budget=5000)
    assert (result.success, result.status, result.message) == (False, 3, "interrupted")
    assert result.nfev == number - 1
    assert np.isfinite(result.x).all()
    if number > 2:
        assert result.best_fun == sphere(result.best_x)


@pytest.mark.parametrize("bad", [True, np.True_, np.array(False), "1.5", 1j, np.complex128(1), None, [1.0, 2.0]])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="the loss must return one number, got"):
        minimize(lambda x: bad, np.ones(3))


def dies_at_half(x: Any) -> float:
    if x[0] > 0.5:
        os._exit(9)
    return sphere(x)


def test_an_executor_that_a_worker_breaks_ends_the_run_with_what_is_there() -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        result = minimize(dies_at_half, np.zeros(1), "lbfgs", budget=500, workers=pool)
    assert (result.success, result.status) == (False, 3)
    assert result.message.startswith("the workers are broken for ever, and ")
    assert "make a new pool" in result.message
    assert result.nfail >= 1
    assert np.isfinite(result.fun)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        at_once = minimize(dies_at_half, np.ones(1), "lbfgs", budget=500, workers=pool.map)
    assert (at_once.status, at_once.nit, at_once.nfev) == (3, 0, 2)


def test_workers_may_be_a_map_an_executor_or_a_pool() -> None:
    one = minimize(sphere, np.zeros(4), RANK, budget=60, seed=5)
    with ThreadPoolExecutor(2) as threads, multiprocessing.get_context("fork").Pool(2) as pool:
        for workers in (map, threads, threads.map, pool, pool.map, lambda f, it: [f(i) for i in it], 1, None):
            assert minimize(sphere, np.zeros(4), RANK, budget=60, seed=5, workers=workers).tape == one.tape
        assert minimize(sphere, np.zeros(4), RANK, budget=60, seed=5, executor=threads).tape == one.tape
        with pytest.raises(TypeError, match="pass workers"):
            minimize(sphere, np.zeros(4), workers=threads, executor=threads)
        with pytest.raises(TypeError, match="timeout= needs processes that may be killed"):
            minimize(sphere, np.zeros(4), workers=threads, timeout=1)


@pytest.mark.parametrize("workers", ["8", 2.5, True, 0, -3])
def test_other_workers_are_refused(workers: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"workers={workers}|workers='8'"):
        minimize(sphere, np.zeros(4), workers=workers)
    with pytest.raises(TypeError, match="gave 1 results for 2 points; pass a callable like map"):
        minimize(sphere, np.zeros(4), "rank", workers=lambda f, it: [f(next(iter(it)))], budget=50)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pebble", None)
    with pytest.raises(ImportError) as caught:
        minimize(sphere, np.zeros(4), workers=2)
    assert str(caught.value) == str(needs("workers=2", "pebble and cloudpickle", "blackbox"))


FALLING = {
    "linear": lambda x: float(x[0]),
    "cubic": lambda x: float(x[0] ** 3),
    "exponential": lambda x: -float(np.exp(min(x[0], 800.0))),
}


QUICK = ("auto", "zo_sgd", "fzoo", "zo_adam", "rank")


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in ("auto", *methods.names())
        if name == "auto" or not methods.describe(name)["required"]
    ],
)
def test_a_fall_without_end_is_no_error_and_no_success(name: str) -> None:
    """Squares of such values and radii leave the range of floats."""
    one = {"n": 1} if name != "auto" and methods.describe(name)["defaults"].get("n") == 1 else None
    for kind, f in FALLING.items():
        with np.errstate(over="ignore", invalid="ignore"):
            result = minimize(f, np.ones(6), name, budget=2000, options=one)
        assert not (result.success and result.fun < -1e30)
        if name in ("auto", "zo_sgd", "cr_fm_nes") and kind != "cubic":
            assert not result.success
    if name == "zo_sgd":
        assert "as if it had no lower bound; pass bounds, or check its sign" in result.message


def corner(x: Any) -> float:
    """The sphere about 1, which has no value where the first variable is above 0.05."""
    return math.nan if x[0] > 0.05 else sphere(x)


NAMES = [*methods.names(), "auto", "lbfgs", "cma"]


def by_name(name: str) -> Any:
    menu = methods.menu.MENU
    return black_box(name, 6, **menu[name].example) if name in menu else name


@pytest.mark.parametrize("name", NAMES)
def test_every_name_ends_at_a_finite_point_where_a_corner_has_no_values(name: str) -> None:
    x0 = np.full(6, 0.01)
    result = minimize(corner, x0, by_name(name), budget=600)
    assert math.isfinite(result.fun)
    assert result.fun == corner(result.x)
    assert result.nfev <= 600
    said = "an equilibrium" if name == "zo_saddle" else "pass a"
    assert result.success or said in result.message or "start where" in result.message


@pytest.mark.parametrize("name", NAMES)
def test_every_name_says_that_there_is_no_value_at_all(name: str) -> None:
    result = minimize(lambda x: math.nan, np.full(6, 0.01), by_name(name), budget=700)
    assert not result.success
    assert "nan" in result.message or "not finite" in result.message
    assert result.nfev == result.nfail <= 700
    assert np.all(result.x == np.full(6, 0.01)) or name == "vertex_search"  # it starts at a vertex, wherever x0 is


def test_a_step_without_a_value_counts_as_refused_also_where_steps_back_keep_x() -> None:
    """FZOO's steps are taken back from a slot; the slot is not written before a step has a value."""
    result = minimize(lambda x: math.nan, np.zeros(6), "fzoo", budget=1000)
    assert result.message.startswith("20 steps in a row had a non-finite value")
    assert result.nit == 20


@pytest.mark.parametrize("settings", [{}, {"central": True}])
@pytest.mark.parametrize("edge", [0.05, 0.3])
def test_fista_goes_up_to_where_f_has_no_values(settings: dict[str, Any], edge: float) -> None:
    """min |x - 1|^2 + 0.1 |x|_1 with x_1 <= edge: trial points beyond fail, and shorten the step."""
    method = methods.fd_fista(L1(0.1), **settings)
    result = minimize(lambda x: sphere(x) if x[0] <= edge else math.nan, np.zeros(6), method, budget=900)
    assert result.nfail > 0
    assert edge - 1e-3 < result.x[0] <= edge
    assert result.nit > 40


def test_fista_from_an_edge_moves_along_it() -> None:
    """Both fixed and measured rates: the failed side of a difference gives way to the other one."""
    for lr in (0.1, "auto"):
        method = methods.fd_fista(L1(0.1), lr=lr)
        result = minimize(lambda x: sphere(x) if x[0] <= 0 else math.nan, np.zeros(6), method, budget=900)
        assert result.x == pytest.approx([0, 0.95, 0.95, 0.95, 0.95, 0.95], abs=1e-4)


@pytest.mark.parametrize("budget", range(8, 60, 3))
def test_ask_and_tell_keep_the_budget_where_failures_cost_more_than_a_step(budget: int) -> None:
    """Differences whose first side fails take a second one, which the budget may not allow any more."""
    loop = AskTell(np.zeros(6), methods.cge(lr=0.1, count=6), budget=budget)
    told = 0
    while not loop.done:
        points = loop.ask()
        told += len(points)
        loop.tell([sphere(x) if np.all(x <= 0) else math.nan for x in points])
    assert told <= budget
    assert loop.message == "budget used"


def test_a_last_value_that_fails_by_chance_is_taken_again() -> None:
    """One evaluation of six fails by chance: the value at the result is not one of them while the budget has some left.

    20 runs; one look alone fails in 3 to 4 of them."""
    ends = []
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def f(x: np.ndarray, rng: np.random.Generator = rng) -> float:
            return float("nan") if rng.random() < 1 / 6 else float(np.sum((x - 1) ** 2)) + 1e-3 * rng.normal()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = minimize(f, np.zeros(5), "zo_sgd", budget=603, seed=seed)
        assert r.nfev <= 603
        ends.append("where zo_sgd ended" in r.message)
    assert sum(ends) <= 1
