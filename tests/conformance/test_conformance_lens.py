"""Law of the lens: inside of `store.at(point)` every reader sees Retr_x(point), whatever it is and however it reads.

The judge is a deep copy of the module whose weights were set with `Store.point_`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problems import digest
from torch import Tensor, nn

from zograd import methods
from zograd.core.run import Run
from zograd.core.vector import Slot, Vector
from zograd.oracles import sequential
from zograd.spaces import PositiveOrthant
from zograd.stores import Store

MU = 0.05  # large, so that a weight that is read unperturbed shows far above rounding

BATCH = torch.linspace(-1, 1, 60).reshape(4, 3, 5)
TOKENS = torch.tensor([[1, 4, 2, 7], [0, 3, 3, 5]])


class Tied(nn.Module):
    """Embedding and head are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(30, 6), nn.Linear(6, 6), nn.Linear(6, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embed(tokens))))


class Shared(nn.Module):
    """One module in two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Sequential(nn.Tanh(), self.first, nn.LayerNorm(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Borrowed(nn.Module):
    """Weights that are used outside of the module that owns them, in a loop over parameters, and as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.parts = nn.ParameterList([nn.Parameter(torch.full((5,), 0.1 * k)) for k in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.owner.weight.T + self.owner.bias
        y = y * self.scale + torch.stack(list(self.parts)).sum(0)
        return y + 1e-2 * sum(p.pow(2).sum() for p in self.parameters())


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(6, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x[..., :1]], -1)
        return self.inner(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.inner = kind(5, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            nn.ConvTranspose1d(4, 2, 2),
            nn.PReLU(),
            nn.GroupNorm(1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class EncoderLayer(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.cat([x, x[..., :1]], -1))


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
        self.bilinear = nn.Bilinear(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.bilinear(y, y)


def tiny_llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # what peft calls there
        model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return model


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).logits


@dataclass(frozen=True)
class Reader:
    make: Callable[[], nn.Module]
    inputs: Tensor = BATCH
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    train: bool = False


READERS = {
    "mlp": Reader(lambda: nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 2))),
    "convolutions": Reader(Convolutions),
    "attention": Reader(Attention),
    "attention-train": Reader(Attention, train=True),
    "attention-kdim": Reader(lambda: Attention(kdim=6, vdim=6, add_bias_kv=True), train=True),
    "encoder-layer": Reader(EncoderLayer),
    "encoder-layer-train": Reader(lambda: EncoderLayer(dropout=0.0), train=True),
    "encoder-layer-pre": Reader(lambda: EncoderLayer(norm_first=True)),
    "lstm": Reader(lambda: Recurrent(nn.LSTM)),
    "gru": Reader(lambda: Recurrent(nn.GRU)),
    "tied": Reader(Tied, TOKENS),
    "shared": Reader(Shared),
    "borrowed": Reader(Borrowed),
    "weight-norm": Reader(WeightNormed),
    "embedding-bag": Reader(lambda: nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)), TOKENS),
    "llama": Reader(tiny_llama, TOKENS, logits),
    "llama-tied": Reader(lambda: tiny_llama(tied=True), TOKENS, logits),
    "lora": Reader(tiny_lora, TOKENS, logits),
}
by_reader = pytest.mark.parametrize("name", READERS)


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Store]:
    torch.manual_seed(11)
    reader = READERS[name]
    model = reader.make().to(dtype).train(reader.train)
    trained = dict(model.named_parameters())
    if name == "lora":
        trained = {n: p for n, p in trained.items() if p.requires_grad}
    x = reader.inputs.to(dtype) if reader.inputs.is_floating_point() else reader.inputs
    return model, x, Store(trained)


