"""A random Llama written as GGUF, as llama.cpp would, is read as the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from zograd.hub.gguf_llama import convert, write_safetensors  # noqa: E402

HEADS, KV_HEADS, HIDDEN, FFN, LAYERS = 4, 2, 64, 96, 2


def rope_theta(config: Any) -> float:
    """The base of the rotary embedding, where transformers 4 and 5 keep it."""
    return config.rope_theta if hasattr(config, "rope_theta") else config.rope_parameters["rope_theta"]


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py: halves of a head become neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory):
    """(model, folder of its converted GGUF); two matrices are stored as Q4_1 and Q8_0, the others as float32."""
    folder = tmp_path_factory.mktemp("gguf")
    tokens = ["<pad>", "<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "ab", "Ġa", "Ġab"]
    kinds = [3, 3, 3] + [1] * (len(tokens) - 3)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_theta=5000.0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}

    writer = gguf.GGUFWriter(str(folder / "m.gguf"), "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["Ġ a", "Ġa b", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages }}")
    packed = {"blk.0.ffn_up.weight": "Q4_1", "blk.1.attn_k.weight": "Q8_0"}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if key == "model.embed_tokens.weight":
            name = "token_embd.weight"
        elif key == "model.norm.weight":
            name = "output_norm.weight"
        elif key == "lm_head.weight":
            continue
        else:
            name = f"blk.{parts[2]}.{names[parts[-2]]}.weight"
        array = value.numpy()
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            array = permute(array, HEADS if "attn_q" in name else KV_HEADS)
        if name in packed:
            kind = gguf.GGMLQuantizationType[packed[name]]
            quantized = gguf.quantize(array, kind)
            writer.add_tensor(name, quantized, raw_dtype=kind)
            exact = gguf.dequantize(quantized, kind)
            if "attn_k" in name:
                exact = exact.reshape(KV_HEADS, -1, 2, HIDDEN).swapaxes(1, 2).reshape(exact.shape)
            value.copy_(torch.from_numpy(np.ascontiguousarray(exact)))
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    convert(folder / "m.gguf", folder)
    return model, folder


def test_the_weights_and_the_logits_are_the_same(llama) -> None:
    model, folder = llama
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_the_config_holds_the_numbers_of_the_file(llama) -> None:
    _, folder = llama
    config = transformers.AutoConfig.from_pretrained(folder)
    assert rope_theta(config) == 5000.0
    assert config.rms_norm_eps == 1e-5
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.max_position_embeddings == 128


def test_the_tokenizer(llama) -> None:
    _, folder = llama
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab ab12</s>")["input_ids"]) == ["ab", "Ġab", "1", "2", "</s>"]
    assert tokenizer.decode(tokenizer("ab ab12")["input_ids"]) == "ab ab12"
    assert tokenizer.pad_token_id == 0
    assert tokenizer.chat_template == "{{ messages }}"


def test_write_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    values = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.float32([7.0]),
        "c": np.float32(8.0).reshape(()),
    }
    write_safetensors(tmp_path / "x", {name: (v.shape, lambda v=v: v) for name, v in values.items()})
    loaded = load_file(tmp_path / "x")
    assert loaded.keys() == values.keys()
    assert all(np.array_equal(loaded[name], v) and loaded[name].shape == v.shape for name, v in values.items())
