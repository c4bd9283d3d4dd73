"""`zograd pack`: a run as one small file from which the weights are rebuilt on the same base model, bit by bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from zograd.llm import lora_init
from zograd.llm.method import build_method
from zograd.llm.restore import base_of, fixed_settings, load_weights, restore, stored_settings
from zograd.llm.stages import Stages
from zograd.runs.errors import RunError
from zograd.runs.packed import bits_of, is_pack, write_pack
from zograd.runs.rundir import RunDirectory

SUFFIX = ".zopack"


def pack(
    run: str | Path, out: str | Path | None = None, *, model: str | None = None, stages: Stages | None = None
) -> dict[str, Any]:
    """Write a run as one file; returns what `zograd pack --json` prints.

    run: the folder of the run. out: the file; None: the name of the folder with `.zopack` behind it.
    model: where the base model is now; None: where the run found it. stages: what shows the work; None: nothing does.

    Where the tape gives the weights back, the file holds the tape ("kind": "tape"), some 20 bytes a step of two
    evaluations; the base model is read only if the run did not come to its end. Otherwise (`residual`, `backprop`,
    `node_perturbation`, `agzo`) it holds the exact difference between the trained weights and the base model
    ("difference"), one to three bytes a weight; the base model is read, and the trained weights are in memory twice.

    `zograd replay`, `eval --run`, `predict` and `generate` take the file in place of the folder. Raises RunError for a
    run that cannot be packed, and for `out` that exists.

        pack("runs/a", "a.zopack")["bytes"]
    """
    start = time.perf_counter()
    stages = Stages(quiet=True) if stages is None else stages
    if is_pack(run):
        raise RunError(f"{run} is packed already")
    directory = RunDirectory.open(run)
    file = free_file(Path(run), out)
    s = stored_settings(directory)
    tape = directory.tape(fixed=fixed_settings(s))
    recorded = directory.meta.get("result", {})
    method = build_method(s)
    weights = 0
    if method.estimator.replays:
        whole = recorded.get("steps") == tape.steps and isinstance(recorded.get("sha256"), str)
        sha256 = recorded["sha256"] if whole else restore(run, model, stages=stages)[0].store.digest()
        write_pack(file, directory, tape, sha256, files=[lora_init.FILE])
    else:
        with stages.stage(f"loading {model or s.model}"):
            p = base_of(directory, model=model)
        before = {leaf.name: bits_of(leaf.tensor).clone() for leaf in p.store.leaves}
        load_weights(directory, p, tape, tape.steps)
        weights = p.store.dim
        changed = ((leaf.name, before[leaf.name] ^ bits_of(leaf.tensor)) for leaf in p.store.leaves)
        sha256 = p.store.digest()
        with stages.stage(f"writing the difference of {weights:,} weights"):
            write_pack(file, directory, tape, sha256, files=[lora_init.FILE], difference=changed)
    return {
        "path": str(file),
        "bytes": file.stat().st_size,
        "kind": "difference" if weights else "tape",
        "method": s.method,
        "steps": tape.steps,
        "weights": weights,
        "sha256": sha256,
        "base": s.model,
        "seconds": time.perf_counter() - start,
    }


def free_file(run: Path, out: str | Path | None) -> Path:
    """The file to write: `out`, or the name of the folder with `.zopack`. Raises RunError for one that exists."""
    file = Path(out) if out is not None else run.resolve().with_name(run.resolve().name + SUFFIX)
    if file.exists() or not file.absolute().parent.is_dir():
        why = "exists" if file.exists() else f"cannot be written: there is no folder {file.absolute().parent}"
        raise RunError(f"{file} {why}; choose another --out")
    return file
