"""`python -m benchmarks.offload`: a model larger than its memory limit, trained from the disk and beside it in memory.

Each run is a process of its own. The limit is the system's own on private memory (`RLIMIT_DATA`), set before Python
starts: an allocation beyond it fails. Pages of mapped files are not private, so they are measured instead: the peak is
the kernel's high-water mark of all resident pages (`VmHWM`), those of files and of libraries included.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm import tqdm

from zograd.bench.arguments import BatchSize, SeqLen
from zograd.cli.options import script
from zograd.errors import UsageError
from zograd.offload.mapped import write
from zograd.runs.memory import Peak

WIDTH, INNER, VOCABULARY = 1024, 2816, 8192
GIB = 2.0**30


def make_model(folder: Path, gib: float, seed: int) -> int:
    """A Llama of random float32 weights, at least `gib` GiB, written tensor by tensor; returns their bytes."""
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    def config(layers: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers,
            num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=512, tie_word_embeddings=True,
        )  # fmt: skip

    def size(layers: int) -> int:
        with init_empty_weights():
            model = LlamaForCausalLM(config(layers))
        return sum(4 * p.numel() for p in model.model.parameters())

    outside, block = size(1), size(2) - size(1)
    layers = max(2, math.ceil((gib * GIB - outside) / block) + 1)
    with init_empty_weights():
        model = LlamaForCausalLM(config(layers))
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)

    def random(name: str, shape: torch.Size) -> Tensor:
        return torch.ones(shape) if "norm" in name else torch.empty(shape).normal_(0, 0.02, generator=generator)

    named = {
        name: (torch.float32, p.shape, lambda n=name, s=p.shape: random(n, s)) for name, p in model.named_parameters()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "model.safetensors", named)
    model.config.save_pretrained(folder)
    return sum(math.prod(shape) * 4 for _, shape, _ in named.values())


def bench_offload(
    gib: Annotated[float, "GiB of the weights of the model, random float32."] = 2.0,
    *,
    limit: Annotated[float, "GiB of private memory that the run from the disk may take."] = 1.0,
    steps: Annotated[int, "Steps of each run."] = 3,
    batch_size: BatchSize = 2,
    seq_len: SeqLen = 32,
    threads: Annotated[int, "CPU threads."] = 1,
    seed: int = 0,
    folder: Annotated[Path | None, "Where twice the model has room. [a temporary folder]"] = None,
) -> dict[str, Any]:
    """A model larger than its memory limit, trained from the disk, beside the same steps in memory.

    Steps of zo_sgd on a random Llama of `gib` GiB: in memory; in memory under the limit; from the disk under it.

    Keys: `model_bytes`, `limit_bytes`; `peak_bytes` and `resident_peak_bytes` (whole process); `idle_bytes`, what the
    process holds before the model; `seconds_per_step`, `resident_seconds_per_step` (wall, medians) and their `ratio`;
    `bit_equal`: losses and final weights; `resident_under_limit`: how the run in memory ends with the same limit.

    folder: where the model and the working copy go, twice `gib` GiB; None: a temporary one, removed at the end.
    Cost: minutes. Raises ValueError for sizes that show nothing, RuntimeError when a run fails that must not.

    Example: python -m benchmarks.offload --gib 2 --limit 1
    """
    if not (gib > 0 and limit > 0 and steps >= 1 and threads >= 1):
        raise UsageError(f"sizes must be positive, got gib={gib}, limit={limit}, {steps=}, {threads=}")
    root = Path(tempfile.mkdtemp(prefix="zograd-offload-", dir=folder))
    try:
        model_bytes, limit_bytes = make_model(root / "model", gib, seed), int(limit * GIB)
        job = {
            "model": str(root / "model"), "scratch": str(root), "steps": steps, "batch_size": batch_size,
            "seq_len": seq_len, "threads": threads, "seed": seed,
        }  # fmt: skip
        with tqdm(total=3, unit="run", file=sys.stderr, disable=None, leave=False) as bar:
            resident = _run(job | {"offload": False}, None)
            bar.update()
            starved = _run(job | {"offload": False}, limit_bytes)
            bar.update()
            offloaded = _run(job | {"offload": True}, limit_bytes)
            bar.update()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for name, found in {"in memory": resident, "from the disk": offloaded}.items():
        if "error" in found:
            raise RuntimeError(f"the run {name} failed: {found['error']}")
    return {
        "model_bytes": model_bytes,
        "limit_bytes": limit_bytes,
        "peak_bytes": offloaded["peak_bytes"],
        "resident_peak_bytes": resident["peak_bytes"],
        "idle_bytes": offloaded["idle_bytes"],
        "seconds_per_step": offloaded["seconds"],
        "resident_seconds_per_step": resident["seconds"],
        "ratio": offloaded["seconds"] / resident["seconds"],
        "bit_equal": all(offloaded[key] == resident[key] for key in ("losses", "sha256")),
        "resident_under_limit": starved.get("error", "ran"),
        "steps": steps,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "threads": threads,
        "torch": torch.__version__,
    }


def _run(job: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """`steps_of` in a process that may take `limit` bytes of private memory; {"error": ...} when it fails."""
    code = (
        "import json, sys; from benchmarks.offload import steps_of; "
        "print(json.dumps(steps_of(json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{_limited(limit)}{code}", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said = done.stderr.strip().splitlines()
    return {"error": said[-1] if said else f"exit code {done.returncode}"}


def _limited(limit: int | None) -> str:
    """The statements that set the limit, before anything is imported."""
    if limit is None:
        return ""
    return f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit})); "


def steps_of(job: dict[str, Any]) -> dict[str, Any]:
    """The steps of one run: losses, SHA-256 of the weights, peak memory, median seconds of a step."""
    import statistics

    from transformers import AutoModelForCausalLM

    from zograd import methods
    from zograd.core.run import Run
    from zograd.llm import loading
    from zograd.llm.loading import offloaded as offloading
    from zograd.offload.mapped import Pages
    from zograd.oracles import sequential
    from zograd.runs.memory import resident_bytes
    from zograd.stores import Store

    torch.set_num_threads(job["threads"])
    loading.silence()
    idle = resident_bytes()
    model: Any
    pages: Pages | None = None
    with Peak() as peak:
        if job["offload"]:
            model, pages = offloading.load_model(Path(job["model"]), torch.float32, Path(job["scratch"]))
            trained = dict(model.named_parameters())
            offloading.make_trainable(trained, pages, Path(job["scratch"]))
            offloading.stream(model, pages)
        else:
            model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
            trained = dict(model.named_parameters())
        generator = torch.Generator().manual_seed(job["seed"])
        ids = torch.randint(VOCABULARY, (job["batch_size"], job["seq_len"]), generator=generator)
        store = Store(trained, pages=pages)
        run = Run(store, methods.zo_sgd(lr=1e-4), job["seed"])
        oracle = sequential(lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
        losses, seconds = [], []
        for _ in range(job["steps"]):
            start = time.perf_counter()
            losses.append(run.step(oracle).losses)
            seconds.append(time.perf_counter() - start)
        digest = store.digest()
    return {
        "losses": losses, "sha256": digest, "peak_bytes": peak.bytes, "idle_bytes": idle,
        "seconds": statistics.median(seconds),
    }  # fmt: skip


app = script(bench_offload)

if __name__ == "__main__":
    app()
