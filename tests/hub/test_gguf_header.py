"""A GGUF header is believed only as far as the file goes: damage is one sentence, in bounded time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zograd.hub.gguf_header import GGUFError, check_header
from zograd.llm import loading
from zograd.llm.loading import ModelError

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A valid file with values of every kind and three tensors."""
    path = tmp_path_factory.mktemp("header") / "tiny.gguf"
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_block_count(2)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_bool("a.flag", True)
    out.add_uint64("a.large", 3)
    out.add_array("tokenizer.ggml.tokens", ["<s>", "a", "bc"])
    out.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    out.add_tensor("one", np.ones((4, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q4_0)
    out.add_tensor("two", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    out.add_tensor("three", np.ones(3, np.float16))
    for write in (out.write_header_to_file, out.write_kv_data_to_file, out.write_tensors_to_file, out.close):
        write()
    return path.read_bytes()


def header(*entries: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(entries)) + b"".join(entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, count)


def tensor(name: str, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_a_valid_file_passes(tmp_path: Path, tiny: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny)
    check_header(tmp_path / "x.gguf")
    assert len(gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors) == 3


BAD = [
    (b"GG", "does not begin with the letters GGUF"),
    (b"GGUF\x03\x00\x00\x00", r"is cut: it has 8 bytes, and the header of a GGUF file has 24"),
    (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "says that it has version 9"),
    (header() [:16] + struct.pack("<Q", 1 << 60), r"asks for 0 tensors and 1,152,921,504,606,846,976 entries"),
    (header(text("a") + array(0, 10**12)) + b"\0" * 100, r"has 149 bytes, and an array .* 1,000,000,000,000 elements"),
    (header(text("a") + array(8, 10**12)) + b"\0" * 100, r"an array in its header asks for 1,000,000,000,000 elements"),
    (header(text("a") + array(0, 1 << 23)) + b"\0" * (1 << 23), r"an array in its header asks for 8,388,608 elements"),
    (header(text("a") + struct.pack("<IQ", 8, 1 << 62)), r"cut or damaged: it has 45 bytes, .* asks for 4,611,686,018"),
    (header(struct.pack("<Q", 1 << 63)), r"cut or damaged: it has 32 bytes"),
    (header(text("a") + array(9, 1) + b"".join(struct.pack("<IQ", 9, 1) for _ in range(5000))), "has the type 9"),
    (header(text("a") + struct.pack("<I", 99)), "has the type 99"),
    (header(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)), "is not UTF-8"),
    (header(*[text("a") + struct.pack("<II", 4, 1)] * 2), "the entry 'a' is there twice"),
    (header(text("general.alignment") + struct.pack("<II", 4, 0)), "alignment is no power of two"),
    (header(text("x.block_count") + struct.pack("<II", 4, 10**9)), r"x.block_count is 1,000,000,000, and it has 0"),
    (header(tensors=1) + tensor("t", [1 << 40, 1 << 40]), r"is cut: it has 65 bytes, and its header asks for 4,8"),
    (header(tensors=1) + tensor("t", [4], offset=1 << 60), r"is cut: .* asks for 1,152,921,504,606,847,056; download"),
    (header(tensors=1) + tensor("t", [4], kind=77), "'t' has the unknown type 77"),
    (header(tensors=1) + tensor("t", [0]), r"'t' of shape \[0\] is not made of blocks of 1"),
    (header(tensors=1) + tensor("t", [33], kind=2), r"'t' of shape \[33\] is not made of blocks of 32"),
    (header(tensors=1) + tensor("t", [4] * 9), "'t' has 9 axes"),
    (header(tensors=2) + tensor("t", [4]) * 2, "the tensor 't' is there twice"),
    (header(tensors=1) + tensor("t", [4], offset=7), "does not begin at a multiple of 32"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD, ids=range(len(BAD)))
def test_damage_is_named_at_once(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(GGUFError, match=message) as caught:
        check_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert "x.gguf" in str(caught.value)


def test_a_file_cut_anywhere_is_called_cut(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "x.gguf"
    for size in (*range(4, len(tiny) - 60, 7), len(tiny) - 40):
        path.write_bytes(tiny[:size])
        with pytest.raises(GGUFError, match=rf"is cut.*it has {size:,} bytes"):
            check_header(path)


@pytest.mark.parametrize("quantized", [True, False])
def test_a_model_file_that_is_cut_is_one_sentence(tmp_path: Path, tiny: bytes, quantized: bool) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(tiny[: len(tiny) * 2 // 3])
    with pytest.raises(ModelError, match=r"x\.gguf is cut.* bytes, and its header asks for .*; download it again"):
        loading.load(str(path), quantized=quantized)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_whatever_is_accepted_is_read_by_the_package_and_all_else_is_one_error(
    tmp_path: Path, tiny: bytes, changes: list[tuple[int, int]], cut: bool
) -> None:
    """Bytes of a valid header changed at random: GGUFError, or a file that the package reads without one."""
    data = bytearray(tiny)
    for place, value in changes:
        data[place % 640] = value
    if cut:
        data = data[: changes[0][0] % len(data)]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    try:
        check_header(path)
    except GGUFError:
        return
    reader: Any = gguf.GGUFReader(str(path))
    assert all(t.data_offset + t.n_bytes <= len(data) for t in reader.tensors)
