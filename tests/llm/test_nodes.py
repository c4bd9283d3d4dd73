"""Node perturbation: unbiased on every kind of layer, with the variance of its formula, recentred, causal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from tests.estimates import deviations, gradients
from tests.families import family
from zograd import Store, methods
from zograd.blockwise import Around, Backprop, Blockwise, Nodes, Residual, ResidualByValues, Terms
from zograd.blockwise.nodes import layers_of, signs
from zograd.blockwise.values import sums_behind
from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.oracle import Forwards
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 16}
KINDS: dict[str, Any] = {
    "llama": LlamaConfig(**SIZES, intermediate_size=12, num_key_value_heads=1, attn_implementation="eager"),
    "gpt2": GPT2Config(n_embd=8, n_layer=3, n_head=2, vocab_size=16),  # Conv1D, biases, and dropout that is off
    "experts": MixtralConfig(
        **SIZES, intermediate_size=12, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=2
    ),
    "tied": LlamaConfig(**SIZES, intermediate_size=12, num_key_value_heads=2, tie_word_embeddings=True),
}


class Rows:
    """A batch of token rows, scored by the cross-entropy of the last token's logits: one term an example."""

    def __init__(self, model: nn.Module, ids: Tensor, at_once: int = 2) -> None:
        self.model, self.parts, self.size = model, ids.split(at_once), len(ids)

    def losses(self, part: Tensor) -> Tensor:
        logits = self.model(input_ids=part, use_cache=False).logits[:, -1]
        return nn.functional.cross_entropy(logits, part[:, 0], reduction="none") / self.size

    def loss(self) -> Tensor:
        return torch.stack([self.losses(part).sum() for part in self.parts]).sum()

    def terms(self) -> list[Terms]:
        found = []
        for part in self.parts:
            owners = torch.arange(len(part))
            last, cells = torch.full_like(owners, part.shape[1] - 1), owners[:, None].expand(part.shape)
            found.append(Terms(self.losses(part), owners, last, cells))
        return found

    def around(self) -> Around:
        from contextlib import nullcontext

        return nullcontext

    def owners(self) -> Tensor | None:
        return None


def made(config: Any) -> tuple[nn.Module, list[nn.Module], Store, Rows]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.2)
    blocks = list(loading.blocks(model))
    trained = {n: p for n, p in model.named_parameters() if any(p is q for b in blocks[1:] for q in b.parameters())}
    return model, blocks, Store(trained), Rows(model, torch.randint(0, 16, (4, 5)))


QUICK = (("llama", "blocks"), ("gpt2", "layers"))


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        (kind, at) if (kind, at) in QUICK else pytest.param(kind, at, marks=pytest.mark.slow)
        for kind in KINDS
        for at in ("layers", "blocks")
    ],
)
def test_the_mean_of_the_estimates_is_the_gradient(kind: str, at: Any) -> None:
    _, blocks, store, batch = made(KINDS[kind])
    exact = gradients(Backprop(blocks, store.leaves), store, batch, 0)
    source = Nodes(blocks, store.leaves, mu=1e-2, at=at)
    before = store.digest()
    z = deviations(lambda key: gradients(source, store, batch, key), exact, 120)
    assert z.abs().max() < 4.5
    assert z.square().mean() < 2.0
    assert store.digest() == before
    assert not any(t.requires_grad for t in store.tensors)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpointed_blocks_give_the_bits_of_others() -> None:
    """Blocks in training mode that drop their activations and run again for a derivative, which autograd decides."""
    for kind in (Nodes, Residual, Backprop, ResidualByValues):
        found = []
        for checkpointing in (False, True):
            model, blocks, store, batch = made(KINDS["llama"])
            if checkpointing:
                model.train()
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            found.append(gradients(kind(blocks, store.leaves), store, batch, 3))
        for name, g in found[0].items():
            assert torch.equal(found[1][name], g), (kind, name)


