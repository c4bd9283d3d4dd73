"""Measurements that anybody can repeat: what a step costs in time and memory, and whether it is exact.

Files: baseline.py (the loop that is compared with), workload.py (a model, its loss, and the three ways to run it),
arguments.py (arguments that several take); step.py (time), memory.py (peaks), exact.py (weights after queries and
updates), directions.py, batches.py, noise.py, profile.py. `bench_NAME` is the command `zograd bench NAME`.

Each function returns plain data for JSON; progress goes to stderr.
"""

from __future__ import annotations

from zograd.bench.exact import bench_exact
from zograd.bench.memory import bench_memory
from zograd.bench.step import bench_step

__all__ = ["bench_exact", "bench_memory", "bench_step"]