def moved_copy(model: nn.Module, store: Store, point: Vector) -> nn.Module:
    """A deep copy that stands at `point`, by `Store.point_` alone."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            if (leaf := store.by_id.get(id(mine))) is not None:
                store.point_(theirs.data.view(-1), leaf, point)
    return other


def a_point(store: Store, seed: int = 0) -> Vector:
    """A point of two directions, as a method with memory asks for."""
    draw = Run(store, methods.mezo(mu=MU), seed)
    return draw.ask()[0].at + 0.3 * Run(store, methods.zo_sgd(mu=MU), seed + 1).ask()[1].at


@by_reader
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_the_loss_sees_is_what_a_copy_holds(name: str, dtype: torch.dtype) -> None:
    """Outputs equal to 1e-6 relative (float32) and 1e-13 (float64), at two points and at x itself; no leaf escapes."""
    model, x, store = make(name, dtype)
    call, before = READERS[name].call, digest(model)
    tolerance = 2e-6 if dtype == torch.float32 else 1e-13
    with torch.no_grad():
        plain = call(model, x)
        for point in (a_point(store), a_point(store, 5), Vector()):
            with store.at(point):
                seen = call(model, x)
            assert store.settled(), "a leaf was read past the lens"
            expected = call(moved_copy(model, store, point), x)
            torch.testing.assert_close(seen, expected, rtol=tolerance, atol=tolerance)
            if point:
                assert (seen - plain).abs().max() > 1e-3, "the point changed nothing, so nothing was compared"
    assert digest(model) == before


@by_reader
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_16_bits_too_up_to_their_rounding(name: str, dtype: torch.dtype) -> None:
    """Gains and biases are shown in float32 where a copy rounds them, so only the order of rounding is compared.

    The judge is a float64 copy: the lens is no farther from it than a 16-bit copy is, times three.
    """
    if name in ("lstm", "gru") and dtype == torch.float16:
        pytest.skip("torch has no float16 recurrent cells on the CPU")
    model, x, store = make(name, dtype)
    call, before = READERS[name].call, digest(model)
    point = a_point(store)
    with torch.no_grad():
        with store.at(point):
            seen = call(model, x)
        other = moved_copy(model, store, point)
        rounded = call(other, x)
        exact = call(other.double(), x.double() if x.is_floating_point() else x)
    assert seen.dtype == rounded.dtype == dtype
    scale = float(exact.abs().max())
    own = float((rounded.double() - exact).abs().max())
    assert float((seen.double() - exact).abs().max()) <= 3 * own + 8 * torch.finfo(dtype).eps * scale
    assert digest(model) == before


@by_reader
def test_every_reader_can_be_trained(name: str) -> None:
    """Three steps through `sequential`, the same losses as with copies, and the weights move."""
    model, x, store = make(name, torch.float64)
    call, before = READERS[name].call, digest(model)
    run = Run(store, methods.zo_sgd(lr=1e-3, mu=1e-3), 0)

    def by_copies(s: Store, queries, key: int) -> list[float]:
        with torch.no_grad():
            return [float(call(moved_copy(model, s, q.at), x).square().mean()) for q in queries]

    for _ in range(3):
        expected = by_copies(store, run.ask(), 0)
        record = run.step(sequential(lambda: call(model, x).square().mean()))
        np.testing.assert_allclose(record.losses, expected, rtol=1e-12)
    assert digest(model) != before


# ---- one torch function at a time ------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda w, x: F.linear(x, w),
    "linear-keywords": lambda w, x: F.linear(input=x, weight=w),
    "linear-3d": lambda w, x: F.linear(x.expand(3, 2, 4), w),
    "linear-one-row": lambda w, x: F.linear(x, w[0]),
    "matmul": lambda w, x: x @ w.T,
    "matmul-left": lambda w, x: w @ x.T,
    "mT": lambda w, x: x @ w.mT,
    "H": lambda w, x: x @ w.H,
    "mH": lambda w, x: x @ w.mH,
    "real": lambda w, x: w.real + 0.0,
    "addmm": lambda w, x: torch.addmm(torch.zeros(3), x, w.t()),
    "einsum": lambda w, x: torch.einsum("bi,oi->bo", x, w),
    "data": lambda w, x: x @ w.data.T,
    "detach": lambda w, x: x @ w.detach().T,
    "clone": lambda w, x: w.clone(),
    "detach-alone": lambda w, x: w.detach(),
    "data-alone": lambda w, x: w.data,
    "view": lambda w, x: w.view(-1),
    "transpose": lambda w, x: w.t(),
    "index": lambda w, x: w[1],
    "iterate": lambda w, x: sum(row.sum() for row in w),
    "unbind": lambda w, x: torch.stack(w.unbind(0)),
    "cat": lambda w, x: torch.cat([w, w]),
    "cat-keywords": lambda w, x: torch.cat(tensors=[w, w]),
    "stack-tuple": lambda w, x: torch.stack((w, w)),
    "where": lambda w, x: torch.where(w > 0, w, -w),
    "sum": lambda w, x: w.sum(),
    "norm": lambda w, x: torch.linalg.vector_norm(w),
    "float": lambda w, x: w.float() + 0.0,
    "to": lambda w, x: w.to(torch.float32) + 0.0,
    "type": lambda w, x: w.type(torch.float64),
    "type_as": lambda w, x: w.type_as(x.double()),
    "double": lambda w, x: w.double(),
    "item": lambda w, x: torch.tensor(w[0, 0].item()),
    "tolist": lambda w, x: torch.tensor(w.tolist()),
    "numpy": lambda w, x: torch.from_numpy(w.detach().numpy() * 2),
    "asarray": lambda w, x: torch.from_numpy(np.asarray(w.detach()) * 2),
    "multiply": lambda w, x: 2 * w * x[0],
    "negate": lambda w, x: -w,
    "compare": lambda w, x: (w > 0.1).float(),
    "softmax": lambda w, x: F.softmax(w, -1),
    "foreach": lambda w, x: torch.stack(torch._foreach_mul([w, w], 2.0)),
    "deepcopy": lambda w, x: copy.deepcopy(w) * 1.0,
    "embedding-few": lambda w, x: F.embedding(torch.tensor([2, 0]), w),
    "embedding-many": lambda w, x: F.embedding(torch.tensor([2, 0, 1, 1, 2]), w),
    "embedding-int32": lambda w, x: F.embedding(torch.tensor([[2]], dtype=torch.int32), w),
    "vmap": lambda w, x: torch.func.vmap(lambda row: F.linear(row, w))(x),
    "functional-call": lambda w, x: torch.func.functional_call(nn.Linear(4, 3, bias=False), {"weight": w}, (x,)),
    "as-input": lambda w, x: F.linear(w, x),
    "out": lambda w, x: torch.mul(w, 2.0, out=torch.empty(3, 4)),
    "inference-mode": lambda w, x: in_inference_mode(lambda: F.linear(x, w).sum()),
}


def in_inference_mode(f: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode():
        value = float(f())
    return torch.tensor(value)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_read_a_weight_reads_the_point(way: str) -> None:
    """One parameter, one torch function: the value under the lens is the value of a moved copy, at a point and at x."""
    torch.manual_seed(3)
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(2, 4)
    store = Store({"w": w})
    for point in (a_point(store), Vector()):
        there = torch.empty(12)
        store.point_(there, store.leaves[0], point)
        there = there.view(3, 4)
        with torch.no_grad():
            expected = WAYS[way](there, x)
            with store.at(point):
                seen = WAYS[way](w, x)
        torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-6)
        assert store.settled()


@pytest.mark.parametrize("way", WAYS)
def test_what_a_loss_does_to_what_it_read_never_reaches_the_weight(way: str) -> None:
    """Overwriting the value that came out of the lens leaves no trace, at x itself neither."""
    torch.manual_seed(3)
    w, x = nn.Parameter(torch.randn(3, 4)), torch.randn(2, 4)
    store, before = Store({"w": w}), w.detach().clone()
    for point in (a_point(store), Vector()):
        with torch.no_grad(), store.at(point):
            WAYS[way](w, x).fill_(7.0)
        assert torch.equal(w.detach(), before)


def test_shape_questions_get_the_answers_of_the_weight() -> None:
    w = nn.Parameter(torch.randn(3, 4))
    store = Store({"w": w})
    with store.at(a_point(store)):
        assert (w.shape, w.size(0), w.ndim, len(w), w.numel(), w.dtype) == ((3, 4), 3, 2, 3, 12, torch.float32)
        assert w.device.type == "cpu"
        assert w.is_contiguous()
        assert w.stride() == (4, 1)
        assert torch.empty_like(w).shape == (3, 4)
        assert w.type() == "torch.FloatTensor"
        assert w.requires_grad
    assert not store.seen, "a question about the shape is no sight of the values"


def test_a_linear_layer_of_one_output_may_have_a_vector_for_its_weight() -> None:
    """torch allows F.linear(x, w) with w of shape (in,)."""
    w, x = nn.Parameter(torch.randn(4)), torch.randn(2, 4)
    store = Store({"w": w})
    point = a_point(store)
    there = store.point_(torch.empty(4), store.leaves[0], point)
    with torch.no_grad(), store.at(point):
        torch.testing.assert_close(F.linear(x, w), x @ there)


def test_gradients_with_respect_to_the_inputs_are_those_of_the_copy() -> None:
    """A loss may differentiate its inputs (a physics-informed residual): layers must not share workspace then."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    store = Store(dict(model.named_parameters()))

    def residual(m: nn.Module) -> Tensor:
        with torch.enable_grad():
            x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
            (slope,) = torch.autograd.grad(m(x).sum(), x)
        return slope.detach()

    for point in (a_point(store), Vector()):
        with torch.no_grad(), store.at(point):
            seen = residual(model)
        torch.testing.assert_close(seen, residual(moved_copy(model, store, point)))


