"""Laws of blocks: memory of a step is a tile, and how the work is cut or threaded never reaches a bit of the result."""

from __future__ import annotations

import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from small_problems import CASES, DTYPES, digest, records_of, tensors, values_oracle
from torch.utils._python_dispatch import TorchDispatchMode

from tests.turns import in_turn, variants_slow
from zograd import noise
from zograd.core.run import Run
from zograd.lens import lens as stores_lens
from zograd.oracles import sequential
from zograd.spaces import PositiveOrthant
from zograd.stores import Leaf, Store


class LargestNewStorage(TorchDispatchMode):
    """The largest storage, in bytes, that any torch operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.made_by = 0, ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in self._tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for t in self._tensors(out):
            storage = t.untyped_storage()
            if storage._cdata not in known and storage.nbytes() > self.bytes:
                self.bytes, self.made_by = storage.nbytes(), str(func)
        return out

    def _tensors(self, tree):
        if isinstance(tree, torch.Tensor):
            yield tree
        elif isinstance(tree, dict):
            yield from self._tensors(tuple(tree.values()))
        elif isinstance(tree, tuple | list):
            for item in tree:
                yield from self._tensors(item)


native = pytest.mark.skipif(noise.backend() != "native", reason="the torch backend makes noise in tensors of its own")

HEAVY = (
    "fd_fista", "cr_fm_nes-from-x0", "cr_fm_nes", "sep_cma-from-x0", "dap-momentum", "aro-wide", "eggroll-unshaped",
)  # fmt: skip
"""Cases that take many seconds at 2^20 weights."""
SIDE = 512
SMALL = 1 << 14  # elements of a chunk and of a tile here; the weights have 2^20


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(Leaf, "block", SMALL)
    monkeypatch.setattr(stores_lens, "TILE", SMALL)


def four_layers(dtype: torch.dtype, positive: bool = False):
    """2^20 weights in four matrices (one an embedding), and a loss that reads them as a language model does."""
    shapes = [(SIDE, SIDE)] * 4
    weights = {name: (w.abs() + 0.01 if positive else w) / 100 for name, w in tensors(dtype, *shapes).items()}
    tokens = torch.arange(0, 40, 5)
    table, *layers = weights.values()

    def loss() -> torch.Tensor:
        h = F.embedding(tokens, table)
        for w in layers:
            h = torch.tanh(F.linear(h, w))
        return h.double().square().mean() + h.double().mean()

    return weights, loss


@native
@pytest.mark.filterwarnings("ignore:this step changed")
@pytest.mark.parametrize("kind", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", variants_slow(CASES, HEAVY), ids=lambda c: c.id)
def test_a_step_allocates_no_more_than_a_tile(case, kind: str, small_blocks) -> None:
    """d = 2^20: after slots are there, no new storage is larger than a chunk or tile in float32, Python's included."""
    dtype, rounding = DTYPES[kind]
    weights, loss = four_layers(dtype, isinstance(case.method().space, PositiveOrthant))
    run = Run(case.store(weights, rounding), case.widened(1e9), 0)
    whole_leaf = run.method.rule.whole_leaf
    # a rule of whole matrices says so, and may hold one of them in float64
    most = 8 * SIDE * SIDE if whole_leaf else 4 * SMALL
    with LargestNewStorage():
        run.step(sequential(loss))  # what is imported or tabled once in a process is not the step's
    tracemalloc.start()
    try:
        with LargestNewStorage() as largest:
            run.step(sequential(loss))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert largest.bytes <= most, f"{largest.bytes} bytes made by {largest.made_by}"
    assert peak < 1 << 20, "NumPy and Python objects: far below one byte a weight"


def test_the_guard_sees_a_copy_of_the_weights() -> None:
    """The measure is not blind: a clone of a leaf shows."""
    with LargestNewStorage() as largest:
        torch.zeros(SIDE, SIDE).clone()
    assert largest.bytes == 4 * SIDE * SIDE


