"""Packed models: the same numbers as de-quantized ones, trained through their scales, saved in their own format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zograd import methods
from zograd.core.run import Run
from zograd.core.vector import Slot, Vector
from zograd.llm import loading
from zograd.llm.build import set_up
from zograd.llm.method import build_method
from zograd.llm.oracle import Forwards
from zograd.llm.restore import replay, restore
from zograd.llm.settings import SettingsError, TrainSettings
from zograd.llm.train import train
from zograd.oracles import sequential
from zograd.quantized import gguf_file
from zograd.quantized import packed_layers as layers
from zograd.quantized.gguf_blocks import FORMATS
from zograd.quantized.packed_layers import PackedEmbedding, PackedLinear
from zograd.spaces import PositiveOrthant
from zograd.stores import Store

gguf = pytest.importorskip("gguf")

TinyGguf = Callable[[str], Path]
by_format = pytest.mark.parametrize("form", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
IDS = torch.tensor([[5, 9, 17, 4, 33, 8, 2, 21], [7, 7, 1, 60, 44, 12, 3, 90]])


def packed(folder: Path, dtype: str = "float32"):
    return loading.load(str(folder), dtype=dtype, quantized=True)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def another_reader(file: Path) -> torch.nn.Module:
    """The file as transformers reads it: every matrix de-quantized."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


@by_format
def test_logits_are_those_of_another_reader(tiny_gguf: TinyGguf, form: str) -> None:
    folder = tiny_gguf(form)
    model, _ = packed(folder)
    assert isinstance(model.model.layers[2].mlp.gate_proj, PackedLinear)
    assert isinstance(model.get_input_embeddings(), PackedEmbedding)
    torch.testing.assert_close(logits(model), logits(another_reader(folder / "tiny.gguf")), rtol=0, atol=1e-5)


def test_a_file_alone_is_enough_for_a_model_with_a_config_beside_it(tiny_gguf: TinyGguf) -> None:
    folder = tiny_gguf("Q4_1")
    model, tokenizer = loading.load(str(folder / "tiny.gguf"), dtype="float32", quantized=True)
    assert tokenizer("good").input_ids
    assert torch.equal(logits(model), logits(packed(folder)[0]))


@by_format
def test_masters_change_nothing_until_they_move(tiny_gguf: TinyGguf, form: str) -> None:
    """float32 masters of float16 scales are the same numbers; those of zero stay zero whatever is done to them."""
    model, _ = packed(tiny_gguf(form))
    before = logits(model)
    chosen = loading.select(model, "scales")
    assert torch.equal(logits(model), before)
    assert all(bool((s > 0).all()) for s in chosen.values())
    dead = model.model.layers[0].mlp.up_proj
    zero = dead.form.scales(dead.blocks.view(-1)).view(dead.scale.shape) == 0
    assert zero[:3].all()
    dead.scale.data[zero] = 7.0
    assert torch.equal(logits(model), before)
    dead.scale.data[~zero] *= 1.5
    assert not torch.equal(logits(model), before)


def test_the_size_of_tiles_changes_rounding_only(tiny_gguf: TinyGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = packed(tiny_gguf("Q4_1"))
    whole = logits(model)
    for tile in (1, 100, 1000):
        monkeypatch.setattr(layers, "TILE", tile)
        torch.testing.assert_close(logits(model), whole, rtol=1e-5, atol=1e-5)


def test_formats_of_two_levels_compute_with_their_masters() -> None:
    """Q4_K, Q5_K, Q6_K: moving the scale of a super-block moves its 256 weights in proportion, mins aside."""
    rng = np.random.default_rng(0)
    for form in (f for f in FORMATS.values() if f.size == 256):
        raw = rng.integers(0, 256, (6 * 2, form.bytes), dtype=np.uint8)
        for at in (form.scale_at, form.min_at):
            if at is not None:
                raw[:, at : at + 2] = rng.uniform(0.01, 0.02, 12).astype(np.float16).view(np.uint8).reshape(12, 2)
        layer = PackedLinear(form, torch.from_numpy(raw.reshape(6, -1)), 512)
        x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
        y = layer(x)
        w = torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType(form.number))).view(6, 512)
        torch.testing.assert_close(y, x @ w.t())
        layer.masters().data.mul_(2.0)
        mins = torch.zeros(12, 256)
        form.dequantize_(mins, torch.from_numpy(raw).view(-1), torch.zeros(12))  # what does not depend on the scale
        torch.testing.assert_close(layer(x), x @ (2 * w - mins.view(6, 512)).t())


