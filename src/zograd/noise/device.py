"""Noise on CUDA devices: one Triton launch for a group of leaves, one synchronisation at most.

The host writes two small tables to the device: the jobs (addresses, leaf numbers, ranges) and the knobs (keys,
coefficients, scale, rounding key). A `Pass` keeps them, so a CUDA graph of its launches can be replayed after `set`
has changed the knobs. Kernels: triton_kernels.py.
"""

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .format import Kind
from .native import DTYPES, NEAREST, PAIR, SPLIT, STOCHASTIC
from .table import values_on

if TYPE_CHECKING:
    from types import ModuleType

TILE, ROW_TILE = 8192, 2048  # elements per program; multiples of a block of signs
MOST_JOBS = 4096  # per launch: each program searches the list of first tiles for its job
MOST_UNROLLED = 4  # terms; more terms run in a loop, with one exchange through shared memory per term
VECTOR_BYTES = 16

Terms = Sequence[tuple[Kind, int, float]]


class Job(NamedTuple):
    """One tensor of a group: the arguments of `combine` that differ between leaves."""

    out: Tensor
    x: Tensor | None = None
    leaf: int = 0
    start: int = 0
    dense: Tensor | None = None
    low: Tensor | None = None

    @property
    def in_place(self) -> bool:
        return self.x is not None and self.x.data_ptr() == self.out.data_ptr()


@cache
def available() -> bool:
    """Whether triton is installed (checked without importing it)."""
    return find_spec("triton") is not None


@cache
def kernels() -> "ModuleType":
    """The kernels; imports triton."""
    from . import triton_kernels

    return triton_kernels


