"""Law: points evaluated in one forward have the losses that they have one at a time, to rounding, in every model."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zograd import methods
from zograd.core.query import Query
from zograd.core.run import Method, Record, Run
from zograd.core.vector import Noise, Vector
from zograd.estimators import Central, Forward
from zograd.laws import Gaussian, LowRank, Rademacher, RankOne
from zograd.lens import lens as stores_lens
from zograd.lens.branches import LARGE
from zograd.lens.lens import Lens
from zograd.llm.scoring.loss import causal_losses
from zograd.noise import Kind
from zograd.oracles import batched, sequential
from zograd.rules import SGD
from zograd.spaces import PositiveOrthant
from zograd.stores import Rate, Store
from zograd.stores.deferred import LIMIT as MERGE

LAWS = [Rademacher(), Gaussian(), RankOne(), LowRank(2, 1)]
by_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
IDS = torch.tensor([[1, 4, 2, 7, 9], [0, 3, 3, 5, 8], [6, 2, 2, 1, 0]])
SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(tied: bool = True) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=tied))


def gemma() -> nn.Module:
    """Norms of (1 + w) in float32, embeddings scaled, logits capped."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    more = {"num_key_value_heads": 2, "head_dim": 4, "query_pre_attn_scalar": 4, "final_logit_softcapping": 5.0}
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **more))


