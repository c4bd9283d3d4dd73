"""`checkpoint=` of `minimize`: a run that was ended at any place goes on to the same bits."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api import checkpointed
from zograd import methods, minimize
from zograd.api.checkpoint import CheckpointError
from zograd.locks import LockedError

METHODS = ["auto", "lbfgs", "cma", "rank", "zo_sgd"]


def same(one: Any, other: Any) -> None:
    """All fields of two results, bit for bit."""
    assert one.keys() == other.keys()
    for key in one:
        if isinstance(one[key], np.ndarray):
            assert one[key].tobytes() == other[key].tobytes(), key
        else:
            assert repr(one[key]) == repr(other[key]), key


def stopping(number: int, error: BaseException) -> Any:
    calls: list[int] = []

    def f(x: Any) -> float:
        calls.append(1)
        if len(calls) > number:
            raise error
        return checkpointed.function(x)

    return f


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no mesh")], ids=["interrupt", "exception"])
def test_a_run_goes_on_to_the_same_bits(method: str, error: BaseException, tmp_path: Path) -> None:
    whole = minimize(checkpointed.function, np.zeros(6), method, budget=150, seed=4)
    path, calls = tmp_path / "run.zo", 0
    for number in (1, 30, 41, 10_000):
        f = stopping(number, error)
        result = minimize(f, np.zeros(6), method, budget=150, seed=4, checkpoint=path, resume=True)
        calls += result.nfev
    same(result, whole)
    again = minimize(stopping(0, error), np.zeros(6), method, budget=150, seed=4, checkpoint=path, resume=True)
    same(again, whole)
    assert whole.nfail > 0 or method == "rank"


@pytest.mark.parametrize("method", ["cma", "lbfgs"])
def test_a_killed_process_goes_on_to_the_same_bits(method: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    script = [sys.executable, str(Path(checkpointed.__file__)), str(path), method, "0.05"]
    process = subprocess.Popen(script)
    while not path.exists() or path.stat().st_size < 900:
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(LockedError, match="is being written by process"):
        checkpointed.run(str(path), method, 0.0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told: list[int] = []
    result = checkpointed.run(str(path), method, 0.0, callback=lambda progress: told.append(progress.nit) and None)
    whole = minimize(checkpointed.function, np.zeros(6), method, budget=checkpointed.BUDGET, seed=4)
    same(result, whole)
    assert 0 < len(told) < whole.nit  # not for the steps of the file


def test_a_torn_end_is_dropped_and_damage_is_refused(tmp_path: Path) -> None:
    whole = minimize(checkpointed.function, np.zeros(6), "cma", budget=150, seed=4)
    path = tmp_path / "run.zo"
    minimize(checkpointed.function, np.zeros(6), "cma", budget=150, seed=4, checkpoint=path)
    data = path.read_bytes()
    for end in (0, 5, 40, len(data) // 2, len(data) // 2 + 1, len(data) - 1, len(data)):
        path.write_bytes(data[:end])
        same(checkpointed.run(str(path), "cma", 0.0), whole)
        assert path.read_bytes() == data
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(CheckpointError, match="fails its checksum; restore the file from a copy"):
        checkpointed.run(str(path), "cma", 0.0)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is no checkpoint of minimize"):
        checkpointed.run(str(path), "cma", 0.0)


def test_the_budget_may_grow_and_shrink(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    few = minimize(checkpointed.function, np.zeros(6), "rank", budget=60, checkpoint=path)
    many = minimize(checkpointed.function, np.zeros(6), "rank", budget=150, checkpoint=path, resume=True)
    same(many, minimize(checkpointed.function, np.zeros(6), "rank", budget=150))
    again = minimize(checkpointed.function, np.zeros(6), "rank", budget=60, checkpoint=path, resume=True)
    same(again, few)
    same(minimize(stopping(0, ValueError()), np.zeros(6), "rank", budget=150, checkpoint=path, resume=True), many)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x0": np.ones(6)}, "its x0 differs"),
        ({"x0": np.zeros(6, np.float32)}, "its x0 differs"),
        ({"seed": 5}, "its seed is 4, and here it is 5"),
        ({"method": "cma"}, r"its (strategy|method) is .* and here it is "),
        ({"method": methods.rank(n=7)}, r"its method is .* and here it is "),
        ({"bounds": [(-1, 1)]}, "its bounds is None, and here it is "),
        ({"maximize": True}, "its maximize is False, and here it is True"),
        ({"common_random": True}, "its common_random is False, and here it is True"),
        ({"data": [1, 2]}, "its data is None, and here it is 2 batches"),
        ({"resume": False}, "holds the values of a run; pass resume=True"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    settings: dict[str, Any] = {"x0": np.zeros(6), "method": "rank", "seed": 4, "budget": 60, "checkpoint": path}
    minimize(checkpointed.function, **settings)
    before = path.read_bytes()
    with pytest.raises((CheckpointError, FileExistsError), match=says):
        minimize(checkpointed.function, **(settings | {"resume": True} | change))
    assert path.read_bytes() == before


def test_a_fresh_seed_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.zo"
    one = minimize(checkpointed.function, np.zeros(6), "rank", seed=None, budget=60, checkpoint=path)
    two = minimize(stopping(0, ValueError()), np.zeros(6), "rank", seed=None, budget=60, checkpoint=path, resume=True)
    same(one, two)


@pytest.mark.parametrize("kind", ["sequence", "loader"])
def test_data_and_seeds_go_on_where_they_were(kind: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 6))

    def data() -> Any:
        rng = np.random.default_rng(9)
        return list(rows) if kind == "sequence" else (rows[rng.integers(7)] for _ in range(1000))

    def f(x: Any, row: Any, seed: int) -> float:
        return float((row @ x - 1) ** 2 + 0.1 * x @ np.random.default_rng(seed).standard_normal(6))

    def stops(number: int) -> Any:
        calls: list[int] = []

        def g(x: Any, row: Any, seed: int) -> float:
            calls.append(1)
            if len(calls) > number:
                raise KeyboardInterrupt
            return f(x, row, seed)

        return g

    settings: dict[str, Any] = {"method": "rank", "budget": 120, "common_random": True}
    whole = minimize(f, np.zeros(6), data=data(), **settings)
    path = tmp_path / "run.zo"
    minimize(stops(50), np.zeros(6), data=data(), checkpoint=path, **settings)
    result = minimize(f, np.zeros(6), data=data(), checkpoint=path, resume=True, **settings)
    same(result, whole)
    assert math.isfinite(result.fun)
