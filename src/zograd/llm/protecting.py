"""`zograd protect`: what the layers of a language model read on a task, for training that leaves it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zograd.hub.sources import Source
from zograd.laws import Memory
from zograd.llm import loading
from zograd.llm.compressing import batches, layers_of, told
from zograd.llm.evaluate import changed
from zograd.llm.method import memory_at
from zograd.llm.restore import run_or_model
from zograd.llm.robustness import asked_of
from zograd.llm.scoring.kinds import scorer_of
from zograd.llm.settings import SettingsError
from zograd.llm.stages import Stages

LAYERS = 4
"""The last blocks that are remembered where nothing else is said, as many as are trained then."""


def protect(
    model: str | None,
    task: Source,
    out: str | Path,
    *,
    run: Path | None = None,
    extend: Path | None = None,
    energy: float = 0.97,
    modules: str = "",
    layers: int | None = None,
    calibration: int = 128,
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    max_length: int | None = None,
    truncate: str | None = None,
    chat_template: bool | None = None,
    stages: Stages | None = None,
    **data: Any,
) -> dict[str, Any]:
    """Write what linear layers of the last blocks read on training examples of a task, as a `laws.Memory`.

    model, or run: a folder or a packed run, whose model is read (the one that was trained on the task), and which
    brings its task, its prompt and words, and how examples become tokens. extend: a file of earlier
    tasks, which stays remembered. energy: the share of the inputs that is remembered. layers: of the last blocks, 4 by
    default; modules: a regular expression of the names in them. calibration: examples that are read. stages: what shows
    the work; None: it is not shown. data: as `load_task` takes it. Returns the shares of dimensions that are taken.

    `zograd train --protect FILE` then moves the weights off these directions: what they give on the remembered inputs
    stays. What enters them may still change, where layers before them are trained too. Cost: a forward an example, and
    in^2 float64 and an eigendecomposition a layer. Raises SettingsError, before anything is written.
    """
    folder = Path(out)
    if folder.exists():
        raise SettingsError(f"--out {out} exists; choose another name")
    if not 0.0 < energy <= 1.0:
        raise SettingsError(f"--energy {energy}: it is a share of what enters a layer, above 0 and at most 1")
    if calibration < 1:
        raise SettingsError(f"--calibration {calibration}: it counts training examples, at least 1")
    before = None if extend is None else memory_at("--extend", extend)
    s, chosen = asked_of(run, task, data, "train", None, seed, dtype)
    loaded = chosen.task
    encoding = {"max_length": max_length, "truncate": truncate, "chat_template": chat_template}
    s = changed(s, encoding)
    stages = Stages(quiet=True) if stages is None else stages
    base, tokenizer = run_or_model(run, model, dtype=dtype or "float32", device=device, stages=stages)
    found = layers_of(base, modules)
    inside = {id(m) for block in loading.blocks(base)[-(layers or LAYERS) :] for m in block.modules()}
    found = {name: m for name, m in found.items() if id(m) in inside}
    if not found:
        raise SettingsError(f"--modules {modules!r}: no linear layer of the last {layers or LAYERS} blocks matches")
    scorer = scorer_of(base, tokenizer, loaded, **s.encoding)
    seen = batches(loaded, calibration, seed if run is None else s.seed)
    with stages.counted("reading", sum(map(len, seen))) as progress:
        memory = Memory.from_activations(
            found, told(scorer, seen, progress), energy=energy, filled=lambda: scorer.filled, before=before
        )
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    memory.save(folder)
    shares = memory.shares()
    return {
        "out": str(folder), "layers": len(found), "calibration": sum(map(len, seen)), "energy": energy,
        "least": min(shares.values()), "most": max(shares.values()), "shares": shares,
    }  # fmt: skip
