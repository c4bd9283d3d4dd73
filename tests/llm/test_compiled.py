"""Compiled blocks: the losses of the model as it is, at every point, in one graph a block; off where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zograd import methods
from zograd.core.run import Run
from zograd.lens.lens import Lens
from zograd.llm import compiled as under_test
from zograd.llm.compiled import CompileError, check, compiled, trial
from zograd.llm.restore import replay
from zograd.llm.scoring.loss import causal_losses
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.train import train
from zograd.oracles import batched, sequential
from zograd.stores import Store

SIZES: dict[str, Any] = {"vocab_size": 96}
LLAMA: dict[str, Any] = SIZES | {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = SIZES | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "eos_token_id": 2}
OPT: dict[str, Any] = SIZES | {
    "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
    "word_embed_proj_dim": 32, "pad_token_id": 0,
}  # fmt: skip
MODELS = {"llama": ("Llama", LLAMA), "gpt2": ("GPT2", GPT2), "opt": ("OPT", OPT), "gemma": ("Gemma", LLAMA)}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    kind, sizes = MODELS[name]
    torch.manual_seed(0)
    more = {"head_dim": 8} if name == "gemma" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def both_ways(model: nn.Module, law: str | None = None) -> tuple[list[float], list[float], list[float]]:
    """Losses of the points of a step: of the model as it is, compiled in one forward, compiled one at a time."""
    ids = torch.randint(1, 96, (4, 16), generator=torch.Generator().manual_seed(1))
    store = Store(dict(model.named_parameters()))
    run = Run(store, methods.make("zo_sgd", lr=1e-3, mu=0.3, **({"law": law} if law else {})), 0)
    queries = run.ask()
    one = sequential(lambda: causal_losses(model, ids)[0])
    together = batched(lambda n: causal_losses(model, ids, copies=n), 2)
    expected = list(one(store, queries, 0))
    with compiled(model):
        return expected, list(together(store, queries, 0)), list(one(store, queries, 0))


def graphs() -> tuple[int, int]:
    """Frames that were compiled, and breaks in them, since the test began."""
    counters = torch._dynamo.utils.counters
    return counters["frames"]["ok"], sum(counters["graph_break"].values())


@pytest.mark.slow  # compiling takes half a minute
@pytest.mark.parametrize(
    ("name", "dtype", "law"),
    [
        ("llama", torch.float32, None),
        ("llama", torch.bfloat16, None),
        ("llama", torch.float32, "rankone"),
        ("gpt2", torch.float32, None),
        ("opt", torch.float32, None),
    ],
)
def test_losses_are_those_of_the_model_as_it_is(name: str, dtype: torch.dtype, law: str | None) -> None:
    """At both points of a step, far apart, under each lens; a few graphs for all blocks, without a graph break."""
    expected, together, alone = both_ways(make_model(name, dtype), law)
    tolerance = 1e-3 if dtype == torch.bfloat16 else 1e-5
    assert together == pytest.approx(expected, rel=tolerance)
    assert alone == pytest.approx(expected, rel=tolerance)
    assert abs(expected[0] - expected[1]) > 2 * tolerance * expected[0]
    compiled_graphs, breaks = graphs()
    assert 1 <= compiled_graphs <= 4
    assert breaks == 0


@pytest.mark.slow
def test_a_weight_read_alone_is_answered_outside_of_the_graph() -> None:
    """Gemma's 1 + w has no rows to be shown to: its points are evaluated one at a time, with the same losses."""
    model = make_model("gemma")
    with pytest.warns(UserWarning, match="float of a trained weight alone"):
        expected, together, alone = both_ways(model)
    assert together == pytest.approx(expected, rel=1e-5)
    assert alone == pytest.approx(expected, rel=1e-5)
    assert graphs()[1] > 0


