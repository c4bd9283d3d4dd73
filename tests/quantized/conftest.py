"""Tiny GGUF files, written by the package gguf from the suite's tiny language model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tiny_gguf("Q4_1"): a folder with the model's config and tokenizer, and its weights in blocks of that format."""
    made: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in made:
            made[form] = write(tiny_model, tmp_path_factory.mktemp(form), form)
        return made[form]

    return make


def write(source: Path, folder: Path, form: str) -> Path:
    import gguf
    from gguf.quants import quantize
    from transformers import AutoModelForCausalLM

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    model = AutoModelForCausalLM.from_pretrained(source)
    c = model.config
    out = gguf.GGUFWriter(str(folder / "tiny.gguf"), "llama")
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(c.vocab_size)
    kind = gguf.GGMLQuantizationType[form]
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}

    def matrix(name: str, w: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
        out.add_tensor(name, quantize(np.ascontiguousarray(w), kind), raw_dtype=kind)

    matrix("token_embd.weight", state["model.embed_tokens.weight"], gguf.GGMLQuantizationType.Q8_0)
    out.add_tensor("output_norm.weight", state["model.norm.weight"])
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        out.add_tensor(f"blk.{i}.attn_norm.weight", state[f"{at}.input_layernorm.weight"])
        out.add_tensor(f"blk.{i}.ffn_norm.weight", state[f"{at}.post_attention_layernorm.weight"])
        for theirs, ours in parts.items():
            w = state[f"{at}.{theirs}.weight"]
            if ours in heads:  # llama.cpp's order of rotary pairs
                n = heads[ours]
                w = w.reshape(n, 2, w.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(w.shape)
            if (i, ours) == (0, "ffn_up"):  # some groups are all zero: their scales are 0
                w = w.copy()
                w[:3] = 0.0
            matrix(f"blk.{i}.{ours}.weight", w, kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return folder
