"""What users have around a door: seeds of any kind, torch's defaults, losses that are no loss, other random numbers,
frozen and missing weights, accelerate."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import SPACES, inside
from small_problems import CASES, smooth, start
from torch import nn

from zograd import AskTell, Hybrid, Method, Run, Store, ZOOptimizer, diagnostics, methods, minimize
from zograd.distributed import parallel
from zograd.estimators import Central
from zograd.laws import Rademacher, RankOne
from zograd.noise import fold
from zograd.oracles import as_number, batched
from zograd.oracles.feature_reuse import reusing
from zograd.rules import SGD
from zograd.spaces import Domain, Polytope, Product

by_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def a_store() -> Store:
    return Store({"x": torch.zeros(3)})


SEEDED: dict[str, Callable[[Any], int]] = {
    "minimize": lambda seed: minimize(smooth, start(), budget=10, seed=seed).seed,
    "AskTell": lambda seed: AskTell(start(), seed=seed).seed,
    "Run": lambda seed: Run(a_store(), methods.zo_sgd(), seed).seed,
    "ZOOptimizer": lambda seed: ZOOptimizer([nn.Parameter(torch.zeros(3))], seed=seed).seed,
    "Hybrid": lambda seed: (
        Hybrid(
            ZOOptimizer([nn.Parameter(torch.zeros(3))], seed=seed), torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1)
        ).zo.run.seed
    ),
}
at_every_door = pytest.mark.parametrize("door", SEEDED.values(), ids=SEEDED)


@at_every_door
def test_integers_of_any_type_are_the_same_seed(door: Callable[[Any], int]) -> None:
    for kind in (int, np.int8, np.int32, np.uint32, np.int64, np.uint64, np.array, torch.tensor):
        seed = door(kind(7))
        assert (type(seed), seed) == (int, 7)
    assert door(np.uint64(2**64 - 1)) == door(2**64 - 1) == 2**64 - 1


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64])
def test_keys_and_diagnostics_take_integers_of_any_type(kind: Any) -> None:
    """Without an overflow on the way."""
    assert fold(kind(7), kind(3), 2**63) == fold(7, 3, 2**63)
    p = diagnostics.problem(smooth, start())
    assert diagnostics.trace(p, n=2, seed=kind(7)) == diagnostics.trace(p, n=2, seed=7)


@at_every_door
def test_none_and_generators_give_fresh_seeds_that_are_shown(door: Callable[[Any], int]) -> None:
    drawn = {door(None) for _ in range(5)}
    assert len(drawn) == 5
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in drawn)
    for make in (np.random.default_rng, np.random.RandomState):
        first, second = make(3), make(3)
        assert door(first) == door(second)
        assert door(first) != door(make(3))


@at_every_door
@pytest.mark.parametrize(
    ("seed", "error", "says"),
    [
        (-1, ValueError, r"seed=-1 is out of range; a seed is an integer from 0 to 2\*\*64 - 1"),
        (np.int64(-5), ValueError, "seed=-5 is out of range"),
        (2**64, ValueError, "seed=18446744073709551616 is out of range"),
        (1.0, TypeError, r"seed=1.0 is no seed; pass an integer, a NumPy Generator, or None"),
        ("1", TypeError, "seed='1' is no seed"),
        (True, TypeError, "seed=True is no seed"),
        ([1, 2], TypeError, r"seed=\[1, 2\] is no seed"),
    ],
    ids=str,
)
def test_other_seeds_are_refused_by_name(door: Callable[[Any], int], seed: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        door(seed)


def test_a_fresh_seed_repeats_the_run() -> None:
    first = minimize(smooth, start(), budget=50, seed=None)
    again = minimize(smooth, start(), budget=50, seed=first.seed)
    np.testing.assert_array_equal(first.x, again.x)


# ---- torch's defaults ------------------------------------------------------------------------------------------------


@contextmanager
def defaults(kind: str) -> Iterator[None]:
    """Inside, torch makes its tensors on a device where they hold no values, or in another dtype."""
    if kind == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, kind))
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


kinds = pytest.mark.parametrize("kind", ["meta", "float16", "float64"])


@kinds
@by_case
def test_numpy_doors_do_not_know_torchs_defaults(case, kind: str) -> None:
    """The bits of minimize, of AskTell, of a replay and of a loaded state."""

    def doors() -> list[np.ndarray]:
        method = case.method()
        result = minimize(smooth, start(method), method, budget=4 * method.evaluations + 3, seed=4)
        loop = AskTell(start(method), method, seed=4)
        loop.run.replay(result.tape)
        loop.tell([smooth(x) for x in loop.ask()])
        loop.load_state_dict(loop.state_dict())
        return [result.x, loop.x]

    expected = doors()
    with defaults(kind):
        found = doors()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@kinds
@pytest.mark.parametrize("space", [s for s in SPACES if not isinstance(s, Domain)], ids=repr)
def test_spaces_do_not_know_torchs_defaults(space: Any, kind: str) -> None:
    x0 = inside(space, 1).numpy()

    def result() -> np.ndarray:
        method = Method(Central(2), Rademacher(), SGD(), space=space, mu=1e-3, lr=1e-3)
        return minimize(lambda x: float(np.sum((x - 0.1) ** 2)), x0, method, budget=30).x

    if isinstance(space, Product):
        x0 = x0.clip(0.1)
    expected = result()
    with defaults(kind):
        found = result()
    np.testing.assert_array_equal(found, expected)


def test_a_polytope_keeps_the_digits_of_its_walls() -> None:
    """x < 0.1 in float64: 0.1 is not rounded to torch's default dtype on the way."""
    wall = Polytope(((1.0,), (-1.0,)), (0.1, 1.0))
    slack = wall.slack(torch.tensor([0.0], dtype=torch.float64))
    assert slack.tolist() == [0.1, 1.0]


