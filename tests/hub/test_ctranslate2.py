"""A random Whisper written as CTranslate2 stores it is read as the same model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from zograd.hub import FetchError
from zograd.hub.ctranslate2 import TYPES, convert_whisper, read_tensors

SETTINGS = {"alignment_heads": [[0, 0]], "suppress_ids": [4], "suppress_ids_begin": [5]}


def packed(tensors: dict[str, np.ndarray[Any, Any]], kind: str = "WhisperSpec", version: int = 6) -> bytes:
    """The bytes of a model.bin."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(kind), struct.pack("<II", 3, len(tensors))]
    for name, t in tensors.items():
        shape = struct.pack(f"<B{t.ndim}I", t.ndim, *t.shape)
        parts += [text(name), shape, struct.pack("<BI", TYPES.index(t.dtype.type), t.nbytes), t.tobytes()]
    return b"".join(
        [*parts, struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    )


@pytest.fixture(scope="module")
def whisper() -> Any:
    config = WhisperConfig(
        vocab_size=60000, d_model=8, num_mel_bins=4, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_source_positions=6,
        max_target_positions=10,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(config).eval()
        for p in model.parameters():
            p.data.copy_(torch.randn_like(p) / 4)
    return model


def stored(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a model by the names of CTranslate2, whose matrices of attention are stacked."""
    own = {name: t.numpy() for name, t in model.state_dict().items()}
    found: dict[str, np.ndarray[Any, Any]] = {
        "encoder/num_heads": np.array(2, np.int16), "decoder/num_heads": np.array(2, np.int16),
    }  # fmt: skip

    def linear(name: str, *parts: str) -> None:
        found[f"{name}/weight"] = np.concatenate([own[f"{p}.weight"] for p in parts])
        zero = [np.zeros(len(own[f"{p}.weight"]), np.float32) for p in parts]
        found[f"{name}/bias"] = np.concatenate([own.get(f"{p}.bias", z) for p, z in zip(parts, zero, strict=True)])

    def norm(name: str, part: str) -> None:
        found[f"{name}/gamma"], found[f"{name}/beta"] = own[f"{part}.weight"], own[f"{part}.bias"]

    for part, layers in (("encoder", 2), ("decoder", 1)):
        for k in range(layers):
            name, p = f"{part}/layer_{k}", f"model.{part}.layers.{k}"
            linear(f"{name}/self_attention/linear_0", *(f"{p}.self_attn.{w}_proj" for w in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{p}.self_attn.out_proj")
            norm(f"{name}/self_attention/layer_norm", f"{p}.self_attn_layer_norm")
            if part == "decoder":
                linear(f"{name}/attention/linear_0", f"{p}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", *(f"{p}.encoder_attn.{w}_proj" for w in "kv"))
                linear(f"{name}/attention/linear_2", f"{p}.encoder_attn.out_proj")
                norm(f"{name}/attention/layer_norm", f"{p}.encoder_attn_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{p}.fc1")
            linear(f"{name}/ffn/linear_1", f"{p}.fc2")
            norm(f"{name}/ffn/layer_norm", f"{p}.final_layer_norm")
        norm(f"{part}/layer_norm", f"model.{part}.layer_norm")
        found[f"{part}/position_encodings/encodings"] = own[f"model.{part}.embed_positions.weight"]
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    found["decoder/embeddings/weight"] = own["model.decoder.embed_tokens.weight"]
    return found


def test_a_converted_model_computes_the_same(whisper: Any, tmp_path: Path) -> None:
    """Also from 16-bit numbers, which become float32; the settings of generation come along."""
    convert_whisper(packed(stored(whisper)), SETTINGS, b"{}", tmp_path)
    made = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    given = {
        "input_features": torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(1)),
        "decoder_input_ids": torch.tensor([[3, 4]]),
    }
    with torch.no_grad():
        torch.testing.assert_close(made(**given).logits, whisper(**given).logits)
    assert made.generation_config.suppress_tokens == [4]
    assert made.generation_config.max_length == 10
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["feature_size"] == 4
    half = {name: t.astype(np.float16) if t.dtype == np.float32 else t for name, t in stored(whisper).items()}
    (tmp_path / "half").mkdir()
    convert_whisper(packed(half), SETTINGS, b"{}", tmp_path / "half")
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.model.encoder.conv1.weight.flatten()[0] == float(half["encoder/conv1/weight"].flatten()[0])


def test_files_that_are_no_such_model_are_refused(tmp_path: Path) -> None:
    one = {"a": np.ones((2, 3), np.float32), "decoder/embeddings/weight": np.ones(1, np.float32)}
    whole = packed(one)
    kind, found = read_tensors(whole)
    assert (kind, found["a"].shape) == ("WhisperSpec", (2, 3))
    assert found["decoder/projection/weight"] is found["decoder/embeddings/weight"]
    for bad, says in [
        (whole[:-3], "is not one of CTranslate2"),
        (whole + b"x", "1 bytes are left"),
        (b"no", "is not one of CTranslate2"),
        (packed(one, version=5), "has version 5 of CTranslate2's format, expected 6"),
    ]:
        with pytest.raises(FetchError, match=says):
            read_tensors(bad)
    with pytest.raises(FetchError, match="holds a TransformerSpec, expected a WhisperSpec"):
        convert_whisper(packed(one, "TransformerSpec"), SETTINGS, b"{}", tmp_path)
    assert not list(tmp_path.iterdir())