# ---- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:this step changed")
@pytest.mark.parametrize(
    ("case", "kind"),
    in_turn(CASES, ("float32", "bfloat16-split", "float64", "bfloat16", "float16"), (lambda c: c.id, str)),
)
def test_the_size_of_blocks_does_not_matter(case, kind: str, monkeypatch) -> None:
    """CHUNK in {1, 7, 64, all}: the same records, bit for bit the same weights and slots."""
    dtype, rounding = DTYPES[kind]
    found = set()
    for chunk in (1, 7, 64, 1 << 18):
        monkeypatch.setattr(Leaf, "block", chunk)
        weights = case.tensors(dtype, (9, 11), (5,), (40,))
        run = Run(case.store(weights, rounding), case.widened(50.0), 1)
        records = records_of(run, values_oracle, 3)
        found.add((digest(run.store.state_dict()), tuple(r.losses for r in records), tuple(r.moved for r in records)))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_size_of_tiles_changes_the_loss_by_rounding_only(dtype, monkeypatch) -> None:
    """A matrix product in tiles of rows: each row is the same dot product, up to the order of its sum."""
    torch.manual_seed(0)
    w = torch.randn(37, 24, dtype=torch.float64).to(dtype)
    bias = torch.randn(37, dtype=torch.float64).to(dtype)
    x = torch.randn(2, 5, 24, dtype=torch.float64).to(dtype)
    store = Store({"w": w, "bias": bias})
    point = 0.01 * Run(store, CASES[0].method(mu=1.0), 0).ask()[0].at
    out = []
    for tile in (1, 24, 100, 1 << 20):
        monkeypatch.setattr(stores_lens, "TILE", tile)
        with torch.no_grad(), store.at(point):
            out.append(F.linear(x, w, bias))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2.0**-6}[dtype]
    for other in out[1:]:
        assert other.shape == out[0].shape
        torch.testing.assert_close(other, out[0], rtol=tolerance, atol=tolerance)


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:this step changed")
@pytest.mark.parametrize(
    ("case", "kind"), in_turn(CASES, ("float32", "bfloat16", "bfloat16-split"), (lambda c: c.id, str))
)
def test_the_number_of_threads_does_not_matter(case, kind: str, restored_threads) -> None:
    """The same losses give the same bits with one, two and three threads."""
    dtype, rounding = DTYPES[kind]
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights = case.tensors(dtype, (700, 300), (1000,))
        run = Run(case.store(weights, rounding), case.widened(1e9), 1)
        while run.step_number < 2:
            told = [arbitrary_loss(k) for k in range(len(run.ask()))]
            run.tell(told)
        found.add(digest(run.store.state_dict()))
    assert len(found) == 1


def arbitrary_loss(k: int) -> float:
    return 1.0 + 2.0**-8 * ((5 * k) % 7)


def test_the_split_into_leaves_is_part_of_the_address() -> None:
    """The order of the tensors names the directions: two orders are two runs, each as good as the other."""
    weights = tensors(torch.float64)
    forth, back = Store(weights), Store(dict(reversed(weights.items())))
    assert [leaf.name for leaf in forth.leaves] == list(weights)
    assert [leaf.name for leaf in back.leaves] == list(reversed(weights))
    run = Run(forth, CASES[0].method(), 0), Run(back, CASES[0].method(), 0)
    losses = [values_oracle(r.store, r.ask(), 0) for r in run]
    assert losses[0] != losses[1]


def test_other_tensors_do_not_change_the_direction_of_a_leaf() -> None:
    """Leaf number and element index alone address the noise: appending a tensor leaves the earlier ones alone."""
    few, many = tensors(torch.float64, (6, 5)), tensors(torch.float64, (6, 5), (4,))
    seen = []
    for weights in (few, many):
        store = Store(weights)
        query = Run(store, CASES[0].method(mu=0.5), 4).ask()[0]
        out = torch.empty(30, dtype=torch.float64)
        seen.append(store.point_(out, store.leaves[0], query.at).clone())
    assert torch.equal(*seen)


@native
def test_workspace_is_made_once() -> None:
    """From the second step on, no tensor of a block's size is made at all by a step without slots."""
    weights = tensors(torch.float32, (SIDE, SIDE))
    run = Run(Store(weights), CASES[0].method(), 0)

    def told() -> None:
        run.tell([arbitrary_loss(k) for k in range(len(run.ask()))])

    told()
    with LargestNewStorage() as largest:
        told()
    assert largest.bytes == 0