@pytest.mark.slow
def test_a_model_that_its_owner_compiled_is_seen() -> None:
    """No leaf escapes to be perturbed by copy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 1)).requires_grad_(False)
    inputs = torch.randn(8, 6)
    store = Store(dict(model.named_parameters()))
    queries = Run(store, methods.make("zo_sgd", lr=1e-3, mu=0.1), 0).ask()
    plain = sequential(lambda: model(inputs).square().mean())(store, queries, 0)
    fast = torch.compile(model)
    assert sequential(lambda: fast(inputs).square().mean())(store, queries, 0) == pytest.approx(plain, rel=1e-5)
    assert not store.escaped
    assert graphs() == (1, 0)


@pytest.mark.slow
def test_a_lens_within_a_lens_and_dropout_run_as_they_are() -> None:
    """Both look at every call, which torch.compile does not trace."""
    model = make_model("llama")
    ids = torch.randint(1, 96, (4, 16), generator=torch.Generator().manual_seed(1))
    store = Store(dict(model.named_parameters()))
    first, second = (query.at for query in Run(store, methods.make("zo_sgd", lr=1e-3, mu=0.3), 0).ask())

    def losses() -> list[float]:
        found = []
        with torch.no_grad(), Lens(store, first):
            with Lens(store, second):
                found.append(float(causal_losses(model, ids)))
            found.append(float(causal_losses(model, ids)))
        with torch.no_grad(), Lens(store, first, everywhere=True):
            found.append(float(causal_losses(model, ids)))
        return found

    expected = losses()
    with compiled(model):
        assert losses() == pytest.approx(expected, rel=1e-5)
    assert graphs() == (1, 0)
    assert len({round(f, 3) for f in expected}) == 2


def test_a_weight_that_was_copied_is_not_taken_for_one() -> None:
    model = nn.Linear(4, 4).requires_grad_(False)
    store = Store(dict(model.named_parameters()))
    point = Run(store, methods.make("zo_sgd"), 0).ask()[0].at
    with Lens(store, point), pytest.raises(RuntimeError, match="copied a weight"):
        torch.ops.zograd.linear(torch.ones(1, 4), model.weight.data.clone(), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_are_what_the_compiler_takes_them_for(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(4, 3, 6, dtype=dtype), torch.randn(5, 6, dtype=dtype), torch.randn(5, dtype=dtype)
    ops: Any = torch.ops.zograd
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.linear.default, (x, w, b), test_utils=checks)
    torch.library.opcheck(ops.linear.default, (x, w, None), test_utils=checks)
    torch.library.opcheck(ops.addmm.default, (b, x[0], w.t()), test_utils=checks)
    for gain in (b, w):
        torch.library.opcheck(ops.rows.default, (torch.randn(4, 3, 5, 6, dtype=dtype), gain), test_utils=checks)


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapters on kept states": {"train": "lora", "layers": 2},
    "last positions": {"layers": 1, "method": "fzoo", "set": {"n": 3}},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_goes_on_to_the_same_bits(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    """Also where another batch, of another shape, is the first that its process compiles for."""
    s = TrainSettings.model_validate(
        {"task": "mr", "steps": 8, "batch_size": 4, "train_examples": 40, "eval_examples": 8, "lr": 1e-3, "mu": 1e-3,
         "dtype": "float32", "model": str(tiny_model), "compile": True, **VARIANTS[variant]}
    )  # fmt: skip
    whole = train(s, tmp_path / "whole", quiet=True)
    assert whole["compiled"] is True
    assert graphs()[0] >= 1
    torch._dynamo.reset()
    train(s.model_copy(update={"steps": 3}), tmp_path / "parts", quiet=True)
    torch._dynamo.reset()
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == whole["sha256"]
    assert replay(tmp_path / "parts", None, tmp_path / "weights")["sha256"] == whole["sha256"]


def test_a_short_run_is_not_worth_a_trial(tiny_model: Path, tmp_path: Path) -> None:
    s = TrainSettings.model_validate(
        {"task": "mr", "steps": 2, "batch_size": 2, "train_examples": 8, "eval_examples": 4, "model": str(tiny_model),
         "compile": "auto"}
    )  # fmt: skip
    assert train(s, tmp_path / "run", quiet=True)["compiled"] is False
    assert graphs()[0] == 0
    assert train(s.model_copy(update={"steps": 3}), tmp_path / "run", resume=True, quiet=True)["compiled"] is False


class _Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_trial_measures_both_ways_and_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Stack()
    seen: list[bool] = []
    found = trial(model, lambda: seen.append("forward" in vars(model.layers[0])), 10**9)
    assert found is not None
    assert found.ratio > 0
    assert found.seconds >= 0
    assert seen == [False, False, True, *[False, True] * under_test.ROUNDS]
    assert not any("forward" in vars(layer) for layer in model.layers)
    assert trial(model, lambda: None, 1) is None


def test_what_torch_cannot_compile_is_said_and_nothing_is_begun(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no working C++ compiler")

    monkeypatch.setattr(under_test, "_fast", lambda forward: broken)
    model = _Stack()
    store = Store(dict(model.named_parameters()))

    def evaluate() -> None:
        with store.at(Run(store, methods.make("zo_sgd"), 0).ask()[0].at):
            model(torch.ones(1, 4))

    with pytest.raises(CompileError, match="no working C\\+\\+ compiler"):
        check(model, evaluate)
    s = {"task": "mr", "steps": 2, "batch_size": 2, "train_examples": 8, "eval_examples": 4, "model": str(tiny_model)}
    with pytest.raises(SettingsError, match="leave --compile out"):
        train(parse({**s, "compile": True}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(under_test, "WORTH", 0.0)
    assert train(parse({**s, "compile": "auto"}), tmp_path / "auto", quiet=True)["compiled"] is False


@pytest.mark.parametrize("other", [{"quantized": True}, {"quantize": "nf4"}, {"offload": "disk"}])
def test_compile_is_refused_where_it_sees_nothing(other: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="compile does not go with"):
        parse({"compile": "auto", **other})
    assert parse({"compile": "on"}).compile is True
