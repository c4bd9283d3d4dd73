"""What a step may cost, at most, in what no machine changes: noise drawn, bytes written, memory asked for, operations.

Times are not tested here: they depend on the processor and on who else uses it. `make bench-check` measures them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import check
from benchmarks.check import cases, sides, step_and_forwards
from zograd import kernels, laws, methods
from zograd.bench.profile import Pass, watched
from zograd.core.run import Run
from zograd.lens.lens import TILE
from zograd.noise import Kind, Term, backend, combine
from zograd.oracles import Oracle, batched, sequential
from zograd.stores import Store
from zograd.stores.leaf import CHUNK

native = pytest.mark.skipif(backend() != "native", reason="the compiled loops are counted")

WIDTH, ROWS = 1024, 2304
MATRIX = WIDTH * ROWS
"""Elements of the weights below: two tiles and a quarter."""


# ---- facts ---------------------------------------------------------------------------------------------------------


class Wide:
    """f = mean (x W^T)^2 for a W larger than two tiles and a small x, with a run on it."""

    def __init__(self, law: laws.Law, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.w = (0.02 * torch.randn(ROWS, WIDTH, generator=generator)).to(dtype)
        self.x = torch.randn(2, WIDTH, generator=generator).to(dtype)
        self.store = Store({"w": self.w})
        self.run = Run(self.store, methods.make("zo_sgd", lr=1e-4, law=law), 0)
        self.at_loss: list[Tensor] = []

    def losses(self, copies: int) -> Tensor:
        y: Tensor = F.linear(self.x.repeat(copies, 1), self.w)
        return y.view(copies, -1).float().square().mean(1)

    def oracle(self, together: int) -> Oracle:
        return batched(self.losses, 2) if together == 2 else sequential(lambda: self.losses(1).sum())

    def warm(self, together: int) -> Callable[[], object]:
        """One more step, after the first, in which both ways of evaluation are compared and workspace is made."""
        oracle = self.oracle(together)
        self.run.step(oracle)
        return lambda: self.run.step(oracle)


def passes_of_a_step(law: laws.Law, together: int, dtype: torch.dtype = torch.float32) -> list[Pass]:
    step = Wide(law, dtype).warm(together)
    with watched() as passes:
        step()
    return passes


def drawn(passes: list[Pass]) -> tuple[float, float]:
    """Noise elements a weight, for probes and for the move."""
    probes, move = (sum(p.drawn for p in passes if p.part == part) for part in ("probes", "move"))
    return probes / MATRIX, move / MATRIX


@pytest.mark.parametrize("law", [laws.Rademacher(), laws.Gaussian()], ids=["signs", "normals"])
@pytest.mark.parametrize(("together", "most"), [(1, 2.0), (2, 1.0)], ids=["one at a time", "batched"])
def test_noise_is_drawn_once_a_point_or_once_a_pair_and_once_for_the_move(
    law: laws.Law, together: int, most: float
) -> None:
    probes, move = drawn(passes_of_a_step(law, together))
    assert 0 < probes <= most
    assert 0 < move <= 1


def test_rank_one_draws_rows_and_columns_only() -> None:
    probes, move = drawn(passes_of_a_step(laws.RankOne(), 2))
    assert 0 < probes <= 2 * (ROWS + WIDTH) / MATRIX
    chunks = 1 if backend() == "native" else -(-MATRIX // CHUNK)  # torch makes the move chunk by chunk
    assert 0 < move <= chunks * 2 * (ROWS + WIDTH) / MATRIX


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("law", [laws.Rademacher(), laws.RankOne()], ids=["dense", "rank one"])
@pytest.mark.parametrize("together", [1, 2], ids=["one at a time", "batched"])
def test_a_step_writes_each_weight_once_and_queries_write_none(
    law: laws.Law, together: int, dtype: torch.dtype
) -> None:
    wide = Wide(law, dtype)
    oracle = wide.oracle(together)

    def watching(*arguments: object) -> object:
        before = wide.w.clone()
        values = oracle(*arguments)  # type: ignore[arg-type]
        assert torch.equal(wide.w, before)
        return values

    wide.run.step(watching)  # type: ignore[arg-type]
    first, size = wide.w.data_ptr(), wide.w.element_size()
    with watched() as passes:
        before = wide.w.clone()
        wide.run.step(watching)  # type: ignore[arg-type]
    assert not torch.equal(wide.w, before)
    written = [p for p in passes if first <= p.address < first + MATRIX * size]
    assert {p.part for p in written} == {"move"}
    assert sum(p.bytes for p in written) == MATRIX * size


class LargestNewStorage(TorchDispatchMode):
    """Bytes of the largest storage that a torch operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)}
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@native
@pytest.mark.parametrize(
    "law", [laws.Rademacher(), laws.Gaussian(), laws.RankOne()], ids=lambda law: type(law).__name__
)
@pytest.mark.parametrize("together", [1, 2], ids=["one at a time", "batched"])
def test_no_step_asks_for_more_than_a_tile(law: laws.Law, together: int) -> None:
    wide = Wide(law)
    oracle = wide.oracle(together)
    with LargestNewStorage() as first:
        wide.run.step(oracle)
    with LargestNewStorage() as second:
        wide.run.step(oracle)
    tile = 4 * TILE
    assert tile < 4 * MATRIX
    assert first.bytes <= tile
    assert second.bytes <= tile // 16  # workspace is there already