class Pass:
    """One pass over a group of leaves: out = round(scale * x + (dense_coef * dense + sum_j coef_j noise_j)) for each.

    jobs: all on one device; their tensors must outlive the pass. Overlaps between jobs are not checked.
    kinds: the kinds of the terms, in order.
    scaled, counted: False removes the multiplication by `scale`, or the count, from the compiled kernel.
    pair: out receives x + v, and `low` of each job (dtype of x) receives x - v.
    changed: int64 on the device, to which each launch adds the number of elements it changed in place (default: a new
        one). It is never reset here.

    `set` stores the numbers, without synchronisation. `launch` runs the kernels: one for each combination of dtype,
    rounding and arguments given among the jobs, two where some tensors are not aligned to 16 bytes.

    Memory: 64 bytes per job and 24 per term on the device.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        kinds: Sequence[Kind],
        *,
        rounding: bool = False,
        scaled: bool = True,
        counted: bool = True,
        pair: bool = False,
        changed: Tensor | None = None,
    ):
        self.kinds = tuple(kinds)
        self.scaled, self.counted = scaled, counted
        self.device = jobs[0].out.device
        self.changed = counter(self.device) if changed is None else changed
        self._knobs = _to_device(knobs_of(1.0, [(kind, 0, 0.0) for kind in kinds], 0.0, 0), self.device)
        self._groups: list[_Group] = []
        sorted_jobs: dict[tuple[Any, ...], list[Job]] = {}
        for job in jobs:
            if not job.out.numel():
                continue
            mode = STOCHASTIC if rounding and job.out.element_size() == 2 else NEAREST
            mode = mode if job.low is None else PAIR if pair else SPLIT
            shape = (DTYPES[job.out.dtype], mode, job.x is not None, job.dense is not None, job.in_place, _aligned(job))
            sorted_jobs.setdefault(shape, []).append(job)
        for shape, alike in sorted_jobs.items():
            for i in range(0, len(alike), MOST_JOBS):
                self._groups.append(_Group(shape, alike[i : i + MOST_JOBS], self.device))

    def set(self, scale: float, terms: Terms, dense_coef: float, rounding: int | None) -> None:
        """Sets the numbers of the next launches; the kinds of `terms` must be those of the pass."""
        if tuple(kind for kind, _, _ in terms) != self.kinds:
            raise ValueError(f"terms are of kinds {[kind for kind, _, _ in terms]}; expected {list(self.kinds)}")
        if scale != 1.0 and not self.scaled:
            raise ValueError(f"scale={scale} in a pass made with scaled=False; make the pass with scaled=True")
        _to_device(knobs_of(scale, terms, dense_coef, rounding or 0), self.device, self._knobs)

    def launch(self) -> None:
        code = kernels()
        table = values_on(self.device)
        for group in self._groups:
            dtype, mode, has_x, has_dense, in_place, aligned = group.shape
            code.combine_kernel[(group.tiles,)](
                group.jobs,
                group.first_tiles,
                self._knobs,
                table,
                self.changed,
                group.size,
                len(self.kinds),
                FORMAT=dtype,
                MODE=mode,
                **kinds_options(self.kinds),
                HAS_X=has_x,
                HAS_DENSE=has_dense,
                SCALED=self.scaled,
                COUNT=in_place and self.counted,
                ALIGNED=aligned,
                JOBS=1 << (group.size - 1).bit_length(),
                TILE=TILE,
                **launch_options(TILE, self.kinds, mode),
            )


class _Group:
    """The jobs of one launch, as tables on the device."""

    def __init__(self, shape: tuple[Any, ...], jobs: Sequence[Job], device: torch.device):
        self.shape, self.size = shape, len(jobs)
        rows: list[int] = []
        first_tiles, tiles = [], 0
        for job in jobs:
            stop = job.start + job.out.numel()
            origins = [_origin(tensor, job.start) for tensor in (job.out, job.x, job.dense, job.low)]
            rows += [*origins, job.leaf, job.start, stop, tiles]
            first_tiles.append(tiles)
            tiles += (stop - 1) // TILE + 1 - job.start // TILE
        self.tiles = tiles
        packed = _to_device(torch.tensor([*rows, *first_tiles], dtype=torch.int64, device="cpu"), device)
        self.jobs, self.first_tiles = packed[: len(rows)], packed[len(rows) :]


def kinds_options(kinds: Sequence[Kind]) -> dict[str, int]:
    """Compile-time options: which kinds occur, and how many terms are unrolled."""
    signs, normals = Kind.SIGN in kinds, Kind.NORMAL in kinds
    return {"KINDS": signs + 2 * normals, "TERMS": len(kinds) if len(kinds) <= MOST_UNROLLED else 0}


def elements_per_thread(kinds: Sequence[Kind], mode: int) -> int:
    """64 for one sign, since 32 would double the Philox calls; otherwise 32, which halves the registers per thread."""
    return 64 if tuple(kinds) == (Kind.SIGN,) and mode == NEAREST else 32


def launch_options(tile: int, kinds: Sequence[Kind], mode: int) -> dict[str, Any]:
    """Options of every launch. Fused multiply-adds are off, because they would change the last bit."""
    return {"enable_fp_fusion": False, "num_warps": tile // (32 * elements_per_thread(kinds, mode))}


def knobs_of(scale: float, terms: Terms, dense_coef: float, rounding: int) -> Tensor:
    """The knobs as int64 on the CPU, in the layout of `triton_kernels.KNOBS`; reals as float64 bit patterns."""
    values = struct.pack("=2dQ", scale, dense_coef, rounding)
    values += b"".join(struct.pack("=qQd", kind, key, coef) for kind, key, coef in terms)
    return torch.frombuffer(bytearray(values), dtype=torch.int64)


def _to_device(table: Tensor, device: torch.device, into: Tensor | None = None) -> Tensor:
    """Copies a small table to the device, through pinned memory so that the host does not wait."""
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True) if into is None else into.copy_(table, non_blocking=True)


def _origin(tensor: Tensor | None, start: int) -> int:
    """The address of element 0 of the leaf, extrapolated from `tensor`, which holds elements from `start` on."""
    return 0 if tensor is None else tensor.data_ptr() - start * tensor.element_size()


def _aligned(job: Job) -> bool:
    """Whether every 16-byte vector lies wholly inside or wholly outside the job, in each of its tensors."""
    step = VECTOR_BYTES // job.out.element_size()
    if job.start % step or job.out.numel() % step:
        return False
    tensors = (job.out, job.x, job.dense, job.low)
    return all(_origin(tensor, job.start) % VECTOR_BYTES == 0 for tensor in tensors if tensor is not None)


# --------------------------------------------------------------------------------------------------------- entry points


def counter(device: torch.device) -> Tensor:
    """A new count of changed elements on the device: int64, 0."""
    return torch.zeros((), dtype=torch.int64, device=device)


def combine_group(
    jobs: Sequence[Job],
    scale: float,
    terms: Terms,
    dense_coef: float,
    rounding: int | None,
    changed: Tensor | None = None,
) -> int:
    """`zograd.noise.combine_group` on checked arguments."""
    kinds = [kind for kind, _, _ in terms]
    whole = Pass(jobs, kinds, rounding=rounding is not None, scaled=scale != 1.0, changed=changed)
    with _on(whole.device):
        whole.set(scale, terms, dense_coef, rounding)
        whole.launch()
    wanted = changed is None and any(job.in_place for job in jobs)
    return int(whole.changed.item()) if wanted else 0


def combine(
    out: Tensor,
    x: Tensor | None,
    scale: float,
    terms: Terms,
    dense: Tensor | None,
    dense_coef: float,
    leaf: int,
    start: int,
    rounding: int | None,
    low: Tensor | None,
) -> int:
    """`zograd.noise.combine` on checked arguments; returns the number of elements in place whose bits changed."""
    return combine_group([Job(out, x, leaf, start, dense, low)], scale, terms, dense_coef, rounding)


def combine_pair(plus: Tensor, minus: Tensor, x: Tensor, terms: Terms, leaf: int, start: int) -> None:
    """`zograd.noise.combine_pair` on checked arguments."""
    whole = Pass([Job(plus, x, leaf, start, None, minus)], [kind for kind, _, _ in terms], scaled=False, pair=True)
    with _on(whole.device):
        whole.set(1.0, terms, 1.0, None)
        whole.launch()


def combine_rows(out: Tensor, x: Tensor, rows: Tensor, terms: Terms, leaf: int, row_len: int) -> None:
    """`zograd.noise.combine_rows` on checked arguments."""
    torch._assert_async(((rows >= 0) & (rows < len(x))).all(), f"rows outside of a table of {len(x)} rows")
    kinds = [kind for kind, _, _ in terms]
    aligned = row_len * x.element_size() % VECTOR_BYTES == 0
    aligned = aligned and not (x.data_ptr() % VECTOR_BYTES or out.data_ptr() % VECTOR_BYTES)
    with _on(x.device):
        kernels().rows_kernel[(rows.numel(), (row_len - 2) // ROW_TILE + 2)](
            out.data_ptr(),
            x.data_ptr(),
            rows,
            _to_device(knobs_of(1.0, terms, 0.0, 0), x.device),
            values_on(x.device),
            leaf,
            row_len,
            len(kinds),
            FORMAT=DTYPES[x.dtype],
            **kinds_options(kinds),
            ALIGNED=aligned,
            TILE=ROW_TILE,
            **launch_options(ROW_TILE, kinds, NEAREST),
        )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which launches go to this device; does nothing on the CPU (Triton's interpreter)."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