@pytest.mark.parametrize(
    "name",
    ["hozo", "qzo", "zo_adam", *(pytest.param(n, marks=pytest.mark.slow) for n in ("fzoo", "rank", "mezo_momentum"))],
)
def test_every_kind_of_method_trains_scales(tiny_gguf: TinyGguf, name: str) -> None:
    """The loss falls, integers stay, no probe of a method on the orthant asks for a scale that is not positive."""
    model, _ = packed(tiny_gguf("Q4_1"))
    lr = {"hozo": 0.2, "qzo": 3e-5, "mezo_momentum": 2e-2, "zo_adam": 5e-3}.get(name, 2e-2)
    method = build_method(TrainSettings(method=name, train="scales", lr=lr, steps=40))
    assert (name == "qzo") == (not isinstance(method.space, PositiveOrthant))
    store = Store(loading.select(model, "scales"), space=method.space)
    blocks = {n: m.blocks.clone() for n, m in gguf_file.packed_layers(model)}

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    run, smallest = Run(store, method, 0), 1.0
    with torch.no_grad():
        first = float(loss())
        for _ in range(40):
            for query in run.ask():
                for leaf in store.leaves:
                    point = store.point_(torch.empty(leaf.numel), leaf, query.at)
                    smallest = min(smallest, float(point.min()))
            run.step(sequential(loss))
        last = float(loss())
    assert last < first - 0.005
    assert all(torch.equal(m.blocks, blocks[n]) for n, m in gguf_file.packed_layers(model))
    if name != "qzo":
        assert smallest > 0