# ---- the compiled loops, and a whole step ----------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """How many torch operations write memory, and how many bytes; views and what a compiled loop does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.count += 1
                self.bytes += t.numel() * t.element_size()
        return out


def operations(run: Callable[[], object]) -> Operations:
    with Operations() as seen:
        run()
    return seen


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name.lower())
def test_a_pass_of_noise_is_one_compiled_call_that_needs_no_torch_operation(dtype: torch.dtype, kind: Kind) -> None:
    x = torch.full((1 << 16,), 0.02).to(dtype)
    with watched() as passes:
        seen = operations(lambda: combine(x, x, terms=[Term(kind, 7, 2.0**-20)]))
    assert [(p.elements, p.drawn, p.in_place) for p in passes] == [(x.numel(), x.numel(), True)]
    assert seen.count == 0


@native
def test_log_sum_exp_is_that_of_torch_without_memory_of_its_own() -> None:
    logits = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    top, total = torch.full((256,), -torch.inf), torch.zeros(256)
    seen = operations(lambda: kernels.log_sum_exp_(top, total, logits))
    assert seen.bytes <= top.numel() * 4
    assert torch.allclose(top + total.log(), torch.logsumexp(logits, 1), atol=1e-5)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_side_branch_is_the_product_of_torch_in_one_compiled_call(dtype: torch.dtype) -> None:
    ours, theirs = sides(dtype)
    with watched() as passes:
        seen = operations(ours)
    assert [p.name for p in passes] == ["add_sides_"]
    assert seen.count == 0
    theirs()
    assert torch.allclose(ours().float(), theirs().float(), rtol=2**-7, atol=1e-3)  # both made two steps


@native
@pytest.mark.parametrize(
    ("law", "together", "most"),
    [(laws.Rademacher(), 1, 1.02), (laws.Rademacher(), 2, 0.65), (laws.RankOne(), 2, 0.65)],
    ids=["signs one at a time", "signs batched", "rank one batched"],
)
def test_a_step_asks_torch_for_no_more_than_its_two_forwards(law: laws.Law, together: int, most: float) -> None:
    step, forwards = step_and_forwards(law, together, blocks=18)
    step()
    needed, taken = operations(forwards), operations(step)
    assert 0.95 * needed.bytes < taken.bytes < 1.02 * needed.bytes
    assert 0 < taken.count <= most * needed.count


# ---- `make bench-check`: that it runs and judges; what it finds is not judged here -----------------------------------


def test_every_case_of_the_check_runs_and_has_a_bound_on_every_processor() -> None:
    names = []
    for case in cases(elements=4096, rows=2, blocks=1):
        case.way()
        case.reference()
        names.append(case.name)
    assert len(names) == 10
    assert all(sorted(bounds) == sorted(names) for bounds in check.BOUNDS.values())


def test_the_check_fails_by_one_ratio_above_its_bound_and_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bounds = check.BOUNDS["other"]
    monkeypatch.setattr(check, "processor", lambda: "of another kind")
    monkeypatch.setattr(check, "backend", lambda: "native")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(check, "best", lambda case, bound: bound)
    monkeypatch.setattr(check, "cases", lambda: cases(elements=16, rows=2, blocks=1))
    assert check.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratios"] == bounds
    slow = "normal float32"
    monkeypatch.setattr(check, "best", lambda case, bound: bound + (0.01 if case.name == slow else 0))
    assert check.main() == 1
    assert f"1 of 10 above their bound: {slow}." in capsys.readouterr().out


def test_a_ratio_is_the_median_of_rounds_by_the_clock_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    costs = iter([9.0, 3.0, 5.0, 4.0])  # of the way: the warm-up, then three rounds

    def way() -> None:
        now[0] += next(costs)

    def reference() -> None:
        now[0] += 2.0

    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    assert check.ratio(check.Case("a case", way, reference, rounds=3)) == 2.0


def test_the_best_of_three_tries_counts_and_a_good_one_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([3.0, 1.5, 2.0, 4.0])
    monkeypatch.setattr(check, "ratio", lambda case: next(found))
    case = check.Case("a case", lambda: None, lambda: None)
    assert check.best(case, 1.0) == 1.5
    assert check.best(case, 5.0) == 4.0