def test_gradients_with_respect_to_the_inputs_through_tiles(monkeypatch) -> None:
    """The same where a layer is larger than a tile."""
    from zograd.lens import lens

    monkeypatch.setattr(lens, "TILE", 8)
    test_gradients_with_respect_to_the_inputs_are_those_of_the_copy()


@pytest.mark.parametrize("name", ["zo_sgd", "fzoo"])
def test_autocast_around_the_loop_reads_fresh_weights(name: str) -> None:
    """autocast caches 16-bit casts of parameters until it is left: the cache must not outlive a move."""
    torch.manual_seed(2)
    x = torch.randn(3, 5)
    around, inside = nn.Linear(5, 2), nn.Linear(5, 2)
    inside.load_state_dict(around.state_dict())
    method = methods.make(name, lr=0.05, mu=0.05)
    runs = [Run(Store(dict(m.named_parameters())), method, 0) for m in (around, inside)]

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def in_a_fresh_context() -> Tensor:
        with autocast():
            return inside(x).float().square().mean()

    with autocast():
        records = [runs[0].step(sequential(lambda: around(x).float().square().mean())) for _ in range(4)]
    assert [r.losses for r in records] == [runs[1].step(sequential(in_a_fresh_context)).losses for _ in range(4)]


def test_workspace_made_in_inference_mode_can_be_used_outside() -> None:
    """A loss under torch.inference_mode in one query and without it in the next."""
    for space, dtype in ((None, torch.bfloat16), (PositiveOrthant(), torch.float32), (None, torch.float32)):
        w = nn.Parameter((torch.rand(4, 4) + 0.1).to(dtype))
        store = Store({"w": w}, space=space, rounding="split")
        x = torch.ones(2, 4, dtype=dtype)
        point = a_point_for(store)
        with store.at(point), torch.inference_mode():
            first = F.linear(x, w).clone()
        with store.at(point), torch.no_grad():
            second = F.linear(x, w)
        assert torch.equal(first, second)


