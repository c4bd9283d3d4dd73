"""Models that other libraries quantized: masters show in each forward and nowhere else, integers never change."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import typing
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zograd import methods
from zograd.core.run import Run
from zograd.llm import loading
from zograd.llm.restore import replay, restore
from zograd.llm.settings import SettingsError, TrainSettings, parse
from zograd.llm.train import train
from zograd.oracles import sequential
from zograd.quantized import libraries, quantizing
from zograd.runs.errors import RunError
from zograd.stores import Store

LIBRARY = {
    "nf4": "bitsandbytes",
    "int8-bnb": "bitsandbytes",
    "int8-torchao": "torchao",
    "int4-torchao": "torchao",
    "hqq4": "hqq",
}
IDS = torch.tensor([[5, 9, 17, 4, 33, 8, 2, 21], [7, 7, 1, 60, 44, 12, 3, 90]])
MATRICES = 2 * 7
PROBE = 2.0**-7


@pytest.fixture(scope="session")
def tiny_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's model with 2 blocks, of a width that blocks of 64 divide."""
    return widened(tiny_model, tmp_path_factory.mktemp("wide"), seed=0)


@pytest.fixture(scope="session")
def other_tiny_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return widened(tiny_model, tmp_path_factory.mktemp("other-wide"), seed=1)


