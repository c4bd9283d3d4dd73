"""Each architecture that stays packed: files in llama.cpp's order against the dense model, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zograd.llm import loading
from zograd.llm.restore import save
from zograd.quantized import gguf_file
from zograd.quantized.gguf_file import ARCHITECTURES
from zograd.quantized.packed_layers import PackedEmbedding, PackedLinear

gguf = pytest.importorskip("gguf")

IDS = torch.arange(3, 15)[None]
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
TIED = SIZES | {"tie_word_embeddings": True}  # where the file has no name for a head of its own
OLD = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
FALCON = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"} | {"alibi": False}
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("arcee", SIZES | {"attention_bias": True}),
    "bloom": ("bloom", OLD),
    "chatglm": ("glm", SIZES | {"head_dim": 8}),
    "cohere2": ("cohere2", TIED | {"head_dim": 8}),
    "command-r": ("cohere", TIED),
    "ernie4_5": ("ernie4_5", TIED | {"head_dim": 8}),
    "exaone4": ("exaone4", SIZES),
    "falcon": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", TIED | {"head_dim": 8}),
    "gemma2": ("gemma2", TIED | {"head_dim": 8}),
    "gemma3": ("gemma3_text", SIZES | {"head_dim": 8}),
    "glm4": ("glm4", SIZES | {"head_dim": 8}),
    "gpt2": ("gpt2", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}),
    "gptneox": ("gpt_neox", NEOX),
    "granite": ("granite", SIZES),
    "hunyuan-dense": ("hunyuan_v1_dense", SIZES | {"head_dim": 8}),
    "llama": ("llama", SIZES | {"attention_bias": True}),
    "mistral": ("mistral", SIZES | {"head_dim": 8}),
    "nemotron": ("nemotron", SIZES),
    "olmo": ("olmo", SIZES),
    "olmo2": ("olmo2", SIZES),
    "phi2": ("phi", SIZES),
    "phi3": ("phi3", SIZES),
    "qwen2": ("qwen2", SIZES),
    "qwen3": ("qwen3", SIZES | {"head_dim": 8}),
    "seed_oss": ("seed_oss", SIZES | {"head_dim": 8}),
    "smollm3": ("smollm3", SIZES),
    "stablelm": ("stablelm", SIZES | {"use_qkv_bias": True}),
    "starcoder2": ("starcoder2", SIZES),
}
"""Architecture in GGUF -> kind of model in transformers, and a small configuration of it."""

PERMUTED = ("arcee", "granite", "llama", "mistral", "olmo", "smollm3")
"""Converters of llama.cpp that reorder q and k: LlamaModel and those derived from it, and OlmoModel."""

Dense = Callable[[str, np.ndarray], bool]


def model_of(kind: str, given: Mapping[str, Any]) -> Any:
    """A model with weights that matter: no norm is 1, no bias is 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{"bos_token_id": 1, "eos_token_id": 2, **given})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.2)
    return model


def names_of(model: Any, architecture: str) -> dict[str, str]:
    """Name of a parameter -> name of its tensor."""
    table = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], model.config.num_hidden_layers
    )
    bare = f"{model.base_model_prefix}."  # bloom is converted from the model without its head
    names = {}
    for key, _ in model.named_parameters():
        found = (table.get_name(k, try_suffixes=(".weight", ".bias")) for k in (key, key.removeprefix(bare)))
        names[key] = next(name for name in found if name is not None)
    return names


