"""Read a Whisper model in the format of CTranslate2, and write it as transformers loads it.

A `model.bin` of CTranslate2 has all numbers in little-endian order: the version of the format, the name of the kind of
model, its revision, the number of tensors, and for each its name, rank, dimensions, type, number of bytes and data.
Names of tensors that share data follow. Queries, keys and values of self-attention are stacked in one matrix, keys and
values of cross-attention in another.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from zograd.files import share
from zograd.hub.errors import FetchError

__all__ = ["convert_whisper", "read_tensors"]

Tensors = dict[str, np.ndarray[Any, Any]]

TYPES: Final = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""The element types by their numbers."""

END, START, NO_TIMES, BEFORE = 50256, 50257, 50362, 50360
"""Tokens of the English models: end of text, start of a transcript, no timestamps, start of an earlier text."""


def read_tensors(data: bytes) -> tuple[str, Tensors]:
    """The kind of a model and its tensors by name, which are views of `data`; scalars are settings.

    Raises:
        FetchError: the bytes are not such a file, or end early.
    """
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        found = data[at : at + size].rstrip(b"\0").decode("ascii")
        at += size
        return found

    tensors: Tensors = {}
    try:
        version = number("I")
        kind = text()
        number("I")
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            element, size = np.dtype(TYPES[number("B")]), number("I")
            if size != element.itemsize * math.prod(shape):
                raise ValueError(f"{name} has {size} bytes for {shape}")
            tensors[name] = np.frombuffer(data, element, math.prod(shape), at).reshape(shape)
            at += size
        for _ in range(number("I")):
            alias = text()
            tensors[alias] = tensors[text()]
        if at != len(data):
            raise ValueError(f"{len(data) - at} bytes are left")
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise FetchError(f"The model file is not one of CTranslate2 (version 6): {error}.") from error
    if version != 6:
        raise FetchError(f"The model file has version {version} of CTranslate2's format, expected 6.")
    return kind, tensors


def convert_whisper(model: bytes, settings: Mapping[str, Any], tokenizer: bytes, folder: Path) -> None:
    """Write a folder that `WhisperForConditionalGeneration` and `AutoProcessor` load: weights in float32.

    model: the bytes of `model.bin`. settings: its `config.json`, with the tokens that are never written. tokenizer: its
    `tokenizer.json`. Raises FetchError for another kind of model, or tensors that do not fit.
    """
    from safetensors.numpy import save_file

    kind, tensors = read_tensors(model)
    if kind != "WhisperSpec":
        raise FetchError(f"The model file holds a {kind}, expected a WhisperSpec.")
    config = _config(tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(_weights(tensors), folder / "model.safetensors", {"format": "pt"})
    share(folder)
    generation = {
        "decoder_start_token_id": START, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END,
        "forced_decoder_ids": None, "is_multilingual": False, "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"], "no_timestamps_token_id": NO_TIMES, "prev_sot_token_id": BEFORE,
        "return_timestamps": False, "alignment_heads": settings["alignment_heads"],
        "suppress_tokens": settings["suppress_ids"], "begin_suppress_tokens": settings["suppress_ids_begin"],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    words = {"tokenizer_class": "WhisperTokenizer", "model_max_length": config["max_target_positions"], **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor",
        "feature_size": config["num_mel_bins"], "sampling_rate": 16000, "hop_length": 160, "chunk_length": 30,
        "n_fft": 400, "padding_value": 0.0, "padding_side": "right", "return_attention_mask": False,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(features, indent=1) + "\n", encoding="utf-8")


def _config(tensors: Tensors) -> dict[str, Any]:
    """The configuration of transformers, from the shapes."""
    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    layers = {part: _layers(tensors, part) for part in ("encoder", "decoder")}
    inner, _ = tensors["encoder/layer_0/ffn/linear_0/weight"].shape
    return {
        "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "dtype": "float32",
        "vocab_size": vocabulary, "d_model": width, "num_mel_bins": tensors["encoder/conv1/weight"].shape[1],
        "encoder_layers": layers["encoder"], "decoder_layers": layers["decoder"],
        "num_hidden_layers": layers["encoder"],
        "encoder_attention_heads": int(tensors["encoder/num_heads"]),
        "decoder_attention_heads": int(tensors["decoder/num_heads"]),
        "encoder_ffn_dim": inner, "decoder_ffn_dim": inner,
        "max_source_positions": len(tensors["encoder/position_encodings/encodings"]),
        "max_target_positions": len(tensors["decoder/position_encodings/encodings"]),
        "decoder_start_token_id": START, "bos_token_id": END, "eos_token_id": END, "pad_token_id": END,
        "activation_function": "gelu", "is_encoder_decoder": True, "scale_embedding": False, "use_cache": True,
        "suppress_tokens": None, "begin_suppress_tokens": None,
    }  # fmt: skip


def _layers(tensors: Tensors, part: str) -> int:
    """How many layers the encoder or the decoder has."""
    return len({name.split("/")[1] for name in tensors if name.startswith(f"{part}/layer_") and name.count("/") > 2})


def _weights(tensors: Tensors) -> Tensors:
    """The tensors by the names of transformers, in float32."""
    width, found = tensors["decoder/embeddings/weight"].shape[1], Tensors()

    def put(to: str, name: str, part: slice = slice(None)) -> None:
        found[to] = np.ascontiguousarray(tensors[name][part], dtype=np.float32)

    def linear(to: str, name: str, third: int | None = None, *, bias: bool = True) -> None:
        rows = slice(None) if third is None else slice(third * width, (third + 1) * width)
        put(f"{to}.weight", f"{name}/weight", rows)
        if bias:
            put(f"{to}.bias", f"{name}/bias", rows)

    def norm(to: str, name: str) -> None:
        put(f"{to}.weight", f"{name}/gamma")
        put(f"{to}.bias", f"{name}/beta")

    for part in ("encoder", "decoder"):
        for layer in range(_layers(tensors, part)):
            to, name = f"model.{part}.layers.{layer}", f"{part}/layer_{layer}"
            for k, which in enumerate("qkv"):  # the keys of Whisper have no bias, and zeros stand in its place
                linear(f"{to}.self_attn.{which}_proj", f"{name}/self_attention/linear_0", k, bias=which != "k")
            linear(f"{to}.self_attn.out_proj", f"{name}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{name}/self_attention/layer_norm")
            if part == "decoder":
                linear(f"{to}.encoder_attn.q_proj", f"{name}/attention/linear_0")
                linear(f"{to}.encoder_attn.k_proj", f"{name}/attention/linear_1", 0, bias=False)
                linear(f"{to}.encoder_attn.v_proj", f"{name}/attention/linear_1", 1)
                linear(f"{to}.encoder_attn.out_proj", f"{name}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{name}/attention/layer_norm")
            linear(f"{to}.fc1", f"{name}/ffn/linear_0")
            linear(f"{to}.fc2", f"{name}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{name}/ffn/layer_norm")
        norm(f"model.{part}.layer_norm", f"{part}/layer_norm")
        put(f"model.{part}.embed_positions.weight", f"{part}/position_encodings/encodings")
    for name in ("conv1", "conv2"):
        linear(f"model.encoder.{name}", f"encoder/{name}")
    put("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    return found
