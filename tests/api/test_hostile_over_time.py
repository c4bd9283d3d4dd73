"""What runs over time, as users who trust nothing would try it: saves, workers, long records, bad numbers."""

from __future__ import annotations

import concurrent.futures
import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint

import zograd as zo
from zograd import AskTell, diagnostics, methods, minimize
from zograd.api.saved import strict
from zograd.api.workers import Failure, Processes, _Task
from zograd.control import Ascent, Augmented, SignAscent, TsallisINF, UpperBound, allocate
from zograd.core.record import Record
from zograd.core.schedules import Table, constant, cosine, linear
from zograd.core.tape import Tape, TapeWriter, pack_record, unpack_record
from zograd.core.vector import Noise, Slot, Vector
from zograd.noise import Kind
from zograd.stores import Rate

# ---- minimize with processes -----------------------------------------------------------------------------------------


def noisy(x: Any) -> float:
    return float(x @ x + torch.rand(()).item())


@pytest.mark.filterwarnings("ignore:f.x0. gave")
def test_a_run_with_processes_that_is_resumed_draws_the_numbers_of_one_that_was_not(tmp_path: Path) -> None:
    pytest.importorskip("pebble")
    given: dict[str, Any] = {"method": methods.zo_sgd(lr=1e-2, n=2), "seed": 3, "timeout": 60.0}

    def once(file: str, *, stop: int | None = None, resume: bool = False) -> list[float]:
        losses: list[float] = []

        def callback(intermediate_result: Any) -> bool:
            losses.append(intermediate_result.fun)
            return len(losses) == stop

        res = minimize(
            noisy, np.ones(2), budget=24, callback=callback, checkpoint=tmp_path / file, resume=resume, **given
        )
        return [*losses, res.fun]

    whole = once("whole")
    once("cut", stop=2)
    resumed = once("cut", resume=True)
    assert len(resumed) > 2
    assert resumed == whole[-len(resumed) :]


class Late:
    """A future that ends between a look that finds nothing, and the next one."""

    def __init__(self, value: float) -> None:
        self.value, self.looks = value, 0

    def result(self, timeout: float | None = None) -> float:
        self.looks += 1
        if self.looks == 1:
            raise concurrent.futures.TimeoutError
        return self.value

    def exception(self) -> None:
        return None

    def done(self) -> bool:
        return True

    def cancelled(self) -> bool:
        return False


@pytest.mark.parametrize("timeout", [None, 600.0])
def test_a_value_that_comes_as_a_look_ends_is_no_timeout(timeout: float | None) -> None:
    pytest.importorskip("pebble")
    processes = Processes(noisy, 1, timeout, 0)
    task = _Task(0, b"")
    task.future = Late(7.0)
    found = processes.waited(deque([task]))
    assert not isinstance(found, Failure)
    assert found == 7.0


# ---- AskTell ---------------------------------------------------------------------------------------------------------


def saved(path: Path, method: Any, **given: Any) -> Path:
    loop = AskTell(np.zeros(2), method, **given)
    for trial in loop.trials(2):
        loop.report(trial.id, 1.0)
    loop.save(path)
    return path