def gpt2() -> nn.Module:
    """Conv1D layers (x W with W transposed), learned positions that all rows share, LayerNorm with biases."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=32))


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=64, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4,
            word_embed_proj_dim=16, max_position_embeddings=32, dropout=0.0,
        )
    )  # fmt: skip


def phi() -> nn.Module:
    """A head with a bias."""
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(PhiConfig(**SMALL, num_key_value_heads=2))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**SMALL, max_position_embeddings=32))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.second, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.first(x))) * self.scale.exp()
        return self.last(torch.relu(self.second(h[:, None])).amax((2, 3)))


def causal(model: nn.Module) -> Callable[[int], Tensor]:
    def losses(n: int) -> Tensor:
        logits = model(input_ids=IDS.repeat(n, 1), attention_mask=torch.ones_like(IDS).repeat(n, 1)).logits
        targets = IDS[:, 1:].repeat(n, 1)
        each = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none")
        return each.view(n, -1).mean(1)

    return losses


def tiled(model: nn.Module) -> Callable[[int], Tensor]:
    """The logits of one tile of the vocabulary at a time."""
    return lambda n: causal_losses(model, IDS, copies=n)


def images(model: nn.Module) -> Callable[[int], Tensor]:
    def losses(n: int) -> Tensor:
        x = torch.linspace(-1, 1, 90).view(3, 3, 10).to(next(model.parameters()).dtype)
        return model(x.repeat(n, 1, 1)).square().view(n, -1).mean(1)

    return losses


MODELS: dict[str, Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]] = {
    name: (lambda make=make, loss=loss: (model := make().eval(), loss(model)))
    for name, make, loss in [
        ("llama", llama, causal), ("untied", lambda: llama(False), causal), ("gemma", gemma, causal),
        ("gpt2", gpt2, causal), ("opt", opt, causal), ("phi", phi, tiled),
        ("bert", bert, causal), ("convolutions", Convolutions, images),
    ]
}  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[nn.Module, Callable[[int], Tensor]]:
    torch.manual_seed(seed)
    model, losses = MODELS[name]()
    model.to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model, losses


def queries(store: Store, law: object, n: int = 3, mu: float = 2.0**-4) -> list[Query]:
    """The centre, n points around it, and the mirror image of the last."""
    run = Run(store, Method(Forward(n), law, SGD(), mu=mu, lr=1e-3), 5)  # type: ignore[arg-type]
    points = list(run.ask())
    run.abandon()
    return [*points, Query(-points[-1].at)]


@by_law
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_one_at_a_time(name: str, law: object) -> None:
    """Five points together, to 1e-11 in float64; in groups of two, and of three, the same."""
    model, losses = made(name)
    store = Store(dict(model.named_parameters()))
    asked = queries(store, law)
    expected = sequential(lambda: losses(1).sum())(store, asked, 3)
    assert len({round(f, 9) for f in expected}) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for together in (2, 3, 8):
            oracle = batched(losses, together)
            assert oracle(store, asked, 3) == pytest.approx(expected, rel=1e-11)
            assert oracle(store, asked, 3) == pytest.approx(expected, rel=1e-11)  # without the first check
            assert oracle.together == together  # type: ignore[attr-defined]


@by_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses_in_low_precision(dtype: torch.dtype, law: object) -> None:
    """To 1e-5 relative in float32, to the precision of the format in bfloat16."""
    model, losses = made("llama", dtype)
    store = Store(dict(model.named_parameters()))
    asked = queries(store, law)
    expected = sequential(lambda: losses(1).sum())(store, asked, 3)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert batched(losses, 8)(store, asked, 3) == pytest.approx(expected, rel=tolerance)


def test_a_partly_trained_model_and_a_curved_space() -> None:
    """Weights outside of the selection are one for all branches; on the orthant points are exponentials."""
    model, losses = made("llama")
    trained = {n: p for n, p in model.named_parameters() if "mlp" in n or "norm" in n}
    for p in trained.values():
        p.data.abs_()
    store = Store(trained, space=PositiveOrthant())
    run = Run(store, Method(Forward(3), Rademacher(), SGD(), PositiveOrthant(), mu=0.05, lr=1e-3), 5)
    asked = run.ask()
    expected = sequential(lambda: losses(1).sum())(store, asked, 3)
    assert batched(losses, 8)(store, asked, 3) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_dropout_masks_are_shared(name: str) -> None:
    """In train mode all branches draw the masks that one alone would draw."""
    model, losses = made(name)
    model.train()
    model.config.attention_dropout = 0.0
    for m in model.modules():
        if hasattr(m, "attention_dropout"):
            m.attention_dropout = 0.0
        if hasattr(m, "dropout") and isinstance(m.dropout, float):
            m.dropout = 0.3 if name == "opt" and hasattr(m, "fc1") else 0.0
    store = Store(dict(model.named_parameters()))
    asked = queries(store, Rademacher())
    expected = sequential(lambda: losses(1).sum())(store, asked, 3)
    oracle = batched(losses, 8)
    assert oracle(store, asked, 3) == pytest.approx(expected, rel=1e-11)
    assert oracle.together == 8  # type: ignore[attr-defined]
    assert oracle.draws == (name == "opt")  # type: ignore[attr-defined]


class Mixing(nn.Module):
    """Batch normalisation in train mode: an example's value depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)).relu()