@by_format
def test_the_saved_file_is_the_old_one_with_new_scales(tiny_gguf: TinyGguf, form: str, tmp_path: Path) -> None:
    """Byte for byte the file it came from, outside of the scales; another reader gives the trained logits to 1e-3."""
    folder = tiny_gguf(form)
    model, _ = packed(folder)
    before = logits(model)
    generator = torch.Generator().manual_seed(0)
    for scale in loading.select(model, "scales").values():
        scale.data.mul_(torch.exp(0.2 * torch.randn(scale.shape, generator=generator)))
    report = gguf_file.save(model, tmp_path / "tiny.gguf")
    assert report["scales"] == sum(m.scale.numel() for _, m in gguf_file.packed_layers(model) if m.scale is not None)

    old, new = (np.fromfile(f, np.uint8) for f in (folder / "tiny.gguf", tmp_path / "tiny.gguf"))
    assert old.shape == new.shape
    assert 0 < (old != new).sum() == report["bytes_changed"] <= 2 * report["scales"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    there = logits(another_reader(tmp_path / "tiny.gguf"))
    assert float((before - there).abs().max()) > 0.01
    torch.testing.assert_close(there, logits(model), rtol=0, atol=1e-5)


def test_saving_what_was_not_trained_is_copying(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    folder = tiny_gguf("Q4_1")
    model, _ = packed(folder)
    loading.select(model, "scales", layers=2)
    assert gguf_file.save(model, tmp_path / "same.gguf")["bytes_changed"] == 0
    assert (tmp_path / "same.gguf").read_bytes() == (folder / "tiny.gguf").read_bytes()
    assert [f.name for f in tmp_path.iterdir()] == ["same.gguf"]


def test_a_file_gets_its_name_when_it_is_whole_on_the_disk(
    tiny_gguf: TinyGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync, rename, fsync of the folder; a crash before the rename leaves the old file and nothing else."""
    folder = tiny_gguf("Q4_1")
    model, _ = packed(folder)
    loading.select(model, "scales", layers=2)
    target = tmp_path / "saved.gguf"
    target.write_bytes(b"old")
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            gguf_file.save(model, target)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("saved.gguf", b"old")]
    monkeypatch.setattr(os, "fsync", lambda d: (events.append("fsync"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    gguf_file.save(model, target)
    assert events == ["fsync", "rename", "fsync"]
    assert target.read_bytes() == (folder / "tiny.gguf").read_bytes()


def test_a_scale_too_small_for_float16_does_not_become_zero() -> None:
    found = layers.storable(torch.tensor([1e-12, -1e-12, 0.0, 0.5, 1e9]))
    assert found.tolist() == [2.0**-24, -(2.0**-24), 0.0, 0.5, 65504.0]


# ---- the command's function ------------------------------------------------------------------------------------------


def settings(folder: Path, **more) -> TrainSettings:
    given = {"model": str(folder), "quantized": True, "train": "scales", "task": "mr", "method": "hozo", "steps": 6}
    given |= {"batch_size": 4, "train_examples": 20, "eval_examples": 20, "dtype": "float32", "lr": 1e-2}
    return TrainSettings(**{**given, **more})


@pytest.mark.parametrize("layers_", [None, 2])
def test_a_run_trains_resumes_and_replays_into_a_file(tiny_gguf: TinyGguf, tmp_path: Path, layers_: int | None) -> None:
    folder = tiny_gguf("Q4_1")
    whole = train(settings(folder, layers=layers_), tmp_path / "a", quiet=True)
    train(settings(folder, layers=layers_, steps=3), tmp_path / "b", quiet=True)
    again = train(settings(folder, layers=layers_, steps=6), tmp_path / "b", resume=True, quiet=True)
    assert again["sha256"] == whole["sha256"]
    assert whole["trained"] == {None: 4, 2: 2}[layers_] * (3 * 32 * 64 + 2 * 32 * 32 + 2 * 16 * 32) // 32

    result = replay(tmp_path / "a", None, tmp_path / "out")
    assert result["sha256"] == whole["sha256"]
    trained, _ = restore(tmp_path / "a")
    torch.testing.assert_close(
        logits(another_reader(tmp_path / "out" / "tiny.gguf")), logits(trained.model), rtol=0, atol=1e-5
    )
    reread, tokenizer = loading.load(str(tmp_path / "out"), dtype="float32", quantized=True)
    assert torch.equal(logits(reread), logits(trained.model))
    assert tokenizer("good").input_ids
    assert json.loads((tmp_path / "out" / "zograd.json").read_text())["steps"] == 6


def test_replay_onto_other_blocks_is_refused(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    from zograd.runs.errors import RunError

    train(settings(tiny_gguf("Q4_1"), steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="is not the base model of this run"):
        restore(tmp_path / "run", str(tiny_gguf("Q5_1")))


def test_what_does_not_fit_is_named(tiny_gguf: TinyGguf, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(loading.ModelError, match=r"needs a .gguf file, and .* has none"):
        loading.load(str(tiny_model), quantized=True)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(loading.ModelError, match=r"bad\.gguf is not a GGUF model"):
        loading.load(str(bad), quantized=True)
    dense, _ = loading.load(str(tiny_model), dtype="float32")
    with pytest.raises(loading.ModelError, match="add --quantized"):
        loading.select(dense, "scales")
    with pytest.raises(SettingsError, match="does not work on positive scales"):
        build_method(TrainSettings(method="cbo", train="scales"))
    with pytest.raises(SettingsError, match="decay"):
        build_method(TrainSettings(method="zo_sgd", train="scales", weight_decay=0.1))


def test_masters_take_the_memory_they_say(tiny_gguf: TinyGguf) -> None:
    model, _ = packed(tiny_gguf("Q4_1"))
    before = gguf_file.resident_bytes(model)
    chosen = loading.select(model, "scales")
    after = gguf_file.resident_bytes(model)
    assert before["masters"] == 0
    assert after["masters"] == 4 * sum(s.numel() for s in chosen.values()) + sum(
        m.sign.numel() for _, m in gguf_file.packed_layers(model) if m.sign is not None
    )
    assert after["blocks"] == before["blocks"]


def test_methods_of_scales_are_on_the_menu() -> None:
    assert methods.describe("hozo")["space"] == "PositiveOrthant"
    assert methods.describe("qzo")["rule"] == "Proximal"


def test_a_packed_run_can_be_planned(tiny_gguf: TinyGguf) -> None:
    """Weights are the bytes of the blocks, and training scales adds their masters."""
    from zograd.runs.plan import plan

    folder = tiny_gguf("Q4_1")
    model, _ = packed(folder)
    sizes = gguf_file.resident_bytes(model)
    whole = plan(str(folder), method="hozo", train="scales", quantized=True, batch_size=2, seq_len=8)
    mlp = plan(str(folder), method="hozo", train="scales:mlp", quantized=True, batch_size=2, seq_len=8)
    norms = 4 * sum(p.numel() for p in model.parameters())
    assert whole["weights_bytes"] == sizes["blocks"] + norms
    assert whole["inference_peak_bytes"] == mlp["inference_peak_bytes"] > whole["weights_bytes"]
    assert whole["trainable"] == sum(s.numel() for s in loading.select(model, "scales").values())
    assert 0 < mlp["trainable"] < whole["trainable"]
    assert whole["method_peak_bytes"] >= whole["inference_peak_bytes"] + 4 * whole["trainable"]
    assert whole["params"] == sum(p.numel() for p in packed_weights(model)) + norms // 4
    with pytest.raises(loading.ModelError, match="selects no packed layer"):
        plan(str(folder), train="scales:nonesuch", quantized=True)


def packed_weights(model) -> list[torch.Tensor]:
    return [torch.empty(m.rows, m.columns, device="meta") for _, m in gguf_file.packed_layers(model)]


@pytest.mark.parametrize(("form", "pattern"), [("F16", "scales"), ("F16", "scales:mlp"), ("F32", "scales")])
def test_matrices_without_scales_are_named_by_their_format(
    tiny_gguf: Callable[[str], Path], form: str, pattern: str
) -> None:
    """The embedding is packed, the matrices are not: the message names their format, not a pattern."""
    from zograd.llm import loading

    model, _ = loading.load(str(tiny_gguf(form)), dtype="float32", quantized=True)
    with pytest.raises(
        loading.ModelError, match=rf"--train {pattern}: the matrices of .*tiny.gguf are in {form}, which"
    ):
        loading.select(model, pattern)


def test_a_pattern_that_finds_no_layer_shows_a_layer(tiny_gguf: Callable[[str], Path]) -> None:
    from zograd.llm import loading

    model, _ = loading.load(str(tiny_gguf("Q4_1")), dtype="float32", quantized=True)
    with pytest.raises(loading.ModelError, match=r"selects no layer; names look like model.layers.0.self_attn.q_proj"):
        loading.select(model, "scales:nothing")


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_the_derivative_of_a_packed_product_is_that_of_its_dense_matrix(
    form: Any, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dL/dx, and dL/ds of each block's scale by an autograd of w(s), tile by tile; some scales are negative or 0."""
    rng = np.random.default_rng(0)
    n, groups = 6, 4
    raw = rng.integers(0, 256, (n * groups, form.bytes), dtype=np.uint8)
    for at in (form.scale_at, form.min_at):
        if at is not None:
            values = rng.uniform(0.01, 0.02, n * groups) * np.where(np.arange(n * groups) % 5, 1, -1)
            values[7] = 0.0
            raw[:, at : at + 2] = values.astype(np.float16).view(np.uint8).reshape(-1, 2)
    layer = PackedLinear(form, torch.from_numpy(raw.reshape(n, -1)), groups * form.size, torch.ones(n))
    monkeypatch.setattr(layers, "TILE", 2 * layer.columns)
    x = torch.randn(2, 3, layer.columns, generator=torch.Generator().manual_seed(0), requires_grad=True)
    g = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(1))
    wanted = [x]
    if trained:
        wanted.append(layer.masters().requires_grad_(True))
    found = torch.autograd.grad(layer(x), wanted, g)

    blocks = layer.blocks.view(-1, form.bytes)
    s = form.scales(layer.blocks.view(-1)).requires_grad_(True)
    low = form.mins(layer.blocks.view(-1))
    w = form.values(blocks, s.view(-1, 1), None if low is None else low.view(-1, 1)).view(n, -1)
    of_x, of_s = torch.autograd.grad(x @ w.t(), [x, s], g)
    torch.testing.assert_close(found[0], of_x, rtol=1e-4, atol=1e-4)
    if trained:  # the master is |s|
        torch.testing.assert_close(found[1], (of_s * torch.sign(s)).view(n, groups), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("what", "method"),
    [
        ("lora", "residual"),
        pytest.param("polar", "residual", marks=pytest.mark.slow),
        ("scales", "backprop"),
        pytest.param("lora", "backprop", marks=pytest.mark.slow),
        pytest.param("scales", "residual", marks=pytest.mark.slow),
    ],
)
def test_a_packed_model_learns_from_the_derivatives_of_its_blocks(
    tiny_gguf: TinyGguf, tmp_path: Path, method: str, what: str
) -> None:
    s = TrainSettings(
        model=str(tiny_gguf("Q4_0")), quantized=True, task="mr", method=method, train=what, dtype="float32", threads=1,
        batch_size=8, steps=30, warmup=0, train_examples=40, eval_examples=10, save_every=10,
        lr=3e-2 if what == "scales" else 1e-2,
    )  # fmt: skip
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.02
    train(s.model_copy(update={"steps": 13}), tmp_path / "parts", quiet=True)
    assert train(s, tmp_path / "parts", resume=True, quiet=True)["sha256"] == done["sha256"]


def test_the_gradient_of_scales_is_the_slope_of_the_loss_in_log_scale(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    """Frame coordinates of `PositiveOrthant`: dL/d log s, against a central difference along a direction."""
    s = TrainSettings(
        model=str(tiny_gguf("Q8_0")), quantized=True, task="mr", method="backprop", train="scales", dtype="float32",
        threads=1, batch_size=8, train_examples=16, eval_examples=4,
    )  # fmt: skip
    work = set_up(s, tmp_path / "run")
    store, source, batch = work.prepared.store, work.prepared.store.source, work.batches[0]
    source.observe(Forwards(work.scorer, batch), 0)
    found: dict[str, list[torch.Tensor]] = {}
    for block in store.blocks(Vector(((Slot("gradient"), 1.0),))):
        found.setdefault(block.leaf.name, []).append(block.v[0].clone())
    for leaf in store.leaves[::4]:
        g, mu = torch.cat(found[leaf.name]), 2.0**-5
        v = torch.sign(g)
        sides = []
        for side in (mu, -mu):
            before = leaf.tensor.clone()
            leaf.tensor.mul_((side * v.view(leaf.shape)).exp())
            with torch.no_grad():
                sides.append(float(work.scorer.loss(batch)))
            leaf.tensor.copy_(before)
        slope = (sides[0] - sides[1]) / (2 * mu)
        assert float(g @ v) == pytest.approx(slope, rel=0.05, abs=1e-4)
