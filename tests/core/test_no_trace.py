"""Law: a query leaves no trace. Whatever the loss does or raises, weights, buffers and random state are as before, bit
for bit; the step can be taken again and gives what it would have given."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problems import digest
from torch import Tensor, nn

from zograd import methods
from zograd.core.run import Run
from zograd.oracles import sequential
from zograd.stores import Store

# Older transformers checkpoint by re-entry, which complains under no_grad.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOKENS = torch.tensor([[1, 4, 2, 7], [0, 3, 3, 5]])


class Mlp(nn.Module):
    """Three layers, dropout, a norm with buffers in eval, and the first layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.4)
        self.norm.running_mean.normal_()
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(torch.tanh(self.first(x))))
        return self.last(self.drop(self.norm(self.middle(x))))


class TiedAttention(nn.Module):
    """Tied embedding and head around an attention that borrows its output weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.first = self.middle = nn.MultiheadAttention(6, 2, batch_first=True, dropout=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        return self.head(self.middle(h, h, h, need_weights=False)[0])


def llama(checkpointing: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, attention_dropout=0.3, tie_word_embeddings=True,
        )
    )  # fmt: skip
    if checkpointing:  # transformers 5.23 renamed it
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], str]] = {
    "mlp": (Mlp, lambda m: m(torch.linspace(-1, 1, 24).reshape(4, 6).to(m.last.weight.dtype)), "middle"),
    "tied-attention": (TiedAttention, lambda m: m(TOKENS), "middle"),
    "llama": (lambda: llama(False), lambda m: m(input_ids=TOKENS).logits, "model.layers.1.mlp"),
    "llama-checkpointing": (lambda: llama(True), lambda m: m(input_ids=TOKENS).logits, "model.layers.1.mlp"),
}
by_model = pytest.mark.parametrize("name", MODELS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Problem:
    """A model in train mode, its loss, and what must not change."""

    def __init__(self, name: str, dtype: torch.dtype, method: str = "fzoo") -> None:
        torch.manual_seed(4)
        make, self.call, inner = MODELS[name]
        self.model = make().train().to(dtype)
        if name == "mlp":
            self.model.norm.eval()
        self.inner = self.model.get_submodule(inner)
        self.store = Store(dict(self.model.named_parameters()))
        settings = {"mu": 2.0**-6, "lr": 2.0**-7}
        self.run = Run(self.store, methods.make(method, **settings), seed=5)

    def loss(self) -> Tensor:
        return self.call(self.model).float().square().mean()

    def state(self) -> tuple[str, str, bytes]:
        low = {leaf.name: leaf.low for leaf in self.store.leaves if leaf.low is not None}
        return digest(self.model), digest(low), torch.get_rng_state().numpy().tobytes()


# ---- queries ---------------------------------------------------------------------------------------------------------


@by_dtype
@by_model
def test_queries_change_no_bit(name: str, dtype: torch.dtype) -> None:
    """Weights, buffers, low halves and torch's random state after a step's worth of queries, dropout on."""
    p = Problem(name, dtype)
    before = p.state()
    losses = sequential(p.loss)(p.store, p.run.ask(), 12)
    assert len(set(losses)) > 1, "the queries saw the perturbations"
    assert p.state() == before


@by_model
def test_all_queries_of_a_step_see_the_same_dropout(name: str) -> None:
    """f(x) asked twice is the same number; under another key it is another one, so dropout is on."""
    from zograd.core.query import Query

    p = Problem(name, torch.float32)
    first, second = sequential(p.loss)(p.store, [Query(), Query()], 12)
    assert first == second
    assert sequential(p.loss)(p.store, [Query()], 12) == [first]
    assert sequential(p.loss)(p.store, [Query()], 13) != [first]


@by_model
def test_checkpointing_and_eval_do_not_change_the_loss_at_x(name: str) -> None:
    """The loss under the lens at the zero vector is the loss without it."""
    from zograd.core.query import Query

    p = Problem(name, torch.float64)
    torch.manual_seed(12)
    with torch.no_grad():
        plain = float(p.loss())
    (seen,) = sequential(p.loss)(p.store, [Query()], 12)
    assert seen == pytest.approx(plain, rel=1e-12)


def test_the_lens_adds_no_gradients_and_keeps_requires_grad() -> None:
    p = Problem("mlp", torch.float32)
    for q in p.model.middle.parameters():
        q.requires_grad_(False)
    flags = [q.requires_grad for q in p.model.parameters()]
    p.run.step(sequential(p.loss))
    assert [q.requires_grad for q in p.model.parameters()] == flags
    assert all(q.grad is None for q in p.model.parameters())


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_grad_mode_comes_back(grad: bool) -> None:
    p = Problem("mlp", torch.float32)
    with torch.set_grad_enabled(grad):
        p.run.step(sequential(p.loss))
        assert torch.is_grad_enabled() == grad


# ---- losses that raise -----------------------------------------------------------------------------------------------


class Raise:
    """A forward hook that lets `free` calls pass and then raises, once."""

    def __init__(self, error: BaseException, free: int) -> None:
        self.error, self.free = error, free

    def __call__(self, *_: object) -> None:
        self.free -= 1
        if self.free == -1:
            raise self.error


ERRORS = {
    "runtime-error": RuntimeError("broken layer"),
    "keyboard-interrupt": KeyboardInterrupt(),
    "out-of-memory": torch.OutOfMemoryError("simulated: tried to allocate 20 GiB"),
    "system-exit": SystemExit(3),
}


@pytest.mark.parametrize("free", [0, 3])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("when", ["before", "after"])
@by_model
def test_a_loss_that_raises_leaves_no_trace(name: str, when: str, error: str, free: int) -> None:
    """In the first query or a later one, before or after the middle layer: the error passes, nothing else stays."""
    p = Problem(name, torch.bfloat16)
    register = p.inner.register_forward_pre_hook if when == "before" else p.inner.register_forward_hook
    handle = register(Raise(ERRORS[error], free))
    before, state = p.state(), p.run.state_dict()
    with pytest.raises(type(ERRORS[error])):
        p.run.step(sequential(p.loss))
    handle.remove()
    assert p.state() == before
    assert p.run.state_dict() == state
    with torch.no_grad():
        assert torch.isfinite(p.loss())  # no lens is left behind


@by_dtype
@by_model
def test_a_step_can_be_taken_again_after_it_failed(name: str, dtype: torch.dtype) -> None:
    """Failing in the middle of every second step gives the records and weights of the run that never failed."""
    smooth, bumpy = Problem(name, dtype), Problem(name, dtype)
    expected = [smooth.run.step(sequential(smooth.loss)) for _ in range(3)]
    records = []
    for t in range(3):
        if t != 1:
            handle = bumpy.inner.register_forward_hook(Raise(RuntimeError("once"), free=2 + t))
            with pytest.raises(RuntimeError, match="once"):
                bumpy.run.step(sequential(bumpy.loss))
            handle.remove()
        records.append(bumpy.run.step(sequential(bumpy.loss)))
    assert records == expected
    assert digest(bumpy.store.state_dict()) == digest(smooth.store.state_dict())


def test_a_loss_that_returns_nonsense_leaves_no_trace() -> None:
    p = Problem("mlp", torch.float32)
    before = p.state()
    for bad in (None, "high", torch.ones(2), object()):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            p.run.step(sequential(lambda bad=bad: bad))
        assert p.state() == before
        assert p.run.step_number == 0


# ---- weights that are read past torch's functions --------------------------------------------------------------------


def by_address(w: Tensor) -> np.ndarray:
    """The floats at the address of a float32 tensor, as a foreign kernel would read them."""
    pointer = ctypes.cast(w.data_ptr(), ctypes.POINTER(ctypes.c_float))
    return np.ctypeslib.as_array(pointer, shape=(w.numel(),)).astype(np.float64)


def test_weights_read_by_address_are_perturbed_by_copy() -> None:
    """One warning that names them; the losses are those of a loss that reads through torch; the weights come back."""
    torch.manual_seed(0)
    w, v = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))
    before = digest({"w": w, "v": v})
    foreign = Run(Store({"w": w, "v": v}), methods.zo_sgd(n=2), 1)
    plain = Run(Store({"w": w, "v": v}), methods.zo_sgd(n=2), 1)

    def read_by_address() -> float:
        return float((by_address(w) ** 2).sum()) + float(v.double().square().sum())

    expected = sequential(lambda: w.double().square().sum() + v.double().square().sum())(plain.store, plain.ask(), 0)
    with pytest.warns(UserWarning, match=r"did not read 1 of 2 trained tensors .*\(w\).*perturbed by copy"):
        losses = sequential(read_by_address)(foreign.store, foreign.ask(), 0)
    np.testing.assert_allclose(losses, expected, rtol=1e-14)
    assert len(set(losses)) == 4
    assert digest({"w": w, "v": v}) == before
    sequential(read_by_address)(foreign.store, foreign.ask(), 0)  # no second warning: it would be an error here
    assert digest({"w": w, "v": v}) == before


@pytest.mark.filterwarnings("ignore:the loss did not read")
@by_dtype
def test_weights_read_through_an_old_alias_are_perturbed_by_copy(dtype: torch.dtype) -> None:
    """A view taken before the run is not the parameter: found on the first query, exact from then on."""
    torch.manual_seed(0)
    w, other = nn.Parameter(torch.randn(3, 4).to(dtype)), nn.Parameter(torch.randn(3, 4).to(dtype))
    alias = w.detach().view(-1)
    before = digest({"w": w, "other": other})
    run = Run(Store({"w": w, "other": other}), methods.zo_sgd(mu=2.0**-4), 1)
    judge = Run(Store({"w": w, "other": other}), methods.zo_sgd(mu=2.0**-4), 1)

    def f(read: Tensor) -> Callable[[], Tensor]:
        return lambda: read.double().square().sum() + other.double().sum()

    assert sequential(f(alias))(run.store, run.ask(), 0) == sequential(f(w))(judge.store, judge.ask(), 0)
    assert run.store.escaped == {0}
    assert digest({"w": w, "other": other}) == before

    def interrupted() -> float:
        f(alias)()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sequential(interrupted)(run.store, run.ask(), 0)
    assert digest({"w": w, "other": other}) == before


def test_a_weight_read_both_ways_is_perturbed_where_it_lies() -> None:
    """Asking a weight for its address under the lens is enough: both readers then see the same point."""
    w = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    before = digest({"w": w})
    run, judge = (Run(Store({"w": w}), methods.zo_sgd(mu=2.0**-4), 1) for _ in range(2))
    with pytest.warns(UserWarning, match="perturbed by copy"):
        losses = sequential(lambda: by_address(w).sum() + w.double().sum())(run.store, run.ask(), 0)
    np.testing.assert_allclose(
        losses, sequential(lambda: 2 * w.double().sum())(judge.store, judge.ask(), 0), rtol=1e-13
    )
    assert digest({"w": w}) == before


def test_scripted_modules_are_perturbed_by_copy() -> None:
    """TorchScript runs no torch function that a lens could see."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(model)
    store, before = Store(dict(model.named_parameters())), digest(model)
    queries = Run(store, methods.zo_sgd(mu=0.1), 0).ask()
    with pytest.warns(UserWarning, match="did not read 2 of 2"):
        losses = sequential(lambda: scripted(x).square().sum())(store, queries, 0)
    judge = Store(dict(model.named_parameters()))
    np.testing.assert_allclose(losses, sequential(lambda: model(x).square().sum())(judge, queries, 0), rtol=1e-6)
    assert digest(model) == before


