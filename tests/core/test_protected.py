"""Directions off what is remembered: the projection, the outputs that stay, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bases import expand
from torch import Tensor, nn

from zograd.core.run import Method, Run
from zograd.core.vector import Vector
from zograd.estimators import Central
from zograd.laws import Draw, Memory, NullSpace
from zograd.laws.protected import MEMORY, OffMemory
from zograd.oracles import sequential
from zograd.rules import SGD, Adam, Momentum
from zograd.stores import Leaf, Store

SHAPES = {"a": (5, 8), "b": (3, 4)}


def orthonormal(n: int, k: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=g, dtype=torch.float64)).Q


MEMORIES = Memory({"a": orthonormal(8, 3), "b": orthonormal(4, 1, seed=1)})


def weights(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def prepared(law: NullSpace, named: dict[str, Tensor]) -> Store:
    store = Store(named)
    store.require(law.slots)
    law.prepare(store)
    return store


def written(store: Store, v: Vector) -> list[Tensor]:
    return [block.v[0].clone().view(block.leaf.shape) for block in store.blocks(v, whole_leaf=True)]


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_directions_are_the_formula_and_off_the_memory(rank: int) -> None:
    law = NullSpace(MEMORIES, rank, refresh=7)
    store = prepared(law, weights())
    v = law(Draw(3, 10, 0, store.shapes, store.gram))
    found = written(store, v)
    slots: Any = {MEMORY: [leaf.slots[MEMORY].numpy() for leaf in store.leaves]}
    expected = expand(v.terms[0][0], list(SHAPES.values()), slots)
    np.testing.assert_allclose(torch.cat([x.reshape(-1) for x in found]), expected, rtol=1e-9, atol=1e-11)
    for x, m in zip(found, MEMORIES.by_name.values(), strict=True):
        assert float((x @ m).abs().max()) < 1e-12
        assert torch.linalg.matrix_rank(x) == min(rank, *x.shape, m.shape[0] - m.shape[1])
    low = v.terms[0][0].factors(0, SHAPES["a"], torch.device("cpu"), store.leaves[0].slots)
    assert low is not None
    torch.testing.assert_close(low[0].T @ low[1], found[0], rtol=1e-9, atol=1e-11)


def test_the_mean_of_v_vT_is_the_projection() -> None:
    """Over all of its randomness, U and B: 4,000 draws with a B each, within 5 standard errors."""
    law, m = NullSpace(MEMORIES, 2, refresh=1), MEMORIES.by_name["a"]
    store = prepared(law, weights())
    total, count = torch.zeros(8, 8, dtype=torch.float64), 4000
    for t in range(count):
        (x, _) = written(store, law(Draw(3, t, 0, store.shapes, store.gram)))
        total += x.T @ x / 5  # five rows are as many samples
    projection = torch.eye(8, dtype=torch.float64) - m @ m.T
    assert float((total / count - projection).abs().max()) < 5 * 2.5 / (5 * count) ** 0.5


@pytest.mark.parametrize("rule", [SGD(), Momentum(0.9)], ids=lambda r: type(r).__name__)
def test_outputs_on_remembered_inputs_stay_during_a_run(rule: Any) -> None:
    """W x for x in the span of M is the same to 1e-10 after 200 steps, also across changes of B; W itself moves."""
    named = weights()
    before = {name: w.clone() for name, w in named.items()}
    law = NullSpace(MEMORIES, 2, refresh=20)
    run = Run(Store(named), Method(Central(1), law, rule, mu=1e-3, lr=1e-3), 4)
    goal = {name: torch.ones_like(w) for name, w in named.items()}

    def loss() -> float:
        return sum(float((w.mul(1.0) - goal[name]).square().sum()) for name, w in named.items())

    first = loss()
    records = [run.step(sequential(loss)) for _ in range(200)]
    for name, m in MEMORIES.by_name.items():
        assert float(((named[name] - before[name]) @ m).abs().max()) < 1e-10
        assert float((named[name] - before[name]).norm()) > 0.1
    assert loss() < first
    again = weights()
    other = Run(Store(again), Method(Central(1), law, rule, mu=1e-3, lr=1e-3), 4)
    other.replay(records)
    assert all(torch.equal(again[name], w) for name, w in named.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_blocks_or_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(chunk: int, threads: int) -> dict[str, Tensor]:
        monkeypatch.setattr(Leaf, "block", chunk)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        named = weights(dtype)
        run = Run(Store(named), Method(Central(2), NullSpace(MEMORIES, 2, 3), SGD(), mu=1e-2, lr=1e-2), 4)
        for _ in range(6):
            run.step(sequential(lambda: float(sum(w.mul(1.0).float().sin().sum() for w in named.values()))))
        torch.set_num_threads(before)
        return named

    first = walk(1 << 18, 1)
    for chunk, threads in ((1, 1), (7, 2), (16, 2)):
        assert all(torch.equal(w, first[name]) for name, w in walk(chunk, threads).items())


def test_the_memory_of_activations_holds_their_energy() -> None:
    """The least number of eigenvectors of X^T X with the energy; a second task extends and keeps the first."""
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(10, 3).double()
    x = torch.randn(200, 10, generator=g, dtype=torch.float64) * torch.logspace(0, -2, 10, dtype=torch.float64)
    memory = Memory.from_activations({"l": layer}, [lambda: layer(x[:90]), lambda: layer(x[90:])], energy=0.95)
    m = memory.by_name["l.weight"]
    values = torch.linalg.eigvalsh(x.T @ x).flip(0)
    count = int((values.cumsum(0) < 0.95 * values.sum()).sum()) + 1
    assert m.shape == (10, count)
    torch.testing.assert_close(m.T @ m, torch.eye(count, dtype=torch.float64))
    assert float((x @ m).square().sum()) >= 0.95 * float(x.square().sum())
    y = torch.randn(100, 10, generator=g, dtype=torch.float64)
    both = Memory.from_activations({"l": layer}, [lambda: layer(y)], energy=0.9, before=memory).by_name["l.weight"]
    torch.testing.assert_close(both[:, :count], m)
    torch.testing.assert_close(both.T @ both, torch.eye(both.shape[1], dtype=torch.float64), atol=1e-10, rtol=0.0)
    assert float((y @ both).square().sum()) >= 0.9 * float(y.square().sum())
    assert float((y @ both[:, :-1]).square().sum()) < 0.9 * float(y.square().sum())
    whole = Memory.from_activations({"l": layer}, [lambda: layer(x[:4])], energy=1.0)
    assert whole.by_name["l.weight"].shape == (10, 4), "what four inputs span, and no rounding"
    assert memory.shares() == {"l.weight": count / 10}


def test_a_memory_comes_back_from_a_file(tmp_path: Path) -> None:
    MEMORIES.save(tmp_path / "m.safetensors")
    loaded = Memory.load(tmp_path / "m.safetensors")
    for name, m in MEMORIES.by_name.items():
        torch.testing.assert_close(loaded.by_name[name], m.float())


def test_a_weight_whose_inputs_are_all_taken_stands_still() -> None:
    law = NullSpace(Memory({"a": orthonormal(8, 8), "b": orthonormal(4, 1)}), 4)
    store = prepared(law, weights())
    a, b = written(store, Vector(((OffMemory(1, 2, 4), 1.0),)))
    assert not a.any()
    assert b.any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Method(Central(), NullSpace(MEMORIES), Adam()), TypeError, "Adam changes their elements; use SGD"),
        (lambda: Method(Central(), NullSpace(MEMORIES), SGD(), weight_decay=0.1), TypeError, "use weight_decay=0"),
        (lambda: prepared(NullSpace(), weights()), ValueError, "NullSpace has no memory; pass"),
        (lambda: prepared(NullSpace(Memory({"a": orthonormal(8, 3)})), weights()), ValueError, "remembered of 'b'"),
        (lambda: prepared(NullSpace(Memory({"a": orthonormal(7, 3)})), weights()), ValueError, "'a' has 8 columns"),
        (
            lambda: prepared(NullSpace(Memory({"a": torch.ones(8, 2), "b": orthonormal(4, 1)})), weights()),
            ValueError, "not orthonormal; take",
        ),
        (
            lambda: prepared(NullSpace(Memory({"a": orthonormal(8, 8), "b": orthonormal(4, 4)})), weights()),
            ValueError, "no weight has a free dimension",
        ),
        (lambda: Memory.from_activations({}, [], energy=0.0), ValueError, "energy is the share"),
        (lambda: Memory.from_activations({"l": nn.Linear(2, 2)}, []), ValueError, "no forward reached l"),
        (lambda: NullSpace(MEMORIES, rank=0), ValueError, "rank"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