def widened(source: Path, folder: Path, seed: int) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.head_dim = 64, 128, 2, 16
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture(params=LIBRARY)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind whose library is installed: pip install "zograd[quantized]"."""
    pytest.importorskip(LIBRARY[request.param])
    return str(request.param)


by_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def quantized(folder: Path, kind: str, dtype: str = "float32") -> nn.Module:
    return loading.load(str(folder), dtype=dtype, quantize=kind)[0]


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {handle.name: handle.integers.clone() for handle in libraries.discover(model)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- masters -----------------------------------------------------------------------------------------------------


def test_layers_are_found_with_their_format(tiny_model: Path, kind: str) -> None:
    found = libraries.discover(quantized(tiny_model, kind))
    size = 32 if kind == "int4-torchao" else 64  # 64 is also the width, of int8 a row
    first = found[0]
    assert len(found) == MATRICES
    assert (first.name, first.library) == ("model.layers.0.self_attn.q_proj", LIBRARY[kind])
    assert first.format == {"nf4": "nf4", "int4-torchao": "int4", "hqq4": "4-bit"}.get(kind, "int8")
    assert (first.groups, first.group_size) == (64 * 64 // size, size)
    assert not first.integers.is_floating_point()


@by_dtype
def test_masters_change_nothing_until_they_move(tiny_model: Path, kind: str, dtype: str) -> None:
    """Bit for bit, also where the library holds its scales in bfloat16; in float32 they take no memory of their own."""
    model = quantized(tiny_model, kind, dtype)
    before = logits(model)
    chosen = loading.select(model, "scales")
    assert len(chosen) == MATRICES
    assert all(s.dtype == torch.float32 and bool((s > 0).all()) for s in chosen.values())
    assert torch.equal(logits(model), before)
    handle = libraries.discover(model)[0]
    assert handle.dtype == (torch.bfloat16 if (kind, dtype) == ("hqq4", "bfloat16") else torch.float32)
    shared = handle.form.read(handle.module).data_ptr() == chosen[f"{handle.name}.scale"].data_ptr()
    assert shared == (handle.dtype == torch.float32)
    assert loading.select(model, "scales").keys() == chosen.keys()  # once more: the same ones
    assert all(loading.select(model, "scales")[name] is s for name, s in chosen.items())


def test_output_is_proportional_to_the_masters(tiny_model: Path, kind: str) -> None:
    """Doubling every scale of a layer doubles what it computes, exactly: nothing else depends on them."""
    model = quantized(tiny_model, kind)
    layer = model.model.layers[1].mlp.down_proj
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = layer(x)
        dense = loading.load(str(tiny_model), dtype="float32")[0].model.layers[1].mlp.down_proj(x)
        assert float((y - dense).norm() / dense.norm()) < (0.02 if "int8" in kind else 0.12)
        loading.select(model, "scales:down_proj")
        layer.scale.mul_(2.0)
        assert torch.equal(layer(x), 2 * y)
        layer.scale[0] *= 3.0  # the groups that make up row 0, and no others
        moved = (layer(x) != 2 * y).any(0).nonzero().view(-1)
    assert moved.tolist() == [0]


@by_dtype
def test_a_probe_is_seen_and_leaves_no_trace(tiny_model: Path, kind: str, dtype: str) -> None:
    model = quantized(tiny_model, kind, dtype)
    store = Store(loading.select(model, "scales"), space=methods.hozo().space)
    before, held = logits(model), integers(model)
    rest = {h.name: (h.form.read(h.module), h.form.read(h.module).clone()) for h in libraries.discover(model)}
    run = Run(store, methods.hozo(mu=PROBE), 0)
    (plus, minus), seen = run.ask(), []
    for query in (plus, minus):
        with store.at(query.at):
            seen.append(logits(model))
        assert store.settled()
    assert not any(torch.equal(a, b) for a, b in itertools.combinations([before, *seen], 2))
    hook = model.model.layers[1].mlp.up_proj.register_forward_hook(_stop)
    with store.at(plus.at), pytest.raises(ValueError, match="stop"):
        logits(model)
    hook.remove()
    assert torch.equal(logits(model), before)
    assert same(integers(model), held)
    for handle in libraries.discover(model):
        tensor, value = rest[handle.name]
        assert handle.form.read(handle.module) is tensor
        assert torch.equal(tensor, value)


def _stop(*_: object) -> None:
    raise ValueError("stop")


def test_what_is_zero_stays_zero(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    """Groups whose scale is 0, and rows whose integers stand for 0, whatever their masters become."""
    from transformers import AutoModelForCausalLM

    dense = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        dense.model.layers[0].mlp.up_proj.weight[:4] = 0.0
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    dense.save_pretrained(tmp_path)
    model = quantized(tmp_path, kind)
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    before = logits(model)
    chosen = loading.select(model, "scales")
    assert all(bool((s > 0).all()) for s in chosen.values())
    assert (layer.scale_sign is None) == (LIBRARY[kind] != "bitsandbytes")
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        assert torch.count_nonzero(layer(x)[:, :4]) == 0
        assert torch.count_nonzero(layer(x)[:, 4:]) > 0
        layer.scale.mul_(7.0)
        assert torch.count_nonzero(layer(x)[:, :4]) == 0
    libraries.save_scales(model, tmp_path / "scales.safetensors")
    again = quantized(tmp_path, kind)
    libraries.load_scales(again, tmp_path / "scales.safetensors")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("name", ["hozo", "qzo"])
def test_the_loss_falls_and_integers_stay(tiny_model: Path, kind: str, name: str) -> None:
    model = quantized(tiny_model, kind)
    chosen = loading.select(model, "scales")
    least = min(float(s.min()) for s in chosen.values()) if name == "qzo" else 1.0  # its mu and lr are absolute
    method = methods.make(name, lr=least**2, mu=2.0**-5 * least)
    store = Store(chosen, space=method.space)
    held, run = integers(model), Run(store, method, 0)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    with torch.no_grad():
        first = float(loss())
        for _ in range(25):
            run.step(sequential(loss))
        last = float(loss())
    assert last < first - 0.005
    assert same(integers(model), held)


def test_a_probe_survives_the_library_s_rounding() -> None:
    """The docstring's claim on 16-bit scales: probes of 2^-7 survive rounding, probes of 1e-3 vanish in bfloat16."""
    s = torch.exp(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    for dtype, mu, expected in (
        (torch.bfloat16, PROBE, 1.0),
        (torch.bfloat16, 1e-3, 0.0),
        (torch.float16, PROBE, 1.0),
        (torch.float16, 1e-3, 1.0),
    ):
        for sign in (1, -1):
            base = s.to(dtype)
            arrived = (base.float() * math.exp(sign * mu)).to(dtype) != base
            assert float(arrived.double().mean()) == expected


# ---- bitsandbytes' special cases ---------------------------------------------------------------------------------


def nf4_layer(nested: bool, rows: int = 64, columns: int = 128) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    layer = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.float32, compress_statistics=nested)
    layer.weight = bnb.nn.Params4bit(w, requires_grad=False, quant_type="nf4", compress_statistics=nested)
    return layer.to("cpu").eval()