def test_recentred_estimates_have_the_same_mean_and_the_variance_of_what_the_center_misses() -> None:
    _, blocks, store, batch = made(KINDS["llama"])
    exact = gradients(Backprop(blocks, store.leaves), store, batch, 0)
    plain = Nodes(blocks, store.leaves, at="blocks")
    centred = Nodes(blocks, store.leaves, at="blocks", center=True)
    z = deviations(lambda key: gradients(centred, store, batch, key), exact, 100)
    assert z.abs().max() < 4.5

    def error(source: Blockwise) -> float:
        found = [gradients(source, store, batch, key) for key in range(30)]
        return sum(float((g[name] - exact[name]).square().sum()) for g in found for name in exact)

    assert error(centred) < 0.7 * error(plain)
    nothing = gradients(Nodes(blocks, store.leaves, at="blocks", center=True, shrink=0.0), store, batch, 0)
    residual = gradients(Residual(blocks, store.leaves), store, batch, 0)
    for name, g in residual.items():
        torch.testing.assert_close(nothing[name], g, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama", "tied"))])
def test_by_values_the_mean_is_residual_feedback_without_the_derivative_of_a_block(kind: str) -> None:
    """What is added to the output of its block, and nothing else, is exact; each layer has its path."""
    _, blocks, store, batch = made(KINDS[kind])
    exact = gradients(Residual(blocks, store.leaves), store, batch, 0)
    source = ResidualByValues(blocks, store.leaves)
    before = store.digest()
    z = deviations(lambda key: gradients(source, store, batch, key), exact, 120)
    writes = [name for name in exact if "down_proj" in name or "mlp.c_proj" in name]
    assert len(writes) == (4 if kind == "gpt2" else 2)
    one = gradients(source, store, batch, 1)
    for name in writes:
        torch.testing.assert_close(one[name], exact[name], rtol=1e-4, atol=1e-6)
    noisy = torch.tensor([name not in writes for name in exact])
    assert z[noisy].abs().max() < 4.5
    assert z[noisy].square().mean() < 2.0
    assert store.digest() == before
    names = [next(n for n, m in blocks[1].named_modules() if m is node) for node in source.nodes[1]]
    paths = {name: source._paths[1][i] for i, name in enumerate(names)}
    if kind != "gpt2":
        assert {n.split(".")[-1]: p for n, p in paths.items()} == {
            "input_layernorm": "spreads", "q_proj": "stays", "k_proj": "spreads", "v_proj": "spreads",
            "o_proj": "stays", "post_attention_layernorm": "stays", "gate_proj": "stays", "up_proj": "stays",
            "down_proj": "adds",
        }  # fmt: skip


@pytest.mark.slow
def test_by_values_estimates_of_more_draws_have_less_variance() -> None:
    _, blocks, store, batch = made(KINDS["llama"])
    exact = gradients(Residual(blocks, store.leaves), store, batch, 0)

    def error(source: Blockwise) -> float:
        found = [gradients(source, store, batch, key) for key in range(40)]
        return sum(float((g[name] - exact[name]).square().sum()) for g in found for name in exact)

    one, four = (error(ResidualByValues(blocks, store.leaves, draws=draws)) for draws in (1, 4))
    assert four / one == pytest.approx(0.25, abs=0.1)
    assert one < 0.5 * error(Nodes(blocks, store.leaves))  # slopes of tokens, not of examples


def test_by_values_experts_are_refused_by_their_rows() -> None:
    _, blocks, store, batch = made(KINDS["experts"])
    with pytest.raises(ValueError, match=r"rows of shape .* for tokens of shape .*use method 'residual'"):
        gradients(ResidualByValues(blocks, store.leaves), store, batch, 0)


def test_sums_stay_within_a_sequence() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    owners = torch.tensor([[0, 0, 1, 1, -1], [2, 2, 2, 2, 2]])
    assert sums_behind(values, owners).tolist() == [[3, 2, 7, 4, 0], [5, 4, 3, 2, 1]]
    assert sums_behind(values, None).tolist() == [[19, 18, 16, 13, 9], [5, 4, 3, 2, 1]]


class Linear(nn.Module):
    """A block of one matrix, which takes and gives hidden states."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(inputs, outputs, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.matrix(hidden)
        return out


def test_the_variance_is_that_of_its_formula_and_falls_with_draws() -> None:
    """L_i = <a_i, W x_i>: B^2 Var G_ok = sum_i |a_i|^2 |x_ik|^2 + (sum_t a_ito x_itk)^2 - 2 sum_t (a_ito x_itk)^2."""
    torch.manual_seed(0)
    block, x, a = Linear(3, 4).requires_grad_(False), torch.randn(5, 2, 3), torch.randn(5, 2, 4)

    class Batch(Rows):
        def __init__(self) -> None:
            pass

        def terms(self) -> list[Terms]:
            owners = torch.arange(5)
            values = (block(x) * a).sum((1, 2)) / 5
            return [Terms(values, owners, torch.ones_like(owners), owners[:, None].expand(5, 2))]

    store = Store({"w": block.matrix.weight})
    found = {
        draws: torch.stack([
            gradients(Nodes([block], store.leaves, draws=draws), store, Batch(), key)["w"] for key in range(n)
        ])
        for draws, n in ((1, 2000), (2, 500))
    }  # fmt: skip
    products = a[:, :, :, None] * x[:, :, None, :]  # [i, t, o, k]
    variance = a.square().sum((1, 2))[:, None, None] * x.square().sum(1)[:, None, :]
    variance = (variance + products.sum(1).square() - 2 * products.square().sum(1)).sum(0) / 25
    measured = found[1].var(0)
    assert float(measured.sum() / variance.sum()) == pytest.approx(1.0, abs=0.05)
    torch.testing.assert_close(measured, variance.flatten(), rtol=0.25, atol=0.0)
    assert float(found[2].var(0).sum() / variance.sum()) == pytest.approx(0.5, abs=0.08)
    torch.testing.assert_close(found[1].mean(0), (products.sum((0, 1)) / 5).flatten(), rtol=0.0, atol=0.35)


def test_slopes_are_of_the_terms_behind_a_token() -> None:
    """Two examples in one row with padding, and a second row."""
    cells = torch.tensor([[0, 0, 1, 1, 1, -1], [2, 2, 2, 2, 2, 2]])
    owners = torch.tensor([0, 1, 1, 2])
    columns = torch.tensor([1, 3, 4, 0])
    plus = Terms(torch.tensor([1.0, 2.0, 3.0, 4.0]), owners, columns, cells)
    minus = Terms(torch.zeros(4), owners, columns, cells)
    assert plus.slopes(minus, 0.5).tolist() == [[1, 1, 5, 5, 3, 0], [4, 0, 0, 0, 0, 0]]


def test_noise_is_of_the_key_the_node_and_the_forward() -> None:
    like = torch.empty(2, 3, 5)
    one = signs(7, 0, 0, like)
    assert one.abs().eq(1).all()
    assert torch.equal(one, signs(7, 0, 0, like))
    for other in (signs(8, 0, 0, like), signs(7, 1, 0, like), signs(7, 0, 1, like)):
        assert not torch.equal(one, other)


# ---- runs ------------------------------------------------------------------------------------------------------------


def settings(model: Path, **more: Any) -> TrainSettings:
    common = {
        "model": str(model), "task": "mr", "method": "node_perturbation", "dtype": "float32", "threads": 1,
        "batch_size": 16, "steps": 40, "warmup": 0, "train_examples": 32, "eval_examples": 10, "lr": 1e-2,
        "save_every": 7,
    }  # fmt: skip
    return TrainSettings.model_validate({**common, **more})


VARIANTS: dict[str, dict[str, Any]] = {
    "top layers": {"layers": 1},
    "blocks": {"set": {"at": "blocks"}},
    "recentred": {"set": {"at": "blocks", "center": "residual", "shrink": 0.2}},
    "adapters": {"train": "lora", "layers": 2, "lr": 1e-2},
    "several draws": {"layers": 1, "set": {"draws": 2}, "steps": 40},
    "by values": {"method": "forward_residual", "layers": 2},
    "by values, adapters": {"method": "forward_residual", "train": "lora", "set": {"draws": 2}},
}


SLOW = ("blocks", "several draws", "recentred", "adapters", "by values, adapters")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in VARIANTS])
def test_training_lowers_the_loss_and_goes_on_to_the_same_bits(tiny_model: Path, tmp_path: Path, name: str) -> None:
    s = settings(tiny_model, **VARIANTS[name])
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"]
    assert done["evaluations"] == done["steps"] * {
        "recentred": 3,
        "several draws": 4,
        "by values": 1,
        "by values, adapters": 1,
    }.get(name, 2)
    train(s.model_copy(update={"steps": 12}), tmp_path / "parts", quiet=True)
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == done["sha256"]


def test_the_wrapper_of_an_adapter_is_the_node(tiny_model: Path, tmp_path: Path) -> None:
    work = set_up(settings(tiny_model, train="lora"), tmp_path / "run")
    source = work.prepared.store.source
    assert isinstance(source, Nodes)
    trained = {id(t) for t in work.prepared.trained.values()}
    found = layers_of(source.blocks[0], trained)
    assert [type(m).__module__.split(".")[0] for m in found] == ["peft", "peft"]


def slopes_of(work: Any, keys: Sequence[int], together: bool) -> Tensor:
    """Estimates of the last block's tensors, with slopes by position or (together) by example."""
    store, source = work.prepared.store, work.prepared.store.source
    batch: Any = Forwards(work.scorer, work.batches[0])
    if together:
        inner = batch.terms

        def terms() -> list[Terms]:
            return [
                Terms(t.values, t.owners, torch.full_like(t.columns, t.cells.shape[1] - 1), t.cells) for t in inner()
            ]

        batch.terms = terms
    found = []
    for key in keys:
        g = gradients(source, store, batch, key)
        found.append(torch.cat([g[name] for name in g]))
    return torch.stack(found)


def test_causal_slopes_lower_the_variance_of_completions_and_keep_the_mean(tiny_model: Path, tmp_path: Path) -> None:
    lines = [
        {"prompt": "It was", "completion": " very great no maybe"}, {"prompt": "bad", "completion": " no maybe yes no"}
    ]  # fmt: skip
    file = tmp_path / "task.jsonl"
    rows = [{**line, "split": "train"} for line in lines * 8]
    file.write_text("\n".join(map(json.dumps, [*rows, {**lines[0], "prompt": "good", "split": "validation"}])))
    s = settings(tiny_model, task=str(file), layers=1, batch_size=4, eval_examples=2)
    work = set_up(s, tmp_path / "run")
    causal, together = (slopes_of(work, range(100), mode) for mode in (False, True))
    ratio = float(causal.var(0).sum() / together.var(0).sum())
    assert ratio < 0.9
    store = work.prepared.store
    exact = gradients(Backprop(work.prepared.store.source.blocks, store.leaves), store, Forwards(  # type: ignore[union-attr]
        work.scorer, work.batches[0]), 0)  # fmt: skip
    v = torch.randn(causal.shape[1], generator=torch.Generator().manual_seed(1))
    values = (causal @ v).double()
    z = (values.mean() - float(torch.cat(list(exact.values())) @ v)) / (values.std() / len(values) ** 0.5)
    assert abs(float(z)) < 4


def test_dropout_of_a_model_is_off_and_leaves_the_estimate_unbiased(tiny_model: Path, tmp_path: Path) -> None:
    """A configuration that drops half of everything, as `zograd train` loads it."""
    model = family("gpt2", len(loading.load(str(tiny_model), dtype="float32")[1]))
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.5)
    for file in tiny_model.glob("*token*"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "model")
    work = set_up(settings(tmp_path / "model", layers=1, batch_size=4), tmp_path / "run")
    assert any(m.p == 0.5 for m in work.prepared.model.modules() if isinstance(m, nn.Dropout))
    store, source = work.prepared.store, work.prepared.store.source
    assert isinstance(source, Nodes)
    batch = Forwards(work.scorer, work.batches[0])
    exact = gradients(Backprop(source.blocks, store.leaves), store, batch, 0)
    assert all(torch.equal(g, exact[n]) for n, g in gradients(
        Backprop(source.blocks, store.leaves), store, batch, 0).items())  # fmt: skip
    z = deviations(lambda key: gradients(source, store, batch, key), exact, 80)
    assert z.abs().max() < 4
    assert z.square().mean() < 2.0