class Transposing(nn.Module):
    """Uses a weight with no activation beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.weight - self.weight.T) @ x[..., None]


@pytest.mark.parametrize("make", [Mixing, Transposing])
def test_a_model_that_cannot_be_split_is_evaluated_one_at_a_time(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(6, 3, dtype=torch.float64)

    def losses(n: int) -> Tensor:
        return model(x.repeat(n, 1)).square().view(n, -1).mean(1)

    store = Store(dict(model.named_parameters()))
    asked = queries(store, Rademacher(), mu=0.3)
    expected = sequential(lambda: losses(1).sum())(store, asked, 3)
    oracle = batched(losses, 8)
    with pytest.warns(UserWarning, match="one at a time"):
        assert oracle(store, asked, 3) == pytest.approx(expected, rel=1e-12)
    assert oracle(store, asked, 3) == pytest.approx(expected, rel=1e-12)


@by_law
def test_training_in_branches_follows_training_one_at_a_time(law: object) -> None:
    """Ten steps with two points a forward, moves made in passing: the weights to 1e-9; queries write nothing."""
    ends = []
    for way in ("alone", "together"):
        model, losses = made("llama")
        store = Store(dict(model.named_parameters()))
        run = Run(store, Method(Central(2), law, SGD(), mu=2.0**-6, lr=1e-4), 3)  # type: ignore[arg-type]
        oracle = sequential(lambda losses=losses: losses(1).sum()) if way == "alone" else batched(losses, 4)
        with store.deferring():
            for _ in range(10):
                run.step(oracle)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert (
        (ends[0] - ends[1]).abs().max()
        < 1e-9
        < (ends[0] - torch.cat([p.detach().flatten() for p in made("llama")[0].parameters()])).abs().max()
    )


@by_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moves_in_passing_have_the_same_bits(dtype: torch.dtype, law: object) -> None:
    """Weights after each step, losses and the share of changed weights (of the step before)."""
    trails = []
    for lazy in (False, True):
        model, losses = made("llama", dtype)
        store = Store(dict(model.named_parameters()))
        run = Run(store, Method(Central(), law, SGD(), mu=2.0**-6, lr=1e-2, weight_decay=0.1), 3)  # type: ignore[arg-type]
        oracle = sequential(lambda losses=losses: losses(1).sum())
        trail = []
        if lazy:
            with store.deferring():
                trail = [run.step(oracle) for _ in range(4)]
        else:
            trail = [run.step(oracle) for _ in range(4)]
        trails.append(([r.losses for r in trail], [r.moved for r in trail], store.digest()))
    assert trails[0][0] == trails[1][0]
    assert trails[0][2] == trails[1][2]
    if not isinstance(law, LowRank):  # moved block by block, at once
        assert trails[0][1][:3] == trails[1][1][1:]


@by_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_moves_in_the_pass_that_makes_a_pair_have_the_same_bits(dtype: torch.dtype, law: object) -> None:
    """Both sides of a pair in one forward; one that fails in the middle leaves moves made, and can be repeated."""
    trails = []
    for lazy in (False, True):
        model, losses = made("llama", dtype)
        store = Store(dict(model.named_parameters()))
        method = Method(Central(), law, SGD(), mu=2.0**-6, lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]
        run = Run(store, method, 3)
        oracle = batched(losses, 2)
        trail = []
        with store.deferring() if lazy else nullcontext():
            for step in range(4):
                if step == 2:
                    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        run.step(oracle)
                    hook.remove()
                trail.append(run.step(oracle))
        trails.append(([r.losses for r in trail], store.digest()))
    assert trails[0] == trails[1]


def test_bad_use_is_refused() -> None:
    model, losses = made("llama")
    store = Store(dict(model.named_parameters()))
    with pytest.raises(ValueError, match="together=0"):
        batched(losses, 0)
    asked = queries(store, Rademacher())
    with pytest.raises(ValueError, match=r"expected \[4\]"):
        batched(lambda n: losses(n).sum(), 4)(store, asked, 3)
    with pytest.raises(TypeError, match="terms of a finite sum"):
        batched(losses)(store, [Query(Vector(), rows=(0,))], 3)


def test_a_branch_that_is_not_finite_leaves_the_others_alone() -> None:
    model, losses = made("llama")
    store = Store(dict(model.named_parameters()))
    asked = queries(store, RankOne())
    far = Query(asked[1].at * 1e300)
    values = batched(losses, 8)(store, [asked[0], far, asked[2]], 3)
    expected = sequential(lambda: losses(1).sum())(store, [asked[0], asked[2]], 3)
    assert values[::2] == pytest.approx(expected, rel=1e-11)
    assert not math.isfinite(values[1])


# ---- the lens by class -----------------------------------------------------------------------------------------------


def test_parameters_have_their_class_back_whatever_happens() -> None:
    model, _losses = made("llama")
    plain = torch.ones(2, dtype=torch.float64)
    store = Store({**dict(model.named_parameters()), "plain": plain})
    (query,) = queries(store, Rademacher(), 1)[1:2]

    def interrupted() -> None:
        with store.at(query.at):
            assert type(model.lm_head.weight) is not nn.Parameter
            assert isinstance(model.lm_head.weight, nn.Parameter)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    assert type(plain) is Tensor


def test_another_thread_sees_the_weights_as_they_are() -> None:
    model, losses = made("llama")
    store = Store(dict(model.named_parameters()))
    point = queries(store, Rademacher(), 1)[1].at
    with torch.no_grad():
        here = float(losses(1))
        seen: list[float] = []
        with store.at(point):
            moved = float(losses(1))

            def look() -> None:
                with torch.no_grad():
                    seen.append(float(losses(1)))

            other = threading.Thread(target=look)
            other.start()
            other.join()
    assert seen == [here] != [moved]


def test_a_lens_within_a_lens() -> None:
    """Two stores of one model, one within the other: each shows its own weights."""
    model, losses = made("llama")
    named = dict(model.named_parameters())
    first = Store({n: p for n, p in named.items() if "mlp" in n})
    second = Store({n: p for n, p in named.items() if "mlp" not in n})
    a, b = queries(first, Rademacher(), 1)[1].at, queries(second, Rademacher(), 1)[1].at
    with torch.no_grad():
        with first.at(a), second.at(b):
            both = float(losses(1))
        for store, point in ((first, a), (second, b)):
            for leaf in store.leaves:
                store.point_(leaf.flat, leaf, point)
        assert both == pytest.approx(float(losses(1)), rel=1e-13)
    assert {type(p) for p in model.parameters()} == {nn.Parameter}


def test_everywhere_and_by_class_are_the_same() -> None:
    model, losses = made("gpt2")
    store = Store(dict(model.named_parameters()))
    point = queries(store, Gaussian(), 1)[1].at
    values = []
    for everywhere in (False, True):
        with torch.no_grad(), Lens(store, point, everywhere=everywhere):
            values.append(float(losses(1)))
    assert values[0] == values[1]


# ---- losses over a vocabulary ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gemma, gpt2, phi])
def test_causal_losses_are_those_of_transformers(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In tiles of the vocabulary that do not divide it, with labels that do not count."""
    monkeypatch.setattr("zograd.lens.lens.TILE", 16 * 10)
    torch.manual_seed(0)
    model = make().eval()
    labels = IDS.clone()
    labels[1, :3] = -100
    with torch.no_grad():
        expected = float(model(input_ids=IDS, labels=labels).loss)
        assert causal_losses(model, IDS, labels).tolist() == pytest.approx([expected], rel=1e-5)
        assert causal_losses(model, IDS, labels, copies=3).tolist() == pytest.approx([expected] * 3, rel=1e-5)


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference tensors"])
def test_a_large_layer_of_few_rows_sees_what_its_input_has_become(inference: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w, u = (0.02 * torch.randn(1024, 600, generator=generator) for _ in range(2))
    assert w.numel() >= LARGE
    data = torch.randn(5, 600, generator=generator)

    def losses(copies: int) -> Tensor:
        with torch.inference_mode(inference):
            x = data.repeat(copies, 1)
            y = F.linear(x, w)
            z = F.linear(x, u)
            x.mul_(2.0)
            z = z + F.linear(x, u)
            return (y * z).view(copies, -1).square().mean(1)

    store = Store({"w": w, "u": u})
    v = Vector(((Noise(Kind.SIGN, 7), 2.0**-6),))
    asked = [Query(v), Query(-v)]
    found = batched(losses, 2)(store, asked, 3)
    assert found == pytest.approx(sequential(lambda: losses(1).sum())(store, asked, 3), rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("cut", [3, 8, 11])
@pytest.mark.parametrize("together", [1, 2])
def test_a_resumed_run_has_the_losses_of_one_that_goes_on_to_the_bit(together: int, cut: int) -> None:
    """Rank one, whose moves wait: the first step after resuming compares both ways and makes none of them."""

    def made() -> tuple[Store, Run, Callable[[int], Tensor]]:
        generator = torch.Generator().manual_seed(0)
        w, u = (0.05 * torch.randn(*shape, generator=generator) for shape in ((400, 300), (50, 400)))
        b, x = torch.zeros(400), torch.randn(6, 300, generator=generator)

        def losses(copies: int) -> Tensor:
            y = F.linear(torch.tanh(F.linear(x.repeat(copies, 1), w, b)), u)
            return y.view(copies, -1).square().mean(1)

        store = Store({"w": w, "b": b, "u": u})
        return store, Run(store, methods.make("zo_sgd", lr=1e-3, law=RankOne()), 3), losses

    def steps(store: Store, run: Run, losses: Callable[[int], Tensor]) -> list[Record]:
        oracle, records = batched(losses, together), []
        while run.step_number < 18:
            if run.step_number % MERGE == 0:
                store.make_moves()
            records.append(run.step(oracle))
        return records

    store, run, losses = made()
    with store.deferring(merge=True):
        whole = steps(store, run, losses)
    again, run, losses = made()
    with again.deferring(merge=True):
        run.replay(whole[:cut], since=cut - cut % MERGE)
        assert [r.losses for r in steps(again, run, losses)] == [r.losses for r in whole[cut:]]
    assert again.digest() == store.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_ride_along_whatever_reads_the_weights(dtype: torch.dtype) -> None:
    """Batches of few rows take sides and others tiles, one matrix is read whole: none of it makes the moves."""
    rows = [6, 700, 6, 700, 700, 6, 6, 700, 6, 6]

    def made() -> tuple[Store, Run, Callable[[int], Tensor]]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((80, 60), (9, 80), (5, 60), (2, 80))
        w, u, e, g = (0.05 * torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
        store = Store({"w": w, "u": u, "e": e, "g": g})
        run = Run(store, methods.make("zo_sgd", lr=1e-2, law=RankOne()), 3)

        def losses(copies: int) -> Tensor:
            n = rows[run.step_number]
            ids = torch.arange(n).remainder(5).repeat(copies)
            x = F.embedding(ids, e) + torch.linspace(-1, 1, n, dtype=dtype).repeat(copies)[:, None]
            y = F.linear((torch.tanh(F.linear(x, w)).view(-1, 2, 80) * torch.exp(g)).sum(1), u)
            return y.view(copies, -1).square().mean(1)

        return store, run, losses

    def steps(store: Store, run: Run, losses: Callable[[int], Tensor]) -> list[Record]:
        oracle, records = batched(losses, 2), []
        while run.step_number < len(rows):
            if run.step_number % MERGE == 0:
                store.make_moves()
            records.append(run.step(oracle))
        return records

    store, run, losses = made()
    before = [leaf.tensor.clone() for leaf in store.leaves]
    with store.deferring(merge=True):
        whole = steps(store, run, losses)
    for cut in range(1, len(rows)):
        again, run, losses = made()
        assert all(map(torch.equal, before, [leaf.tensor for leaf in again.leaves]))
        with again.deferring(merge=True):
            run.replay(whole[:cut], since=cut - cut % MERGE)
            assert [r.losses for r in steps(again, run, losses)] == [r.losses for r in whole[cut:]]
        assert again.digest() == store.digest()


# ---- moves that wait, and what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fails_at", range(1, 9))
def test_a_forward_that_raises_within_a_matrix_leaves_no_move_half_made(
    fails_at: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move is made in passing, tile after tile: what is left of it when the forward breaks off is made then.

    8 products of tiles a forward, the n-th of which raises: weights, and losses from there on, are those of a run
    that never waited and never failed.
    """
    monkeypatch.setattr(stores_lens, "TILE", 64)
    x = torch.linspace(-1, 1, 24).view(3, 8).to(dtype)

    def made() -> tuple[Store, Run, Callable[[int], Tensor]]:
        w = torch.linspace(-1, 1, 256).view(32, 8).to(dtype)
        losses = lambda n: F.linear(x.repeat(n, 1), w).double().square().view(n, -1).mean(1)  # noqa: E731
        store = Store({"w": w})
        return store, Run(store, methods.zo_sgd(lr=0.1, mu=2.0**-4, weight_decay=0.1), 3), losses

    store, run, losses = made()
    oracle = batched(losses, 2)
    judged = [run.step(oracle).losses for _ in range(4)]

    again, other, losses = made()
    oracle, calls, real = batched(losses, 2), [0], torch.mm

    def breaks(*args: Any, **named: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == fails_at:
            raise ZeroDivisionError("within a matrix")
        return real(*args, **named)

    found = []
    with again.deferring():
        for step in range(4):
            if step == 2:
                with monkeypatch.context() as broken:
                    broken.setattr(torch, "mm", breaks)
                    with pytest.raises(ZeroDivisionError):
                        other.step(oracle)
                assert calls[0] == fails_at
            found.append(other.step(oracle).losses)
    assert found == judged
    assert again.digest() == store.digest()


@pytest.mark.parametrize("done", [0, 1, 7, 128, 256])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_passing_leaves_of_a_move_is_made(done: int, error: type[BaseException] | None) -> None:
    """The first `done` elements are moved by whoever passes, the rest at the end, whatever ends it."""
    ends = []
    for lazy in (False, True):
        w = torch.linspace(-1, 1, 256).view(32, 8)
        store = Store({"w": w})
        with store.deferring() if lazy else nullcontext():
            store.iterate([Rate(0.1, 0.5)], 1).step_(Vector(((Noise(Kind.NORMAL, 3), 1.0),)))
            if lazy:
                with pytest.raises(error) if error else nullcontext(), store.deferred.fused(store.leaves[0]) as move:
                    if done:
                        move.pair(torch.empty(done), torch.empty(done), [])
                    if error:
                        raise error
                assert not store.deferred._pending
        ends.append(store.digest())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("together", [1, 2])
def test_moves_with_weight_decay_do_not_ride_along(dtype: torch.dtype, together: int) -> None:
    """A side c u v^T added to x W^T knows no decay of W: such moves are made at once, to the bits of a run that
    never waits."""
    x = torch.linspace(-1, 1, 48).view(4, 12).to(dtype)
    ends = []
    for lazy in (False, True):
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(20, 12, generator=generator).to(dtype)
        store = Store({"w": w})
        run = Run(store, methods.zo_sgd(lr=1e-2, law=RankOne(), weight_decay=5.0), 3)
        oracle = batched(lambda n, w=w: F.linear(x.repeat(n, 1), w).double().square().view(n, -1).mean(1), together)
        with store.deferring(merge=True) if lazy else nullcontext():
            records = [run.step(oracle) for _ in range(6)]
        ends.append(([r.losses for r in records], store.digest()))
    assert ends[0] == ends[1]


def test_blocks_of_experts_fall_back_with_a_sentence_that_users_understand() -> None:
    """Their weights of three axes are transposed before they meet an input."""
    experts = nn.Parameter(torch.randn(2, 3, 4))
    x = torch.randn(5, 3)

    def loss(n: int) -> torch.Tensor:
        rows = x.repeat(n, 1)
        out = rows @ experts.transpose(1, 2)[0].T + rows @ experts.transpose(1, 2)[1].T
        return out.square().view(n, -1).mean(1)

    run = Run(Store({"experts": experts}), methods.zo_sgd(lr=1e-3), seed=0)
    says = (
        r"^points are evaluated one at a time, not in one forward of this model: its forward calls torch's transpose "
        r"of a trained weight without an input beside it, as blocks of experts do\. The losses are those of one "
        r"at a time, and a step takes longer$"
    )
    with pytest.warns(UserWarning, match=says):
        run.step(batched(loss))