def test_doubly_quantized_scales_are_unnested() -> None:
    """The same numbers, now in float32; the layer then saves what it holds."""
    layer, x = nf4_layer(nested=True), torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    libraries.stop_repacking(layer)
    before = layer(x)
    (handle,) = libraries.discover(layer)
    assert (handle.dtype, handle.groups) == (torch.uint8, 128)
    assert tuple(handle.masters().shape) == (64, 2)
    assert handle.dtype == torch.float32
    assert torch.equal(layer(x), before)
    handle.masters().data.mul_(1.5)
    with libraries.without_masters(layer):
        saved = {name: t.clone() for name, t in layer.state_dict().items()}
    torch.testing.assert_close(saved["weight.absmax"].view(64, 2), handle.masters().data)
    assert not any("nested" in name or name == "scale" for name in saved)
    assert handle.master is not None


def test_a_layer_repacked_by_an_earlier_forward_is_unpacked() -> None:
    """On CPUs with AVX512-BF16 the first forward repacks; undone, integers are restored and scales have 8 bits."""
    layer, other = nf4_layer(nested=False), nf4_layer(nested=False)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    (handle,), (fresh,) = libraries.discover(layer), libraries.discover(other)
    handle.masters()
    fresh.masters()
    assert torch.equal(handle.integers, fresh.integers)
    torch.testing.assert_close(handle.masters().data, fresh.masters().data, rtol=2.0**-8, atol=0)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0.02 * float(y.norm() / y.numel() ** 0.5))


# ---- GPTQ and AWQ, by how their layers look ----------------------------------------------------------------------


class QuantLinear(nn.Module):
    """A layer as GPTQ packages have them: 4-bit integers, eight in an int32; float16 scales [groups, rows]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bits, self.in_features, self.out_features = 4, 64, 16
        self.register_buffer("qweight", torch.randint(0, 2**31 - 1, (8, 16), generator=generator, dtype=torch.int32))
        self.register_buffer("scales", torch.rand(2, 16, generator=generator).half() + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = (self.qweight[:, None, :] >> (4 * torch.arange(8))[None, :, None] & 15).reshape(64, 16)
        return x @ ((q - 8) * self.scales.repeat_interleave(32, 0)).float()


def test_layers_of_gptq_and_awq_are_recognised() -> None:
    layer, x = QuantLinear(), torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    (handle,) = libraries.discover(nn.Sequential(layer))
    assert (handle.library, handle.format, handle.groups, handle.group_size) == ("gptq/awq", "4-bit", 32, 32)
    scale, held = handle.masters(), layer.scales.clone()
    assert scale.dtype == torch.float32
    assert torch.equal(layer(x), y)
    store = Store({"scale": scale}, space=methods.hozo().space)
    run = Run(store, methods.hozo(mu=PROBE), 0)
    with store.at(run.ask()[0].at):
        assert not torch.equal(layer(x), y)
    assert torch.equal(layer.scales, held)
    scale.data.mul_(2.0)
    assert torch.equal(layer(x), 2 * y)
    with libraries.without_masters(layer):
        assert torch.equal(layer.state_dict()["scales"], 2 * held)
        assert layer.scales.dtype == torch.float16


# ---- the command's function --------------------------------------------------------------------------------------


def settings(folder: Path, kind: str, **more) -> TrainSettings:
    given = {"model": str(folder), "quantize": kind, "train": "scales", "task": "mr", "method": "hozo", "steps": 4}
    given |= {"batch_size": 4, "train_examples": 12, "eval_examples": 8, "dtype": "float32", "lr": 1e-2}
    return TrainSettings(**{**given, **more})


def test_a_run_trains_resumes_and_replays_into_files(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    """Bit-equal: the run in two parts, its replay, the library's files, and the file of scales alone."""
    whole = train(settings(tiny_model, kind, layers=2), tmp_path / "a", quiet=True)
    train(settings(tiny_model, kind, layers=2, steps=2), tmp_path / "b", quiet=True)
    again = train(settings(tiny_model, kind, layers=2, steps=4), tmp_path / "b", resume=True, quiet=True)
    assert again["sha256"] == whole["sha256"]
    assert whole["infeasible"] == 0.0

    result = replay(tmp_path / "a", None, tmp_path / "out")
    assert result["sha256"] == whole["sha256"]
    expected = logits(restore(tmp_path / "a")[0].model)
    base = quantized(tiny_model, kind)
    assert not torch.equal(expected, logits(base))
    reread, tokenizer = loading.load(str(tmp_path / "out"), dtype="float32")
    assert torch.equal(logits(reread), expected)
    assert same(integers(reread), integers(base))
    assert tokenizer("good").input_ids
    libraries.load_scales(base, tmp_path / "out" / "scales.safetensors")
    assert torch.equal(logits(base), expected)
    assert json.loads((tmp_path / "out" / "zograd.json").read_text())["steps"] == 4