@kinds
def test_diagnostics_of_numpy_functions_do_not_know_torchs_defaults(kind: str) -> None:
    def measured() -> list[float]:
        p = diagnostics.problem(smooth, start())
        top = diagnostics.largest_eigenvalue(p, diagnostics.values_hvp(p))
        return [top, diagnostics.trace(p, n=4).value, diagnostics.noise_floor(p).mu_central]

    expected = measured()
    with defaults(kind):
        assert measured() == expected


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_torch_door_goes_by_the_devices_and_dtypes_of_the_weights(kind: str, dtype: torch.dtype) -> None:
    def moved() -> torch.Tensor:
        w = nn.Parameter(torch.linspace(-1, 1, 24, dtype=dtype, device="cpu").view(4, 6))
        b = nn.Parameter(torch.ones(4, dtype=dtype, device="cpu"))
        x = torch.ones(2, 6, dtype=dtype, device="cpu")
        opt = ZOOptimizer([w, b], methods.zo_adam(lr=1e-2), rounding="split")
        for _ in range(3):
            opt.step(lambda: nn.functional.linear(x, w, b).square().mean())
        return torch.cat([w.detach().flatten(), b.detach()])

    expected = moved()
    with defaults(kind):
        found = moved()
    assert torch.equal(found, expected)


# ---- losses that are no loss -----------------------------------------------------------------------------------------


W = torch.linspace(-1, 1, 6)


def by_optimizer(value: Callable[[torch.Tensor], Any]) -> Any:
    w = nn.Parameter(W.clone())
    return ZOOptimizer([w], methods.zo_sgd(lr=0.1)).step(lambda: value(w))


def by_hybrid(value: Callable[[torch.Tensor], Any]) -> Any:
    w, y = nn.Parameter(W.clone()), nn.Parameter(W.clone())
    return Hybrid(ZOOptimizer([w], methods.zo_sgd(lr=0.1)), torch.optim.SGD([y], 0.1)).step(lambda: value(w + y))


def by_batched(value: Callable[[torch.Tensor], Any]) -> Any:
    w = torch.linspace(-1, 1, 24).view(4, 6)
    run = Run(Store({"w": w}), methods.zo_sgd(n=2, law=RankOne()))
    return run.step(batched(lambda copies: value(nn.functional.linear(torch.ones(3, 6), w)), 4))


def by_reuse(value: Callable[[torch.Tensor], Any]) -> Any:
    layer = nn.Linear(6, 2)
    oracle = reusing([layer], W, value)
    return Run(Store(dict(layer.named_parameters())), methods.zo_sgd()).step(oracle)


