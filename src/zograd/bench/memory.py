"""Peak memory of one step beside that of inference and of the baseline loop."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from tqdm import tqdm

from zograd.bench.arguments import BatchSize, Device, Dtype, LawName, MethodName, Model, SeqLen, Threads, Together
from zograd.bench.workload import TimedModel, quiet_machine
from zograd.errors import UsageError
from zograd.runs.memory import Peak, resident_bytes, trim

REPEATS = 3


def bench_memory(
    model: Model = "smollm2-135m",
    *,
    batch_size: BatchSize = 16,
    seq_len: SeqLen = 64,
    dtype: Dtype = "float32",
    method: MethodName = "zo_sgd",
    rounds: int = REPEATS,
    threads: Threads = None,
    device: Device = "cpu",
    seed: int = 0,
    law: LawName = None,
    together: Together = None,
    baseline: bool = True,
) -> dict[str, Any]:
    """Peak memory of a step, of inference, and of a MeZO-style loop.

    ratio = (peak of a step) / (peak of a plain forward with loss), as the operating system sees the process.

    In the order inference, step, baseline: a warm-up of each, then medians of `rounds` peaks. Slots and low halves of
    the method come into being with the warm-up of the step: they count in it, not in inference.

    law, together: see `TimedModel`. baseline: also measure the MeZO-style loop; without, its keys are left out.

    Keys: `inference_peak_bytes`, `step_peak_bytes`, `baseline_peak_bytes` (whole process, Python and torch included),
    `ratio`, `baseline_ratio`; `weights_bytes`; `process_bytes`, what the process holds besides weights when idle; and
    the stricter `net_ratio`, `baseline_net_ratio` with `process_bytes` taken off both sides, which is what remains
    when the model is large; `measured_by`, see `Peak`. On a CUDA device only its tensors count, `process_bytes` is 0.

    Cost: (1 + rounds) x (a forward, a step and a baseline step). Raises ModelError or ValueError before that.

    Example: zograd bench memory --dtype bfloat16
    """
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    with quiet_machine(threads):
        work = TimedModel(
            model, batch_size=batch_size, seq_len=seq_len, dtype=dtype, method=method, device=device, seed=seed,
            law=law, together=together,
        )  # fmt: skip
        cuda = work.device.type == "cuda"
        ways = {"inference": lambda: work.forwards(1), "step": work.step}
        if baseline:
            ways["baseline"] = work.baseline
        peaks: dict[str, int] = {}
        process = 0
        method_of_measuring = ""
        with tqdm(total=len(ways) * (rounds + 1), unit="run", file=sys.stderr, disable=None, leave=False) as bar:
            for name, way in ways.items():
                way()
                bar.update()
                if name == "inference" and not cuda:
                    trim()
                    process = max(0, resident_bytes() - work.weights_bytes)
                seen = []
                for _ in range(rounds):
                    with Peak(work.device) as peak:
                        way()
                    seen.append(peak.bytes)
                    method_of_measuring = peak.method
                    bar.update()
                peaks[name] = int(statistics.median(seen))
        inference = peaks.pop("inference")
        found: dict[str, Any] = {"inference_peak_bytes": inference, "process_bytes": process}
        for name, peak_bytes in peaks.items():
            prefix = "" if name == "step" else f"{name}_"
            found |= {
                f"{name}_peak_bytes": peak_bytes,
                f"{prefix}ratio": peak_bytes / inference,
                f"{prefix}net_ratio": (peak_bytes - process) / (inference - process),
            }
        return {
            **found,
            "rounds": rounds,
            "measured_by": method_of_measuring,
            **work.description(),
        }