def test_saved_scales_have_the_dtype_of_the_library(tiny_model: Path, kind: str, tmp_path: Path) -> None:
    """In bfloat16 the file gives the trained model back, up to the rounding of scales that it stores in 16 bits."""
    model, tokenizer = loading.load(str(tiny_model), dtype="bfloat16", quantize=kind)
    for s in loading.select(model, "scales").values():
        s.mul_(1.01)
    libraries.save(model, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stored = libraries.discover(loading.load(str(tmp_path), dtype="bfloat16")[0])[0].dtype
    assert stored == (torch.bfloat16 if kind in ("int4-torchao", "hqq4") else torch.float32)
    reread = logits(loading.load(str(tmp_path), dtype="bfloat16")[0])
    torch.testing.assert_close(reread, logits(model), rtol=0, atol=0.02 if kind == "int4-torchao" else 0)


def test_a_checkpoint_that_is_quantized_already_is_trained_without_a_word(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    libraries.save(quantized(tiny_model, "int8-torchao"), tmp_path / "q")
    loading.load(str(tiny_model))[1].save_pretrained(tmp_path / "q")
    assert not (tmp_path / "q" / "scales.safetensors").exists()
    summary = train(settings(tmp_path / "q", None, layers=1), tmp_path / "run", quiet=True)
    assert summary["trained"] == 3 * 64 + 2 * 128 + 2 * 32


def test_replay_onto_other_integers_is_refused(tiny_model: Path, other_tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    train(settings(tiny_model, "int4-torchao", steps=1), tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="is not the base model of this run"):
        restore(tmp_path / "run", str(other_tiny_model))


@pytest.mark.parametrize("part", ["lora", "polar"])
def test_adapters_train_on_a_quantized_base_and_are_saved_as_those_of_peft(
    tiny_model: Path, kind: str, tmp_path: Path, part: str
) -> None:
    if LIBRARY[kind] == "torchao" and version("peft").startswith("0.18."):
        pytest.skip("peft 0.18 imports names that torchao 0.18 no longer has")
    s = settings(tiny_model, kind, train=part, method="zo_sgd", lr=None)
    whole = train(s, tmp_path / "a", quiet=True)
    assert replay(tmp_path / "a", None, tmp_path / "out")["sha256"] == whole["sha256"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_quantized_head_scores_single_tokens(tiny_model: Path) -> None:
    """Rows of a packed head cannot be looked up: the scores are those of the whole head."""
    pytest.importorskip("bitsandbytes")
    from zograd.hub import load_task
    from zograd.llm.scoring.scorer import Scorer

    model, tokenizer = loading.load(str(tiny_model), dtype="float32")
    task = load_task("mr")
    scorer = Scorer(model, tokenizer, task)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    head = nf4_layer(nested=False, rows=len(tokenizer), columns=64)
    libraries.stop_repacking(head)
    model.set_output_embeddings(head)
    with torch.no_grad():
        found = scorer._logits(hidden, scorer.label_ids)
        torch.testing.assert_close(found, model.get_output_embeddings()(hidden)[:, scorer.label_ids])


# ---- files of scales, and what does not fit ----------------------------------------------------------------------


def test_scales_of_other_integers_are_refused(tiny_model: Path, other_tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model, file = quantized(tiny_model, "int8-torchao"), tmp_path / "s.safetensors"
    with pytest.raises(libraries.LibraryError, match="nothing to save"):
        libraries.save_scales(model, file)
    loading.select(model, "scales", layers=1)
    assert libraries.save_scales(model, file) == 3 * 64 + 2 * 128 + 2 * 32
    assert file.stat().st_size < 4 * 512 + 3000
    with pytest.raises(libraries.LibraryError, match=r"has integers .* belong to"):
        libraries.load_scales(quantized(other_tiny_model, "int8-torchao"), file)
    with pytest.raises(libraries.LibraryError, match=r"format int4, but the scales in .* belong to int8"):
        libraries.load_scales(quantized(tiny_model, "int4-torchao"), file)
    with pytest.raises(libraries.LibraryError, match="does not hold quantized"):
        libraries.load_scales(loading.load(str(tiny_model), dtype="float32")[0], file)
    file.write_bytes(b"nothing")
    with pytest.raises(libraries.LibraryError, match="does not hold scales"):
        libraries.load_scales(model, file)


def test_what_does_not_fit_is_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, library in LIBRARY.items():
        with monkeypatch.context() as m:
            for module in [k for k in sys.modules if k.partition(".")[0] == library] or [library]:
                m.setitem(sys.modules, module, None)
            m.setitem(sys.modules, library, None)
            with pytest.raises(loading.ModelError, match=rf'--quantize {name}: .*pip install "zograd\[quantized\]"'):
                loading.load(str(tiny_model), quantize=name)
    with pytest.raises(SettingsError, match="choose one"):
        parse({"quantized": True, "quantize": "nf4"})
    with pytest.raises(SettingsError, match="quantize = 'int3'"):
        parse({"quantize": "int3"})
    with pytest.raises(loading.ModelError, match="no quantization 'int3'; use nf4"):
        loading.load(str(tiny_model), quantize="int3")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(loading.ModelError, match="use --quantized"):
        loading.load(str(tmp_path / "m.gguf"), quantize="nf4")
    dense = loading.load(str(tiny_model), dtype="float32")[0]
    with pytest.raises(loading.ModelError, match="--quantize nf4"):
        loading.select(dense, "scales")
    layer = dense.model.layers[0].mlp.up_proj
    layer.register_buffer("codes", torch.zeros(4, 4, dtype=torch.uint8))
    with pytest.raises(loading.ModelError, match="does not know the scales of Linear; it knows bitsandbytes"):
        loading.select(dense, "scales")
    dense.model.layers[0].mlp.up_proj = QuantLinear()
    with pytest.raises(loading.ModelError, match=r"selects no layer; names look like model.layers.0.mlp.up_proj"):
        loading.select(dense, "scales:attn")
    dense.model.layers[0].mlp.up_proj.scales.fill_(float("nan"))
    with pytest.raises(loading.ModelError, match="not finite"):
        loading.select(dense, "scales")
    layer.meta = {"scale_q": None}
    with pytest.raises(libraries.LibraryError, match="quantized again or offloaded"):
        libraries.discover(layer)


def test_the_settings_know_what_can_be_quantized_to() -> None:
    (kinds,) = (a for a in typing.get_args(TrainSettings.model_fields["quantize"].annotation) if a is not type(None))
    assert typing.get_args(kinds) == quantizing.QUANTIZE


@pytest.mark.parametrize("method", ["residual", pytest.param("backprop", marks=pytest.mark.slow)])
def test_adapters_on_quantized_blocks_learn_from_their_derivatives(
    tiny_model: Path, tmp_path: Path, kind: str, method: str
) -> None:
    s = TrainSettings(
        model=str(tiny_model), quantize=kind, task="mr", method=method, train="lora", dtype="float32", threads=1,
        batch_size=8, steps=25, train_examples=24, eval_examples=10, lr=1e-2, lora_targets=("q_proj", "down_proj"),
    )  # fmt: skip
    done = train(s, tmp_path / "run", quiet=True)
    assert done["loss_last"] < done["loss_first"] - 0.02