def by_executor(value: Callable[[torch.Tensor], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return Run(Store({"w": W.clone()}), methods.zo_sgd()).step(parallel(pool, lambda t: value(t["w"])))


def by_asktell(value: Callable[[torch.Tensor], Any]) -> Any:
    loop = AskTell(W.numpy(), methods.zo_sgd())
    return loop.tell([value(torch.from_numpy(x)) for x in loop.ask()])


def by_run(value: Callable[[torch.Tensor], Any]) -> Any:
    run = Run(Store({"w": W.clone()}), methods.zo_sgd())
    return run.tell([value(W) for _ in run.ask()])


DOORS: dict[str, Callable[..., Any]] = {
    "minimize": lambda value: minimize(lambda x: value(torch.from_numpy(x)), W.numpy(), budget=20),
    "AskTell": by_asktell,
    "ZOOptimizer": by_optimizer,
    "Hybrid": by_hybrid,
    "Run": by_run,
    "batched": by_batched,
    "reusing": by_reuse,
    "parallel": by_executor,
    "diagnostics of an array": lambda value: diagnostics.trace(
        diagnostics.problem(lambda x: value(torch.from_numpy(x)), W.numpy()), n=2
    ),
    "diagnostics of tensors": lambda value: diagnostics.trace(diagnostics.problem(lambda: value(W), [W]), n=2),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda w: None, "got None; end the function with a return of the loss"),
        (lambda w: {"loss": w.sum(), "logits": w}, r"got dict with the keys 'loss', 'logits'; return the loss in it"),
        (lambda w: (w.sum(), w), "got .*; return the loss alone, such as its first element"),
        (lambda w: "low", "got 'low'; return a float or a tensor"),
        (lambda w: 1j * w.sum(), "got a complex tensor|got tensor"),
    ],
    ids=["none", "dict", "tuple", "text", "complex"],
)
def test_every_door_says_what_came_in_the_place_of_the_loss(door: str, value: Callable[..., Any], says: str) -> None:
    if door == "batched" and says.startswith("got a complex"):
        pytest.skip("a tensor, whose shape is what is asked about there")
    with pytest.raises(TypeError, match=f"(the loss must return one number|must return a tensor).*({says})"):
        DOORS[door](value)


@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_the_shape_of_a_loss_of_examples(door: str) -> None:
    says = r"array of shape \(\d+.*\); reduce it with .mean\(\) or .sum\(\)|has shape \(\d, \d\); expected \[1\]"
    with pytest.raises((TypeError, ValueError), match=says):
        DOORS[door](lambda w: w * 1.0)


def test_one_function_says_what_a_number_is() -> None:
    arrays = [np.array(2.0), np.array([[2.0]]), np.array(2, dtype=np.uint8)]
    tensors = [torch.tensor(2), torch.tensor([2.0]), torch.tensor(2.0, requires_grad=True)]
    good = [2, 2.0, True, np.float32(2), np.int8(2), Fraction(4, 2), *arrays, *tensors]
    for value in good:
        assert as_number(value) == float(value.item() if isinstance(value, np.ndarray | torch.Tensor) else value)
    assert math.isnan(as_number(math.nan))
    for value in ("2.0", b"2", 2j, np.complex64(2), np.array(2j), np.array(["2"]), [2.0], (), np.ones(0), object()):
        with pytest.raises(TypeError, match="the loss must return one number, got "):
            as_number(value)


def test_tell_takes_a_list() -> None:
    loop = AskTell(start(), methods.zo_sgd())
    loop.ask()
    for what in (1.0, None, {"a": 1.0}, np.array(1.0), torch.tensor(1.0), "12"):
        with pytest.raises(TypeError, match=r"tell\(\) takes the losses in the order of ask\(\), as a list, got"):
            loop.tell(what)  # type: ignore[arg-type]
    assert loop.tell(np.array([1.0, 2.0])) is not None


def test_a_loss_that_is_no_number_moves_nothing() -> None:
    w = nn.Parameter(W.clone())
    opt = ZOOptimizer([w], methods.zo_sgd(lr=0.1))
    with pytest.raises(TypeError):
        opt.step(lambda: {"loss": w.sum()})
    assert torch.equal(w.detach(), W)
    assert opt.step(lambda: w.square().sum()) > 0


# ---- random numbers of others ----------------------------------------------------------------------------------------


def drawn(into: list[tuple[float, float, float]]) -> None:
    into.append((float(torch.rand(())), float(np.random.rand()), random.random()))  # noqa: NPY002


@pytest.mark.parametrize("door", ["ZOOptimizer", "Hybrid", "batched"])
def test_the_points_of_a_step_share_all_random_numbers_and_the_callers_come_back(door: str) -> None:
    seen: list[tuple[float, float, float]] = []

    def value(w: torch.Tensor) -> torch.Tensor:
        drawn(seen)
        return w.square().sum().view([1] if door == "batched" else [])

    expected = np.random.get_state(), random.getstate()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DOORS[door](value)
    assert len(seen) >= 2
    assert len(set(seen)) == 1
    assert random.getstate() == expected[1]
    assert all(map(np.array_equal, np.random.get_state(), expected[0]))  # noqa: NPY002