def as_llama_cpp(architecture: str, c: Any, name: str, w: np.ndarray) -> np.ndarray:
    """What conversion/*.py of llama.cpp makes of a tensor."""
    heads = c.num_attention_heads
    for part, n in (("attn_q.", heads), ("attn_k.", getattr(c, "num_key_value_heads", None))):
        if architecture in PERMUTED and part in name:
            return w.reshape(n, 2, w.shape[0] // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    if architecture in ("bloom", "falcon", "gptneox") and "attn_qkv" in name:
        groups = heads
        if architecture == "falcon":
            groups = c.num_kv_heads if c.new_decoder_architecture else 1
        qkv = w.reshape(groups, heads // groups + 2, 8, *w.shape[1:])
        return np.concatenate([part.reshape(-1, *w.shape[1:]) for part in (qkv[:, :-2], qkv[:, [-2]], qkv[:, [-1]])])
    if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return w + 1
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return w.T if architecture == "gpt2" and name.endswith(turned) else w


def write(
    path: Path,
    architecture: str,
    tensors: Mapping[str, np.ndarray],
    dense: Dense = lambda name, w: w.ndim == 1,
    entries: Mapping[str, int | float] | None = None,
    **more: Any,
) -> Path:
    """A GGUF file: matrices in Q8_0, others in float32 (norms and biases) or float16 (matrices that are `dense`)."""
    from gguf.quants import quantize

    out = gguf.GGUFWriter(str(path), architecture, **more)
    for key, value in (entries or {}).items():
        (out.add_uint32 if isinstance(value, int) else out.add_float32)(key, value)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, w in tensors.items():
        w = np.ascontiguousarray(w, dtype=np.float32)
        if dense(name, w):
            out.add_tensor(name, w if w.ndim == 1 else w.astype(np.float16))
        else:
            out.add_tensor(name, quantize(w, kind), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def put(
    folder: Path, tiny_model: Path, model: Any, architecture: str, dense: Dense = lambda name, w: w.ndim == 1
) -> dict[str, np.ndarray]:
    """config.json, the files of a tokenizer, and the file of the model, whose weights are rounded as there."""
    from gguf.quants import dequantize, quantize

    kind, tensors = gguf.GGMLQuantizationType.Q8_0, {}
    names = names_of(model, architecture)
    with torch.no_grad():
        for key, p in model.named_parameters():
            w = p.numpy()
            if dense(names[key], w):
                p.copy_(torch.from_numpy(w.astype(np.float16 if w.ndim > 1 else np.float32)))
            else:
                p.copy_(torch.from_numpy(dequantize(quantize(np.ascontiguousarray(w), kind), kind)))
            tensors[names[key]] = as_llama_cpp(architecture, model.config, names[key], p.numpy().copy())
    model.config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    write(folder / "m.gguf", architecture, tensors, dense)
    return tensors


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def packed(folder: Path) -> Any:
    return loading.load(str(folder), dtype="float32", quantized=True)[0]


def test_each_architecture_that_stays_packed_is_compared() -> None:
    assert set(MODELS) == ARCHITECTURES


@pytest.mark.parametrize("architecture", sorted(MODELS))
def test_a_packed_model_computes_what_the_dense_one_does(architecture: str, tiny_model: Path, tmp_path: Path) -> None:
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        pytest.skip(f"the package gguf has no names of {architecture}: its files say llama")
    kind, given = MODELS[architecture]
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    model = model_of(kind, given)
    # Conv1D cannot stay packed
    put(tmp_path, tiny_model, model, architecture, lambda name, w: w.ndim == 1 or architecture == "gpt2")
    torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


def test_falcon_with_one_head_of_keys_stays_in_the_order_of_the_file(tiny_model: Path, tmp_path: Path) -> None:
    model = model_of("falcon", FALCON | {"new_decoder_architecture": False, "multi_query": True})
    put(tmp_path, tiny_model, model, "falcon")
    torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "granite", "qwen2"])
def test_scales_are_written_in_the_order_of_the_file(architecture: str, tiny_model: Path, tmp_path: Path) -> None:
    put(tmp_path, tiny_model, model_of(*MODELS[architecture]), architecture)
    model = packed(tmp_path)
    chosen = loading.select(model, "scales")
    gguf_file.save(model, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    with torch.no_grad():
        for k, scale in enumerate(chosen.values()):
            scale.mul_(torch.rand(scale.shape, generator=torch.Generator().manual_seed(k)) + 0.5)
    gguf_file.save(model, tmp_path / "m.gguf")
    torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


def llama(**given: Any) -> Any:
    return model_of("llama", SIZES | given)


def test_each_tensor_processor_of_transformers_is_undone_or_refused() -> None:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS

    undone = {*PERMUTED, "bloom", "gemma2", "gemma3", "gpt2", "nemotron"}
    assert not set(TENSOR_PROCESSORS) & ARCHITECTURES - undone


@pytest.mark.parametrize("architecture", ["mamba", "deci", "lfm2", "qwen3moe", "gemma4", "none"])
def test_an_architecture_whose_changes_are_not_known_is_refused_by_its_name(architecture: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", architecture, {"token_embd.weight": np.zeros((4, 32))})
    with pytest.raises(loading.ModelError, match=f"'{architecture}', and zograd keeps .*qwen3.* packed.*--quantized"):
        packed(tmp_path)


def test_a_file_in_the_other_byte_order_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    tensors = put(tmp_path, tiny_model, llama(), "llama")
    write(tmp_path / "m.gguf", "llama", tensors, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(loading.ModelError, match=r"m\.gguf is a big-endian file.*gguf-convert-endian"):
        packed(tmp_path)


def test_tensors_that_the_model_does_not_take_are_named(tiny_model: Path, tmp_path: Path) -> None:
    """Biases that the configuration does not announce, and another layer."""
    tensors = put(tmp_path, tiny_model, llama(), "llama")
    more = {"blk.0.attn_q.bias": np.ones(32), "blk.2.ffn_norm.weight": np.ones(32)}
    write(tmp_path / "m.gguf", "llama", tensors | more)
    with pytest.raises(
        loading.ModelError, match=r"holds blk\.0\.attn_q\.bias, blk\.2\.ffn_norm\.weight, which Llama.*config\.json"
    ):
        packed(tmp_path)


def scaled(**rope: Any) -> dict[str, Any]:
    """Settings of rotary frequencies, as both transformers 4 and 5 read them."""
    return {"rope_theta": 10000.0, "rope_scaling": rope, "rope_parameters": {"rope_theta": 10000.0, **rope}}


def test_factors_of_rotary_frequencies_have_to_be_those_of_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    """Llama 3.1: llama.cpp stores the factors, transformers computes them from the configuration."""
    rope = scaled(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    model = llama(**rope)
    tensors = put(tmp_path, tiny_model, model, "llama")
    used = next(b for key, b in model.named_buffers() if key.endswith("rotary_emb.inv_freq"))
    factors = {"rope_freqs.weight": (10000.0 ** (-torch.arange(4) / 4) / used).numpy()}
    assert factors["rope_freqs.weight"].max() == pytest.approx(8.0)
    write(tmp_path / "m.gguf", "llama", tensors | factors)
    torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)

    llama().config.save_pretrained(tmp_path)
    with pytest.raises(loading.ModelError, match=r"holds rope_freqs\.weight, .*rope_scaling"):
        packed(tmp_path)
    write(tmp_path / "m.gguf", "llama", tensors | {"rope_freqs.weight": np.ones(4)})
    packed(tmp_path)


def test_long_and_short_factors_have_to_be_those_of_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    rope = scaled(rope_type="longrope", long_factor=[2.0, 3.0, 4.0, 5.0], short_factor=[1.0, 1.1, 1.2, 1.3])
    model = model_of("phi3", SIZES | rope | {"original_max_position_embeddings": 32})
    tensors = put(tmp_path, tiny_model, model, "phi3")
    factors = {"rope_factors_long.weight": np.array([2.0, 3.0, 4.0, 5.0])}
    for last, fits in ((1.3, True), (1.4, False)):
        write(
            tmp_path / "m.gguf",
            "phi3",
            tensors | factors | {"rope_factors_short.weight": np.array([1, 1.1, 1.2, last])},
        )
        if fits:
            torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(loading.ModelError, match=r"holds rope_factors_short\.weight, which"):
                packed(tmp_path)


@pytest.mark.parametrize(("given", "named"), [({"vocab_size": 96}, "token_embd"), ({"intermediate_size": 96}, "ffn_")])
def test_a_tensor_of_another_shape_is_refused(
    given: dict[str, int], named: str, tiny_model: Path, tmp_path: Path
) -> None:
    put(tmp_path, tiny_model, llama(), "llama")
    llama(**given).config.save_pretrained(tmp_path)
    with pytest.raises(loading.ModelError, match=rf"{named}.* has the shape \(64, 32\), and .* has \(96, 32\)"):
        packed(tmp_path)


def test_a_head_without_a_tensor_reads_the_embedding_also_if_it_is_dense(tiny_model: Path, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    put(tmp_path, tiny_model, model, "llama", lambda name, w: w.ndim == 1 or name == "token_embd.weight")
    found = packed(tmp_path)
    assert not isinstance(found.get_input_embeddings(), PackedEmbedding)
    assert found.lm_head.weight is found.get_input_embeddings().weight
    assert isinstance(found.model.layers[0].mlp.up_proj, PackedLinear)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


def test_a_head_of_its_own_in_the_file_is_used_also_if_the_configuration_ties_it(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Quantizers store the output apart, in a finer format than the embedding; llama.cpp computes with it."""
    model = llama()
    put(tmp_path, tiny_model, model, "llama")
    llama(tie_word_embeddings=True).config.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(packed(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


ENTRIES = {
    "llama.block_count": 2, "llama.context_length": 64, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.vocab_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("adapted", [False, True], ids=["as loaded", "a merged adapter"])
def test_a_model_from_a_file_that_was_unpacked_can_be_saved(adapted: bool, tiny_model: Path, tmp_path: Path) -> None:
    """What replay, compress and merging do with a dense base model in a .gguf file."""
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    write(base / "m.gguf", "llama", put(base, tiny_model, llama(), "llama"), entries=ENTRIES)
    model, tokenizer = loading.load(str(base / "m.gguf"), dtype="float32")
    torch.testing.assert_close(logits(model), logits(packed(base)), rtol=1e-4, atol=1e-4)
    assert all(p.is_floating_point() for p in model.parameters())
    assert not hasattr(model.config, "quantization_config")
    if adapted:
        model = loading.attach_lora(model, loading.LoraSpec(r=2), seed=0)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.fill_(0.1)
    before = logits(model)
    save(model, tokenizer, out)
    torch.testing.assert_close(logits(loading.load(str(out), dtype="float32")[0]), before, rtol=1e-5, atol=1e-5)


def test_factors_that_a_dense_load_leaves_out_are_told_of(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = put(base, tiny_model, llama(), "llama")
    write(base / "m.gguf", "llama", tensors | {"rope_freqs.weight": np.array([1.0, 1.0, 4.0, 8.0])}, entries=ENTRIES)
    with pytest.warns(UserWarning, match=r"m\.gguf holds rope_freqs\.weight: its model scales rotary frequencies"):
        loading.load(str(base / "m.gguf"), dtype="float32")
