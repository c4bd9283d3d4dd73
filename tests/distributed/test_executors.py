"""Black boxes on executors: the trajectory of one evaluation after the other, and errors that pass through."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zograd import Run, Store, methods, minimize
from zograd.core.vector import Query
from zograd.distributed import from_pool, parallel, pools
from zograd.distributed.pools import EvaluationLost
from zograd.oracles import sequential


def quartic(x: Any, *rest: Any) -> float:
    return float((x**4).sum() + (x[0] - 1.0) ** 2)


def term_mean(x: Any, rows: Any) -> float:
    return float(np.mean([(x[i % len(x)] - i) ** 2 for i in rows]))


def noisy(tensors: dict[str, torch.Tensor]) -> float:
    x = tensors["x"]
    return float(((x - torch.rand(x.shape)) ** 2).sum())


@pytest.fixture(scope="module")
def processes_() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("method", ["zo_sgd", "fzoo", "zo_adam", "hizoo", "cbo"])
@pytest.mark.parametrize("workers", [1, 4])
def test_the_trajectory_is_the_sequential_one(method: str, workers: int) -> None:
    x0 = np.linspace(-1.0, 1.0, 7)
    one = minimize(quartic, x0, method, budget=120, seed=3)
    with ThreadPoolExecutor(workers) as executor:
        other = minimize(quartic, x0, method, budget=120, seed=3, executor=executor)
    assert other.x.tobytes() == one.x.tobytes()
    assert (other.fun, other.nfev, other.nit) == (one.fun, one.nfev, one.nit)
    assert other.tape == one.tape


def test_processes_and_pools_give_the_same_trajectory(processes_: Executor) -> None:
    x0 = np.linspace(-1.0, 1.0, 7)
    one = minimize(quartic, x0, "fzoo", budget=60, seed=3)
    with ThreadPool(2) as pool:
        for executor in (processes_, from_pool(pool)):
            other = minimize(quartic, x0, "fzoo", budget=60, seed=3, executor=executor)
            assert other.x.tobytes() == one.x.tobytes()


def test_terms_of_a_finite_sum(processes_: Executor) -> None:
    x0 = np.zeros(4)
    arguments: dict[str, Any] = {"method": "zo_svrg", "budget": 300, "seed": 1, "terms": 8}
    one = minimize(term_mean, x0, **arguments)
    other = minimize(term_mean, x0, executor=processes_, **arguments)
    assert other.x.tobytes() == one.x.tobytes()
    assert other.nfev == one.nfev


def test_points_of_a_step_are_evaluated_at_once() -> None:
    """Both evaluations of a step wait for each other: one after the other they would break the barrier."""
    meeting = threading.Barrier(2, timeout=20)

    def waits(x: Any) -> float:
        meeting.wait()
        return quartic(x)

    store = Store({"x": torch.ones(3, dtype=torch.float64)})
    run = Run(store, methods.zo_sgd(lr=1e-2), seed=0)
    with ThreadPoolExecutor(2) as executor:
        record = run.step(parallel(executor, lambda tensors: waits(tensors["x"])))
    assert not record.refused


@pytest.mark.parametrize("pool", ["threads", "pool"])
def test_errors_pass_through_and_nothing_moves(pool: str) -> None:
    calls: list[int] = []

    def fails(tensors: dict[str, torch.Tensor]) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("at the third")
        return quartic(tensors["x"])

    store = Store({"x": torch.ones(3)})
    run = Run(store, methods.zo_sgd(lr=1e-2), seed=0)
    with ThreadPoolExecutor(1) as threads, ThreadPool(1) as other:
        oracle = parallel(threads if pool == "threads" else from_pool(other), fails)
        run.step(oracle)
        before = store.digest()
        with pytest.raises(ZeroDivisionError, match="at the third"):
            run.step(oracle)
        assert store.digest() == before
        assert run.step_number == 1
        assert run.step(oracle).step == 1


def test_a_failed_evaluation_of_minimize_passes_through() -> None:
    def fails(x: Any) -> float:
        raise ValueError("no mesh")

    with ThreadPoolExecutor(2) as executor, pytest.raises(ValueError, match="no mesh"):
        minimize(fails, np.ones(3), budget=50, executor=executor)


def test_a_result_that_is_no_number_is_named() -> None:
    with ThreadPoolExecutor(2) as executor, pytest.raises(TypeError, match="must return one number"):
        minimize(lambda x: x, np.ones(3), budget=50, executor=executor)


def test_a_loss_of_tensors_has_the_values_of_the_lens() -> None:
    """At every point of a step, with a 16-bit gain too, which a copy in 16 bits would not show."""
    w, g, scale = torch.linspace(-1, 1, 12).view(3, 4), torch.ones(4, dtype=torch.bfloat16), torch.tensor([1, 2, 4, 8])
    store = Store({"w": w, "g": g})
    points: list[Query] = []
    direct = sequential(lambda: ((w * 2).sum() ** 2 + (g.float() * scale).sum()).double())

    def keeping(store: Store, queries: Sequence[Query], key: int) -> Sequence[float]:
        points.extend(queries)
        return direct(store, queries, key)

    record = Run(store, methods.fzoo(n=3, lr=0.0), seed=1).step(keeping)
    with ThreadPoolExecutor(3) as executor:
        other = parallel(executor, lambda t: ((t["w"] * 2).sum() ** 2 + (t["g"].float() * scale).sum()).double())
        assert tuple(other(store, points, 0)) == record.losses
    assert len(set(record.losses)) == 4


def test_random_numbers_in_processes_repeat_with_the_key(processes_: Executor) -> None:
    store = Store({"x": torch.zeros(5)})
    oracle = parallel(processes_, noisy)
    first, second = (oracle(store, [Query(), Query(), Query()], key) for key in (4, 5))
    assert first == [first[0]] * 3
    assert first == oracle(store, [Query()] * 3, 4)
    assert second[0] != first[0]
    assert first == sequential(lambda: ((store.leaves[0].tensor - torch.rand(5)) ** 2).sum())(store, [Query()] * 3, 4)


# ---- pools whose workers die -----------------------------------------------------------------------------------------


def dies(x: Any) -> float:
    os._exit(9)


def ends(x: Any) -> float:
    os._exit(0)


def killed(x: Any) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def sleeps(x: Any) -> float:
    time.sleep(60)
    return 0.0


@pytest.mark.parametrize(("f", "code"), [(dies, 9), (ends, 0), (killed, -9)], ids=["exit-9", "exit-0", "SIGKILL"])
def test_a_worker_that_dies_takes_its_evaluation_and_no_other(f: Any, code: int) -> None:
    x = np.ones(2)
    with get_context("fork").Pool(2) as pool:
        executor = from_pool(pool)
        waiting = [executor.submit(g, x) for g in (quartic, f, quartic, quartic)]
        assert [waiting[i].result() for i in (0, 2, 3)] == [quartic(x)] * 3
        with pytest.raises(EvaluationLost, match=f"worker of the pool ended with exit code {code} and took"):
            waiting[1].result()
        result = minimize(f, x, budget=20, executor=executor)
        assert not result.success
        assert result.nfail == result.nfev == 2
        assert "f is not finite at x0" in result.message
        assert "a worker of the pool ended" in result.message
        assert executor.submit(quartic, x).result() == quartic(x)


def test_idle_workers_that_died_with_the_lock_of_the_queue_break_the_pool() -> None:
    """One of them waits in the queue and holds its lock, for which the new ones wait.

    In a process of its own: `Pool.terminate` of CPython 3.12 may wait for ever where it was replacing a dead worker.
    """
    script = "from test_executors import idle_workers_die; idle_workers_die()"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, timeout=300)
    assert done.returncode == 0


def idle_workers_die() -> None:
    """The test, and then an end without the end of the pool."""
    pools.STUCK = 1.0
    pool = get_context("fork").Pool(2)
    executor = from_pool(pool)
    try:
        assert executor.submit(quartic, np.ones(2)).result() == quartic(np.ones(2))
        for worker in list(pool._pool):
            os.kill(worker.pid, signal.SIGKILL)
        result = minimize(quartic, np.zeros(2), budget=4000, executor=executor)
        assert (result.success, result.status, result.nfail) == (False, 3, 4)
        assert result.message.startswith("the workers are broken for ever, and 4 evaluations were lost")
        assert isinstance(result.exception, BrokenProcessPool)
        with pytest.raises(BrokenProcessPool, match="Make a new pool"):
            executor.submit(quartic, np.ones(2))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    for worker in list(pool._pool):
        worker.kill()
    os._exit(0)


def test_a_worker_that_hangs_is_a_failed_evaluation_at_the_timeout() -> None:
    with get_context("fork").Pool(1) as pool:
        result = minimize(sleeps, np.ones(2), budget=20, executor=from_pool(pool, timeout=0.2))
        assert result.nfail == result.nfev == 2
        assert "an evaluation in the pool took longer than timeout=0.2 s" in result.message
        with pytest.raises(TimeoutError, match=r"took longer than timeout=0.1 s"):
            from_pool(pool, timeout=0.1).submit(quartic, np.ones(2)).result()
        with pytest.raises(ValueError, match=r"timeout=-1 must be > 0, in seconds, or None"):
            from_pool(pool, timeout=-1)


def test_a_timeout_that_the_loss_raises_passes_through() -> None:
    def late(x: Any) -> float:
        raise TimeoutError("the simulator gave up")

    with ThreadPool(1) as pool, pytest.raises(TimeoutError, match="the simulator gave up"):
        minimize(late, np.ones(2), budget=20, executor=from_pool(pool))


def test_workers_that_are_replaced_on_purpose_are_no_failure() -> None:
    x0 = np.linspace(-1.0, 1.0, 7)
    with get_context("fork").Pool(1, maxtasksperchild=4) as pool:
        other = minimize(quartic, x0, "fzoo", budget=60, seed=3, executor=from_pool(pool))
    assert other.x.tobytes() == minimize(quartic, x0, "fzoo", budget=60, seed=3).x.tobytes()


def test_the_result_of_a_worker_that_was_replaced_on_purpose_may_be_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has ended and its result is not here yet: on a busy machine that takes longer than two looks."""
    worker = type("Worker", (), {"pid": 7, "exitcode": None})()
    pool = SimpleNamespace(_pool=[worker], _maxtasksperchild=1, apply_async=lambda *args, **kwargs: None)
    executor = from_pool(pool)
    future = executor.submit(quartic, np.ones(2))
    Path(executor.marks.path(0)).write_text("7\n")
    worker.exitcode = 0
    monkeypatch.setattr(pools, "WATCHED", 0.0)
    executor.look()
    assert not future.done()
    monkeypatch.setattr(pools, "UNSEEN", 0.0)  # a loss that leaves by sys.exit(0) is lost in the end
    executor.look()
    with pytest.raises(EvaluationLost, match="a worker of the pool ended"):
        future.result()


def test_random_numbers_of_numpy_and_python_repeat_in_processes_too(processes_: Executor) -> None:
    store = Store({"x": torch.zeros(5)})
    values = parallel(processes_, draws)(store, [Query(), Query()], 4)
    assert values[0] == values[1]
    assert values != parallel(processes_, draws)(store, [Query(), Query()], 5)


def draws(tensors: dict[str, torch.Tensor]) -> float:
    return float(np.random.rand()) + random.random()  # noqa: NPY002