def test_each_step_draws_anew_and_a_seed_repeats_it() -> None:
    def steps(seed: int) -> list[tuple[float, float, float]]:
        seen: list[tuple[float, float, float]] = []
        w = nn.Parameter(W.clone())
        opt = ZOOptimizer([w], methods.zo_sgd(), seed=seed)
        for _ in range(3):
            opt.step(lambda: drawn(seen) or w.square().sum())  # type: ignore[func-returns-value]
        return seen[::2]

    one = steps(1)
    assert steps(1) == one
    for column in zip(*one, strict=True):
        assert len(set(column)) == 3
    assert not set(steps(2)) & set(one)


def test_the_callers_random_state_comes_back_when_the_loss_raises() -> None:
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = float(np.random.rand()), random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    with pytest.raises(ZeroDivisionError):
        by_optimizer(lambda w: drawn([]) or 1 / 0)  # type: ignore[func-returns-value]
    assert (float(np.random.rand()), random.random()) == expected  # noqa: NPY002


@pytest.mark.parametrize("which", ["numpy", "python"])
def test_copies_of_a_batch_that_draw_elsewhere_are_evaluated_one_at_a_time(which: str) -> None:
    """In one forward each copy would get other numbers, and the slope would be their difference over 2 mu."""
    w = torch.zeros(4, 6)

    def loss(copies: int) -> torch.Tensor:
        draw = np.random.rand if which == "numpy" else random.random
        noise = torch.tensor([draw() for _ in range(3 * copies)])
        y = nn.functional.linear(torch.ones(3 * copies, 6), w).sum(1) * 1e-9 + noise
        return y.view(copies, 3).mean(1)

    run = Run(Store({"w": w}), methods.zo_sgd(n=2, law=RankOne()))
    with pytest.warns(UserWarning, match="one at a time, .*draws from numpy.random or random"):
        record = run.step(batched(loss, 4))
    assert max(record.losses) - min(record.losses) < 1e-6
    with pytest.warns(UserWarning, match="one at a time"):
        again = run.step(batched(loss, 1))
    assert max(again.losses) - min(again.losses) < 1e-6


# ---- frozen and missing weights --------------------------------------------------------------------------------------


def model_with_an_adapter() -> nn.ModuleDict:
    torch.manual_seed(0)
    model = nn.ModuleDict({"base": nn.Linear(4, 4), "adapter": nn.Linear(4, 4)})
    model["base"].requires_grad_(False)
    return model


def test_frozen_parameters_stay_and_are_counted_once() -> None:
    model = model_with_an_adapter()
    base = [p.clone() for p in model["base"].parameters()]
    with pytest.warns(UserWarning, match=r"leaves 2 of 4 tensors as they are, .*; pass frozen=True") as caught:
        opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.1), seed=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    x = torch.ones(3, 4)
    f = lambda m: m["adapter"](m["base"](x)).square().mean()  # noqa: E731
    for _ in range(3):
        opt.step(lambda: f(model))
    assert all(map(torch.equal, base, model["base"].parameters()))
    other = model_with_an_adapter()
    alone = ZOOptimizer(other["adapter"].parameters(), methods.zo_sgd(lr=0.1), seed=1)
    for _ in range(3):
        alone.step(lambda: f(other))
    assert all(map(torch.equal, model["adapter"].parameters(), other["adapter"].parameters()))


def test_frozen_parameters_are_trained_when_asked_for() -> None:
    model = model_with_an_adapter()
    before = [p.clone() for p in model.parameters()]
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=0.1), frozen=True)
    opt.step(lambda: model["adapter"](model["base"](torch.ones(3, 4))).square().mean())
    assert not any(map(torch.equal, before, model.parameters()))


def test_nothing_to_train_says_what_to_write() -> None:
    model = model_with_an_adapter()
    with pytest.raises(ValueError, match=r"no tensor requires grad. Call requires_grad_\(\) .* frozen=True\) to train"):
        ZOOptimizer(model["base"].parameters())
    with pytest.raises(ValueError, match="no tensor requires grad"):
        ZOOptimizer([torch.zeros(3)])


@pytest.mark.parametrize(
    "door",
    [
        lambda t: ZOOptimizer([nn.Parameter(t)]),
        lambda t: Store({"group0.0": t}),
        lambda t: diagnostics.problem(lambda: 0.0, {"group0.0": t}),
    ],
    ids=["ZOOptimizer", "Store", "diagnostics"],
)
def test_weights_without_values_are_refused(door: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ValueError, match=r"'group0.0' is on the meta device, .*; load the weights first, for example"):
        door(torch.zeros(3, 4, device="meta"))


