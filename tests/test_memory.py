"""Peaks of the process: what was allocated inside is seen, what was freed before is not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zograd as zo
from zograd.core.slots import PerRow
from zograd.core.vector import Vector
from zograd.runs import memory
from zograd.runs.memory import KERNELS, Peak, available_bytes, few_kernels, resident_bytes
from zograd.stores.leaf import by_row

MIB = 1 << 20


def can_reset() -> bool:
    with Peak() as peak:
        pass
    return peak.method == "VmHWM"


needs_reset = pytest.mark.skipif(not can_reset(), reason="this system cannot reset the high-water mark")


def idle() -> int:
    """Resident memory without what earlier tests have left to be freed."""
    gc.collect()
    memory.trim()
    return resident_bytes()


def allocate(mib: int) -> None:
    torch.ones(mib * MIB, dtype=torch.uint8)


@needs_reset
def test_a_peak_is_of_its_block_only():
    allocate(200)
    base = idle()
    with Peak() as large:
        allocate(100)
    with Peak() as small:
        allocate(10)
    assert large.bytes - base == pytest.approx(100 * MIB, abs=20 * MIB)
    assert small.bytes < large.bytes - 60 * MIB


@needs_reset
def test_nested_blocks_do_not_lose_the_peak_of_the_outer_one():
    base = idle()
    with Peak() as outer:
        allocate(120)
        with Peak() as inner:
            allocate(10)
        allocate(20)
    assert outer.bytes - base > 100 * MIB
    assert inner.bytes - base < 60 * MIB


@needs_reset
def test_the_peak_so_far_can_be_read_inside():
    with Peak() as peak:
        allocate(50)
        so_far = peak.bytes
        allocate(150)
    assert 0 < so_far < peak.bytes


def test_an_error_passes_through_and_closes_the_block():
    with pytest.raises(KeyError), Peak() as peak:
        raise KeyError
    assert peak.bytes >= 0
    assert memory._nested == []


def test_without_proc_the_highest_of_the_process_is_given_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "absent")
    with Peak() as peak:
        allocate(1)
    assert peak.method == ("unavailable" if sys.platform == "win32" else "ru_maxrss")
    assert peak.bytes == resident_bytes()
    if sys.platform != "win32":
        assert peak.bytes > 10 * MIB


def test_available_memory_is_a_size_or_unknown():
    available = available_bytes()
    assert available is None or available > MIB
    if not torch.cuda.is_available():
        assert available_bytes("cuda") is None


def test_importing_does_not_import_torch():
    code = "import sys, zograd.runs.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_reset
def test_a_rule_that_reads_rows_as_rows_does_not_expand_them():
    """Adafactor takes a workspace of one float32 a weight; expanding its numbers of rows took three more."""
    x = torch.zeros(4096, 576)
    run = zo.Run(zo.Store({"w": x}), zo.methods.zo_adafactor())
    first = lambda store, queries, key: [1.0 + 0.1 * i for i in range(len(queries))]  # noqa: E731
    before = idle()
    with Peak() as peak:
        run.step(first)
    assert peak.bytes - before < 2.5 * 4 * x.numel()


def test_slots_by_row_are_shown_by_element():
    store = zo.Store({"w": torch.zeros(3, 4)})
    store.require({"row": PerRow(1.0), "each": 0.0})
    store.leaves[0].slots["row"].copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    (block,) = store.blocks(Vector())
    assert block.slots["row"].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert list(block.slots) == ["each", "row"]
    assert len(block.slots) == 2
    assert by_row(torch.tensor([1.0, 2.0, 3.0]), 4, 3, 6).tolist() == [1.0, 2.0, 2.0]


SHAPES = """
import sys
import torch
from zograd.runs.memory import few_kernels, resident_bytes

if sys.argv[1] == "few":
    few_kernels()
torch.set_num_threads(1)
w, x = torch.ones(1024, 1024).bfloat16(), torch.ones(1000, 1024).bfloat16()
with torch.no_grad():
    x[:300] @ w.T
    before = resident_bytes()
    for n in range(320, 1000):
        torch.nn.functional.linear(x[:n], w)
print(resident_bytes() - before)
"""


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="no matrix units for bfloat16")
def test_kernels_of_shapes_that_do_not_come_again_are_dropped() -> None:
    def left(kernels: str) -> int:
        environment = {name: value for name, value in os.environ.items() if name not in KERNELS}
        command = [sys.executable, "-c", SHAPES, kernels]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert left("few") < 0.6 * left("all")


def test_a_number_of_kernels_that_was_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = KERNELS
    monkeypatch.setenv(first, "7")
    monkeypatch.setenv(second, "")
    monkeypatch.delenv(second)
    few_kernels()
    assert (os.environ[first], os.environ[second]) == ("7", KERNELS[second])