def test_a_failed_first_evaluation_says_nothing_about_how_weights_are_read() -> None:
    """A loss that gives up with NaN before its first layer leaves all leaves under the lens, and warns of nothing."""
    p = Problem("mlp", torch.float32)
    assert p.run.step(sequential(lambda: math.nan)).refused
    assert not p.store.escaped
    assert not p.run.step(sequential(p.loss)).refused
    assert not p.store.escaped


def test_a_tensor_that_is_not_used_is_named_once() -> None:
    w, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    run = Run(Store({"w": w, "idle": idle}), methods.zo_sgd(), 0)
    with pytest.warns(UserWarning, match=r"\(idle\): they are unused"):
        run.step(sequential(lambda: w.sum()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.step(sequential(lambda: w.sum()))


def test_the_random_state_of_the_second_look_is_that_of_the_first() -> None:
    """The loss is evaluated once more when a leaf escaped: with the same dropout."""
    w = nn.Parameter(torch.ones(200))
    alias = w.detach()
    run = Run(Store({"w": w}), methods.zo_sgd(mu=2.0**-4), 0)
    judge = Run(Store({"w": w}), methods.zo_sgd(mu=2.0**-4), 0)
    with pytest.warns(UserWarning, match="perturbed by copy"):
        losses = sequential(lambda: F.dropout(alias, 0.5).sum())(run.store, run.ask(), 9)
    assert losses == sequential(lambda: F.dropout(w, 0.5).sum())(judge.store, judge.ask(), 9)


# ---- losses that write -----------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda w: w.add_(1.0),
    "zero_": lambda w: w.zero_(),
    "copy_": lambda w: w.copy_(torch.ones_like(w)),
    "clamp_": lambda w: w.clamp_(-0.1, 0.1),
    "setitem": lambda w: w.__setitem__(0, 3.0),
    "iadd": lambda w: w.__iadd__(1.0),
    "imul": lambda w: w.__imul__(2.0),
    "data-set": lambda w: setattr(w, "data", torch.zeros(3, 4)),
    "init": lambda w: nn.init.normal_(w),
    "out": lambda w: torch.mul(torch.ones(3, 4), 2.0, out=w),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "renorm-embedding": lambda w: F.embedding(torch.tensor([0]), w, max_norm=0.01),
}


@pytest.mark.parametrize("base", [True, False], ids=["at-x", "at-a-point"])
@pytest.mark.parametrize("way", WRITES)
def test_a_loss_that_writes_to_a_weight_is_refused_by_name(way: str, base: bool) -> None:
    """RuntimeError with the tensor's name, nothing written; at x itself (the base point of one-sided methods) too."""
    torch.manual_seed(1)
    w = nn.Parameter(torch.randn(3, 4))
    before = w.detach().clone()
    run = Run(Store({"a.weight": w}), methods.fzoo(), 0)
    query = run.ask()[0 if base else 1]
    assert bool(query.at) != base

    def loss() -> Tensor:
        WRITES[way](w)
        return w.sum()

    with pytest.raises(RuntimeError, match=r"a\.weight"):
        sequential(loss)(run.store, [query], 0)
    assert torch.equal(w.detach(), before)


def test_a_loss_may_write_to_its_own_tensors() -> None:
    """Buffers, workspaces and the targets of copies are the loss's own business."""
    w, buffer, other = nn.Parameter(torch.ones(3)), torch.zeros(3), nn.Parameter(torch.zeros(3))
    run = Run(Store({"w": w}), methods.zo_sgd(mu=0.5), 0)

    def loss() -> Tensor:
        buffer.copy_(w)
        other.data = w
        return (buffer**2).sum() + other.sum()

    plus, minus = sequential(loss)(run.store, run.ask(), 0)
    assert plus != minus
    assert torch.equal(w.detach(), torch.ones(3))


# ---- moves -----------------------------------------------------------------------------------------------------------


@by_dtype
def test_a_refused_step_moves_nothing(dtype: torch.dtype) -> None:
    p = Problem("mlp", dtype)
    before = digest(p.store.state_dict())
    for bad in (float("nan"), float("inf"), -float("inf")):
        record = p.run.step(sequential(lambda bad=bad: p.loss() * 0 + bad))
        assert record.refused
        assert digest(p.store.state_dict()) == before
    assert (p.run.step_number, p.run.refused_in_a_row) == (3, 3)
    assert not p.run.step(sequential(p.loss)).refused
    assert p.run.refused_in_a_row == 0


@pytest.mark.parametrize("name", ["zo_sgd", "zo_adam", "mezo_momentum", "fzoo"])
def test_finite_losses_whose_difference_overflows_refuse_the_step(name: str) -> None:
    """1e308 - (-1e308) is infinite: an estimate that is not finite is a failed evaluation, and never a weight."""
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    run = Run(Store({"w": w}), methods.make(name), 0)
    with np.errstate(all="ignore"):
        told = [(-1.0) ** k * 1.7e308 for k in range(len(run.ask()))]
        record = run.tell(told)
    assert record is not None
    assert torch.isfinite(w).all()
    assert record.refused
    assert list(record.losses) == told, "the record shows what was told"


def test_a_slope_that_overflows_refuses_the_step() -> None:
    """The spread of losses squares them: 1e200 is finite, its square is not, and a division by infinity hides it."""
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    run = Run(Store({"w": w}), methods.fzoo(), 0)
    with np.errstate(all="ignore"):
        record = run.tell([1e200 * (k % 3) for k in range(len(run.ask()))])
    assert record is not None
    assert record.refused
    assert torch.equal(w.detach(), torch.ones(4, dtype=torch.float64))
