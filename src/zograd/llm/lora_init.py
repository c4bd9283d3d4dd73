"""LoRA on the inputs of layers: A is their leading directions, fixed; B alone is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zograd.files import atomic_write
from zograd.hub import Example
from zograd.llm.inputs import MORE, directions, watched
from zograd.llm.scoring.scorer import Scorer
from zograd.llm.settings import SettingsError
from zograd.runs.errors import RunError

FILE = "lora_init.safetensors"
"""The matrices A of a run, in its folder: a replay has no task to compute them from."""
BATCHES = 4
"""Training batches whose inputs are looked at."""


def adapters(model: nn.Module) -> dict[str, nn.Linear]:
    """The modules that hold the matrices A of peft's LoRA adapters, by name; each of them sees the layer's input."""
    return {name: m for name, m in model.named_modules() if ".lora_A." in f".{name}." and isinstance(m, nn.Linear)}


def without_A(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors of adapters, the matrices B."""
    return {name: t for name, t in trained.items() if ".lora_A." not in name}


@torch.no_grad()
def from_activations(model: nn.Module, scorer: Scorer, batches: Sequence[Sequence[Example]]) -> None:
    """A [r, in] of each adapter <- the r leading right singular vectors of what enters its layer on these batches.

    ZO-Act (arXiv 2607.01125), by the subspace iteration of `zograd.llm.inputs.leading`; B stays 0, so the model is the
    base model. Cost: one forward of each batch, and r + MORE vectors a layer in memory. An adapter that no token
    reaches keeps the A that it was drawn with, with a warning. Raises SettingsError where a layer's inputs span fewer
    than r directions; then nothing has been written.
    """
    found_in = adapters(model)
    most = max(m.weight.shape[0] for m in found_in.values())

    with watched(found_in, most + MORE, lambda: scorer.filled) as found:
        for batch in batches:
            scorer.loss(batch)
    made = {name: directions(sketch, found_in[name].weight.shape[0]) for name, sketch in found.items()}
    for name, a in made.items():
        if len(a) < (r := found_in[name].weight.shape[0]):
            raise SettingsError(
                f"--lora-init activations: the inputs of {name.partition('.lora_A')[0]} span {len(a)} directions, and "
                f"--lora-r asks for {r}; use --lora-r {len(a)}, or a larger --batch-size"
            )
    if missing := sorted(found_in.keys() - made.keys()):
        warnings.warn(
            f"no token reached {len(missing)} adapters, {missing[0]} among them: their A is random", stacklevel=2
        )
    for name, a in made.items():
        found_in[name].weight.copy_(a)


def save(model: nn.Module, folder: Path) -> None:
    """Write the matrices A to `FILE` in the folder of a run."""
    from safetensors.torch import save as as_bytes

    tensors = {name: m.weight.detach().cpu().contiguous() for name, m in adapters(model).items()}
    atomic_write(folder / FILE, as_bytes(tensors))


def load(model: nn.Module, folder: Path) -> bool:
    """Set the matrices A to those in the folder of a run; False where it has none. Raises RunError: see `set_to`."""
    file = folder / FILE
    if not file.exists():
        return False
    set_to(model, file.read_bytes(), file)
    return True


def set_to(model: nn.Module, data: bytes, file: Path) -> None:
    """Set the matrices A to those that `save` wrote into `file`.

    Raises RunError for contents that do not parse, or do not fit the adapters; then nothing has been written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        tensors: dict[str, Any] = from_bytes(data)
    except (SafetensorError, ValueError) as e:
        raise RunError(f"{file} does not parse ({str(e)[:80]}); delete it, and --resume computes it again") from e
    mine = {name: m.weight for name, m in adapters(model).items()}
    for name in mine.keys() | tensors.keys():
        if name not in mine or name not in tensors or mine[name].shape != tensors[name].shape:
            raise RunError(f"{file} does not fit the adapters of this run: {name} differs; restore it from a copy")
    with torch.no_grad():
        for name, weight in mine.items():
            weight.copy_(tensors[name])