def a_point_for(store: Store) -> Vector:
    from zograd.laws import Draw, Rademacher

    return MU * Rademacher()(Draw(3, 0, 0, tuple(leaf.shape for leaf in store.leaves), store.gram))


def test_points_may_name_the_iterate_and_slots() -> None:
    """x + (anchor - x) = anchor: how variance reduction evaluates at its anchor."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    store = Store(dict(model.named_parameters()))
    store.require({"anchor": 0.25})
    x = torch.randn(2, 4)
    before = digest(model)
    other = copy.deepcopy(model)
    for p in other.parameters():
        nn.init.constant_(p, 0.25)
    with torch.no_grad(), store.at(Vector(((Slot("anchor"), 1.0), (Slot("x"), -1.0)))):
        torch.testing.assert_close(model(x), other(x))
    assert digest(model) == before
    with (
        pytest.raises(KeyError, match="slot 'velocity', but this store has"),
        store.at(Vector(((Slot("velocity"), 1.0),))),
    ):
        model(x)


def test_the_lens_is_gone_after_the_query() -> None:
    w = nn.Parameter(torch.ones(3))
    store = Store({"w": w})
    with store.at(a_point(store)):
        assert not torch.equal(w.clone(), torch.ones(3))
    assert torch.equal(w.clone(), torch.ones(3))


def test_weights_that_are_not_trained_are_read_as_they_are() -> None:
    trained, frozen = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    store = Store({"trained": trained})
    with store.at(a_point(store)):
        assert torch.equal(frozen + 0, torch.ones(3))