def test_a_saved_loop_is_not_loaded_with_other_settings(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.json", methods.rank(n=16, lr=0.3))
    with pytest.raises(ValueError, match=r"of another run: its method .*n=16.* and here it is .*n=8"):
        AskTell.load(file, methods.rank(n=8, lr=0.3))
    assert len(AskTell.load(file, methods.rank(n=16, lr=0.3)).desk.answers) == 2


def test_nor_with_other_constraints(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.json", "auto", constraints=LinearConstraint(np.ones(2), ub=1.0))
    with pytest.raises(ValueError, match="its constraints others than here"):
        AskTell.load(file, constraints=LinearConstraint(np.ones(2), ub=50.0))
    assert AskTell.load(file, constraints=LinearConstraint(np.ones(2), ub=1.0)).evaluations >= 0


@pytest.mark.parametrize("method", ["zo_sgd", "cma"])
def test_nor_is_a_state_within_other_bounds(method: str) -> None:
    pytest.importorskip("cma")
    state = AskTell(np.full(2, 0.5), method, bounds=(0, 1)).state_dict()
    other = AskTell(np.full(2, 0.5), method, bounds=(-10, 10))
    with pytest.raises(ValueError, match="its bounds others than here"):
        other.load_state_dict(state)
    AskTell(np.full(2, 0.5), method, bounds=(0, 1)).load_state_dict(json.loads(json.dumps(strict(state))))


def test_a_lease_without_end_gives_each_trial_once() -> None:
    loop = AskTell(np.zeros(2), "rank", lease=math.inf)
    number = len(loop.trials(1000))
    assert number > 0
    assert loop.trials(1000) == []


@pytest.mark.parametrize("name", ["forward_residual", "node_perturbation", "residual", "backprop"])
def test_methods_for_blocks_are_refused_by_their_names(name: str) -> None:
    wanted = f"{name!r} takes gradients from the blocks of a language model"
    with pytest.raises(TypeError, match=wanted):
        minimize(lambda x: float(x @ x), np.ones(2), name)
    with pytest.raises(TypeError, match=wanted):
        AskTell(np.ones(2), name)
    if name != "node_perturbation":
        with pytest.raises(TypeError, match=wanted):
            zo.ZOOptimizer([torch.nn.Parameter(torch.ones(2))], name)


def test_a_number_beyond_floats_is_no_loss() -> None:
    loop = AskTell(np.zeros(2), "rank")
    (trial,) = loop.trials(1)
    with pytest.raises(TypeError, match="the loss must return one number"):
        loop.report(trial.id, 10**400)


# ---- tapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 254, 255, 256, 300, 70_000])
def test_records_of_any_length_are_read_again(count: int) -> None:
    noise = Vector(((Noise(Kind.SIGN, 7), 0.5),))
    rates = tuple(Rate(0.1, float(k)) for k in range(count))
    writes = tuple((f"slot {k}", noise) for k in range(min(count, 300)))
    meters = tuple((f"meter {k}", float(k)) for k in range(min(count, 300)))
    record = Record(3, noise, 1.0, rates, None, writes, 2, False, (), 1e-3, 0.5, meters)
    assert unpack_record(pack_record(record)) == record


def test_a_term_with_a_long_name_is_read_again() -> None:
    vector = Vector(((Slot("s" * 70_000), 1.0), (Noise(Kind.SIGN, 7), 0.5)))
    record = Record(0, vector, 1.0, (Rate(0.1, 0.0),), None, (), 2, False, (), 1e-3, 0.5, ())
    assert unpack_record(pack_record(record)) == record


def test_a_group_for_each_parameter_is_recorded(tmp_path: Path) -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(300)]
    with TapeWriter(tmp_path / "tape.zo", {"seed": 0}) as tape:
        groups = [{"params": [p], "lr": 1e-3} for p in parameters]
        opt = zo.ZOOptimizer(groups, methods.zo_sgd(lr=1e-3), record=tape.append)
        opt.step(lambda: sum(p.square().sum() for p in parameters))
    (record,) = Tape(tmp_path / "tape.zo").records
    assert len(record.rates) == 300


# ---- diagnostics, schedules, control ---------------------------------------------------------------------------------


def test_a_confidence_on_an_edge_belongs_to_the_bin_above_it() -> None:
    p = np.array([[0.6, 0.4]] * 10 + [[0.55, 0.45]] * 10)
    found = diagnostics.calibration(p, np.array([0] * 10 + [1] * 10), bins=10)
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.55)


def test_products_of_curvature_leave_the_slots_of_a_run_alone() -> None:
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    opt = zo.ZOOptimizer([w], methods.cr_fm_nes(n=4))

    def loss() -> torch.Tensor:
        return (w * w * torch.tensor([1.0, 2.0, 3.0])).sum() / 2

    opt.step(loss)
    before = {k: v.clone() for k, v in opt.store.state_dict().items()}
    product = diagnostics.values_hvp(diagnostics.Problem(opt.store, zo.oracles.sequential(loss)))
    assert np.any(product(np.array([1.0, 1.0, 1.0])) != 0)
    after = opt.store.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda: linear(0.05, 20, end=-1.0), "end"), (lambda: cosine(0.05, 20, end=math.nan), "end"),
        (lambda: linear(0.1, 10, warmup=-5), "warmup"), (lambda: constant(0.1, warmup=-3), "warmup"),
        (lambda: Table(0.5, total=5, warmup=-1, values=(1.0,)), "warmup"),
    ],
)  # fmt: skip
def test_no_schedule_has_negative_rates(made: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"a schedule needs a finite {name} >= 0"):
        made()


@pytest.mark.parametrize("rule", [Ascent(0.1), Augmented(), SignAscent(0.1)])
def test_multipliers_take_no_value_that_stays_in_them(rule: Any) -> None:
    state = rule.initial(["at most"])
    with pytest.raises(ValueError, match="not finite"):
        rule.observe(state, [math.nan])
    rule.observe(state, [1.0])
    assert state["multipliers"][0] > 0
    assert math.isnan(rule.lagrangian(state, 1.0, [math.nan]))


def test_a_budget_of_nan_is_none() -> None:
    with pytest.raises(ValueError, match="budget is NaN"):
        allocate([[0.0, 1.0]], [0.0, 1.0], math.nan)


@pytest.mark.parametrize("rule", [TsallisINF, UpperBound])
def test_numbers_of_arms_may_be_numpys(rule: Any) -> None:
    assert rule(np.int64(2)).arms == 2
    with pytest.raises(ValueError, match="at least 2 arms"):
        rule(True)