class Twice(nn.Module):
    """Applies a layer of a block to its own output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(self.layer(x))
        return found


def test_what_runs_twice_in_one_forward_is_refused_before_a_weight_moves() -> None:
    """A layer within a block, and a block that stands at two places of the model."""
    ids = torch.randint(0, 16, (4, 5), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_config(KINDS["llama"]).requires_grad_(False).eval()
    attention = model.model.layers[2].self_attn
    attention.o_proj = Twice(attention.o_proj)
    trained = loading.select(model, r"layers\.2\.self_attn\.(o_proj|v_proj)")
    store = Store(trained)
    before = store.digest()
    with pytest.raises(ValueError, match="a trained Linear of the model runs several times in one forward"):
        Nodes(loading.blocks(model), store.leaves).observe(Rows(model, ids), 1)
    shared = AutoModelForCausalLM.from_config(KINDS["llama"]).requires_grad_(False).eval()
    layers = shared.model.layers
    layers[1] = layers[2]
    twice = Store(loading.select(shared, r"layers\.1"))
    with pytest.raises(ValueError, match="the blocks of the model ran 4 times in 2 forwards"):
        Nodes([layers[0], layers[2]], twice.leaves).observe(Rows(shared, ids), 1)
    assert store.digest() == before


def test_settings_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pass at='blocks' with it"):
        methods.node_perturbation(center="residual")
    with pytest.raises(ValueError, match="at is 'layers' or 'blocks'"):
        methods.node_perturbation(at="heads")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="draws must be at least 1 and mu positive, got 0"):
        methods.node_perturbation(draws=0)
    with pytest.raises(SettingsError, match="pass at='blocks' with it"):
        train(settings(tiny_model, set={"center": "residual"}), tmp_path / "run", quiet=True)