def test_two_meta_weights_are_not_called_tied() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="on the meta device"):
        ZOOptimizer(model.parameters())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_number_is_not_called_16_bit(dtype: Any, shape: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimize(lambda x: float(np.sum(x)), np.full(shape, 0.9, dtype), methods.zo_sgd(lr=1e-30), budget=20)
        w = nn.Parameter(torch.full(shape, 0.9))
        ZOOptimizer([w], methods.zo_sgd(lr=1e-30)).step(lambda: w.sum())


# ---- accelerate ------------------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator() -> Iterator[Callable[[int], Any]]:
    accelerate = pytest.importorskip("accelerate")
    state = accelerate.state

    def reset() -> None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()

    reset()
    yield lambda every: accelerate.Accelerator(cpu=True, gradient_accumulation_steps=every)
    reset()


def accelerated(accelerator: Any, *, wrapped: bool) -> tuple[int, float]:
    """(evaluations, change of a weight) of four batches."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=1e-2))
    prepared, wrapper = accelerator.prepare(model, opt)
    calls = []
    for _ in range(4):
        with accelerator.accumulate(prepared):
            used = wrapper if wrapped else opt
            used.step(lambda: calls.append(1) or prepared(torch.ones(1, 2)).square().mean())
    return len(calls), float((model.weight.detach() - before).abs().max())


def test_accumulation_of_accelerate_is_told_once(accelerator: Callable[[int], Any]) -> None:
    with pytest.warns(
        UserWarning, match=r"accelerate steps at one of 2 batches .*gradient_accumulation_steps=1"
    ) as caught:
        assert accelerated(accelerator(2), wrapped=True)[0] == 4
    assert len(caught) == 1


@pytest.mark.parametrize(("every", "wrapped"), [(1, True), (2, False)])
def test_all_batches_of_accelerate_are_evaluated(accelerator: Callable[[int], Any], every: int, wrapped: bool) -> None:
    calls, moved = accelerated(accelerator(every), wrapped=wrapped)
    assert calls == 8
    assert moved > 0


# ---- callbacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, np.True_, 1, "stop", np.array([1])], ids=repr)
def test_a_callback_stops_with_anything_true(value: Any) -> None:
    assert minimize(smooth, start(), budget=100, callback=lambda record: value).nit == 1


@pytest.mark.parametrize("value", [False, np.False_, None, 0, ""], ids=repr)
def test_a_callback_goes_on_otherwise(value: Any) -> None:
    assert minimize(smooth, start(), methods.zo_sgd(lr=1e-2), budget=100, callback=lambda record: value).nit > 10


def test_the_outputs_of_a_model_are_their_loss(tiny_model: Path) -> None:
    """What a transformers model returns that was given labels; without labels there is a sentence."""
    from transformers import AutoModelForCausalLM

    ids = torch.arange(2, 10)[None]
    ends = []
    for closure in (
        lambda model: model(input_ids=ids, labels=ids),
        lambda model: model(input_ids=ids, labels=ids).loss,
    ):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        opt = ZOOptimizer(model.parameters(), methods.zo_sgd(lr=1e-3), seed=3)
        losses = [float(opt.step(lambda model=model, closure=closure: closure(model))) for _ in range(2)]
        ends.append((losses, opt.store.digest()))
    assert ends[0] == ends[1]
    before = opt.store.digest()
    with pytest.raises(TypeError, match="got CausalLMOutputWithPast without a loss; give the model labels"):
        opt.step(lambda: model(input_ids=ids))
    assert opt.store.digest() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lr": 0.1}, r"ZOOptimizer has no lr: .* ZOOptimizer\(params, method=zograd.methods.zo_sgd\(lr=0.1\)\)"),
        ({"method": "fzoo", "lr": 0.1, "n": 4}, r"has no lr, n: .* method=zograd.methods.fzoo\(lr=0.1, n=4\)\)"),
        ({"method": methods.mezo(), "momentum": 0.9}, r"has no momentum: .*=zograd.methods.mezo\(momentum=0.9\)"),
        ({"method": 1e-3}, r"method is 0.001, and expected is a name or a Method: .*zo_sgd\(lr=0.001\)"),
        ({"method": None}, r"method is None, and expected is a name or a Method"),
    ],
)
def test_settings_of_steps_belong_to_the_method(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        ZOOptimizer([torch.nn.Parameter(torch.ones(3))], **arguments)
